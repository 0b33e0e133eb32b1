"""kill -9 of a run that goes back after spikes and leaves updates out: it ends as the undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("steered_training.py")
pytestmark = pytest.mark.timeout(300)


def train(folder: Path, update: int = -1, time: int = 1) -> tuple[int, Any]:
    python_path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(update), str(time)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": python_path},
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    code, result = train(tmp_path_factory.mktemp("whole"))
    assert code == 0
    assert result["guard"]["num_rollbacks"] == 3
    assert result["batches"] == 60
    return result


@pytest.mark.parametrize(
    ("update", "time"),
    [
        (17, 1),  # in the update of the spike
        (18, 1),  # right after the rollback, before the next save
        (19, 1),
        (29, 1),  # after two rollbacks to different checkpoints, before a save
        (34, 1),
        (46, 1),  # after a range that was left out
        (15, 1),  # between a save and the spike
    ],
)
def test_the_run_is_the_same_whenever_it_was_killed(undisturbed: Any, tmp_path: Path, update: int, time: int) -> None:
    code, _ = train(tmp_path, update, time)
    assert code == -9
    code, result = train(tmp_path)
    assert code == 0
    assert result == undisturbed


def test_many_kills_in_one_run(undisturbed: Any, tmp_path: Path) -> None:
    for update in (3, 12, 18, 18, 27, 34, 41, 50):
        code, _ = train(tmp_path, update)
        assert code == -9
    assert train(tmp_path) == (0, undisturbed)
