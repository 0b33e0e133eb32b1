"""kill -9 at random points of training: a run resumed after each ends bit-identical to an uninterrupted one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_training.py")


@pytest.mark.timeout(110)
def test_a_killed_run_ends_bit_identical(tmp_path: Path) -> None:
    python_path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "7", "5"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": python_path},
    )
    assert done.returncode == 0, done.stderr
    verdict, hits = done.stdout.split()[0], int(done.stdout.split()[-1])
    assert verdict == "same", done.stdout
    assert hits >= 2
