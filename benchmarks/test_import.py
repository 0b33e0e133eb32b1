"""Row F: from the command to a usable package, in a process of its own each time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from conftest import Measure

CASES = {
    "mtf, schedules": "import mtf; mtf.Schedule",
    "mtf, trainer": "import mtf; mtf.Trainer",
    "an empty interpreter": "pass",
    "numpy": "import numpy",
    "torch": "import torch",
    "grain": "import grain",
    "lightning": "import lightning",
    "transformers": "from transformers import Trainer",
}


@pytest.mark.parametrize("tool", CASES)
def test_import(measure: Measure, tool: str) -> None:
    if tool in ("grain", "lightning", "transformers") and importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} isn't installed")
    run = lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", CASES[tool]], check=True, capture_output=True)  # noqa: E731
    measure(run, row="F", work="import, a whole process", tool=tool, rounds=3)
