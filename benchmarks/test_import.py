"""Row F: from the command to a usable package, in a process of its own each time."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import HandOn, Measure
from tables import Measurement

SCHEDULES, TRAINING = "start of a mixture", "start of a training run"
OURS = {
    "an empty interpreter": (SCHEDULES, "pass"),
    "import numpy": (SCHEDULES, "import numpy"),
    "mtf, schedules only": (SCHEDULES, "import mtf; mtf.Schedule"),
    "import torch": (TRAINING, "import torch"),
    "mtf, with torch": (TRAINING, "import mtf; mtf.Trainer"),
}
PEERS = {
    "grain": (SCHEDULES, "import grain"),
    "torchdata": (SCHEDULES, "import torchdata.nodes"),
    "accelerate": (TRAINING, "import accelerate"),
    "lightning": (TRAINING, "import lightning"),
    "transformers": (TRAINING, "from transformers import Trainer"),
}


def start(code: str) -> float:
    """Seconds that an interpreter needs for this code, with the bytecode that installing a package leaves beside it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def test_import(hand_on: HandOn, pick: Any) -> None:
    """In turns, so that a busy time of the machine is every tool's."""
    cases = {tool: case for tool, case in OURS.items() if pick(True, True, "torch" not in tool)}
    rounds = [{tool: start(code) for tool, (_, code) in cases.items()} for _ in range(pick(12, 4, 2))][1:]
    for tool, (work, _) in cases.items():
        times = sorted(times[tool] for times in rounds)
        spread = (times[3 * len(times) // 4] - times[len(times) // 4]) / statistics.median(times)
        hand_on(Measurement("F", work, "", tool, statistics.median(times) * 1e9, spread=spread))


@pytest.mark.parametrize("tool", PEERS)
def test_import_peer(measure: Measure, pick: Any, tool: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} isn't installed")
    if pick(False, False, True):
        pytest.skip("seconds for nothing")
    work, code = PEERS[tool]
    measure(lambda: start(code), row="F", work=work, tool=tool, rounds=pick(3, 1, 1), warmup=pick(1, 0, 0))
