"""Row F: from the command to a usable package, in a process of its own each time."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest
from conftest import HandOn, Measure
from tables import Measurement

OURS = {
    "an empty interpreter": "pass",
    "import numpy": "import numpy",
    "import torch": "import torch",
    "mtf, schedules only": "import mtf; mtf.Schedule",
    "mtf, with torch": "import mtf; mtf.Trainer",
}
PEERS = {
    "grain": "import grain",
    "torchdata": "import torchdata.nodes",
    "accelerate": "import accelerate",
    "lightning": "import lightning",
    "transformers": "from transformers import Trainer",
}


def start(code: str) -> float:
    """Seconds that an interpreter needs for this code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
    return time.perf_counter() - started


def test_import(hand_on: HandOn, pick: Any) -> None:
    """In turns, so that a busy time of the machine is every tool's."""
    codes = {tool: code for tool, code in OURS.items() if pick(True, True, "torch" not in tool)}
    rounds = [{tool: start(code) for tool, code in codes.items()} for _ in range(pick(12, 4, 2))][1:]
    for tool in codes:
        times = sorted(times[tool] for times in rounds)
        spread = (times[3 * len(times) // 4] - times[len(times) // 4]) / statistics.median(times)
        hand_on(Measurement("F", "start", "", tool, statistics.median(times) * 1e9, spread=spread))


@pytest.mark.parametrize("tool", PEERS)
def test_import_peer(measure: Measure, pick: Any, tool: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} isn't installed")
    if pick(False, False, True):
        pytest.skip("seconds for nothing")
    measure(lambda: start(PEERS[tool]), row="F", work="start", tool=tool, rounds=pick(3, 1, 1), warmup=pick(1, 0, 0))
