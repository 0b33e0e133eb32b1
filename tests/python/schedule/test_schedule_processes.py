"""A schedule in other processes, however Python starts them. It needs no torch, so every wheel is tried with it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, pickle, sys

import mtf


def draws(given):
    schedule, steps = given
    assert "torch" not in sys.modules
    return [(draw.name, draw.pass_, draw.batch) for draw in map(schedule.at, steps)]


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    config = mtf.MultiDataLoaderConfig(sampling_strategy="WEIGHTED", dataloader_weights={"a": 0.7, "b": 0.3})
    schedule = mtf.Schedule(config, lengths=[70, 30], seed=5)
    expected = draws((schedule, range(100)))
    with multiprocessing.Pool(2) as pool:
        parts = pool.map(draws, [(schedule, range(50)), (pickle.loads(pickle.dumps(schedule)), range(50, 100))])
    assert parts[0] + parts[1] == expected
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_other_processes_draw_the_same(method: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "script.py", method],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
