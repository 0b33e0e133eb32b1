"""Row F: from the command to a usable package, in a process of its own each time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from conftest import Measure

# Tool -> (what is made usable, code). Only what serves the same purpose stands together.
SCHEDULES, TRAINER, SCALE = "import, for mixtures", "import, with a trainer", "import, for scale"
CASES = {
    "mtf, schedules": (SCHEDULES, "import mtf; mtf.Schedule"),
    "grain": (SCHEDULES, "import grain"),
    "mtf, trainer": (TRAINER, "import mtf; mtf.Trainer"),
    "lightning": (TRAINER, "import lightning"),
    "transformers": (TRAINER, "from transformers import Trainer"),
    "an empty interpreter": (SCALE, "pass"),
    "numpy": (SCALE, "import numpy"),
    "torch": (SCALE, "import torch"),
}


@pytest.mark.parametrize("tool", CASES)
def test_import(measure: Measure, tool: str) -> None:
    if tool in ("grain", "lightning", "transformers") and importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} isn't installed")
    work, code = CASES[tool]
    run = lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)  # noqa: E731
    measure(run, row="F", work=work, tool=tool, rounds=3)
