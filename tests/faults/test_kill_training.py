"""kill -9 and signals at random points of training: resumed after each, a run ends bit-identical to an undisturbed one.

MTF_LONG=1 interrupts more often.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("interrupt_training.py")
NUMBER = 60 if "MTF_LONG" in os.environ else 8


def interrupt(root: Path, *signals: str) -> dict[str, int]:
    """How often the run ended in which way; its final state was compared."""
    python_path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), "7", str(NUMBER), *signals],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": python_path},
    )
    assert done.returncode == 0, done.stderr
    verdict, ends = done.stdout.split(" ", 1)
    assert verdict == "same", done.stdout
    found: dict[str, int] = json.loads(ends)
    return found


@pytest.mark.timeout(600)
def test_a_killed_run_ends_bit_identical(tmp_path: Path) -> None:
    ends = interrupt(tmp_path, "SIGKILL")
    assert ends["SIGKILL"] >= 3


@pytest.mark.timeout(600)
@pytest.mark.parametrize("signals", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_run_that_was_sent_signals_ends_bit_identical(tmp_path: Path, signals: str) -> None:
    ends = interrupt(tmp_path, signals)
    assert ends["Ctrl-C" if signals == "SIGINT" else "preempted"] >= 2  # others came before the run listened


@pytest.mark.timeout(600)
def test_a_second_signal_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    ends = interrupt(tmp_path, "SIGINT,SIGINT", "SIGTERM,SIGTERM", "SIGTERM,SIGKILL", "SIGINT,SIGTERM")
    assert sum(ends.values()) > 3
