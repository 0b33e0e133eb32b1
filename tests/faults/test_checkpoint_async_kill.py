"""The background writer killed while it writes: what was acknowledged is there, nothing half-written counts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import save_once

from mtf.checkpoint.format.manifest import verify
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage.local import parse_hidden_sibling

# Saves without a pause, on the writer's thread, and prints each step once its save is told to be durable.
ENDLESS = """
import itertools, sys
import save_once
from mtf.checkpoint.manager import CheckpointManager

manager = CheckpointManager(save_once.config(sys.argv[1]), lambda path: print(int(path.name[5:]), flush=True))
found = manager.latest()
first = 1 if found is None else int(found.name[5:]) + 1
print("ready", flush=True)
for step in itertools.count(first):
    def fill(transaction, step=step):
        for name in save_once.FILES:
            transaction.add(name, [f"{name} of step {step}".encode(), b"x" * 300_000])
    manager.save_files(manager.path_for(step, 0), fill, {"step": step, "epoch": 0}, asynchronous=True)
"""


@pytest.mark.timeout(100)
def test_kill_the_writer_at_random_times(tmp_path: Path) -> None:
    chance = random.Random(1)
    python_path = os.pathsep.join(path for path in sys.path if path)
    acknowledged = 0
    for _ in range(25):
        child = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path},
        )
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line == "ready\n", child.communicate()
        for _ in range(chance.randrange(3)):  # so that it is at work, however slow the machine is
            acknowledged = int(child.stdout.readline())
        time.sleep(chance.random() * 0.05)
        child.kill()
        output, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert errors == ""  # no warning about a damaged checkpoint either
        acknowledged = max([acknowledged, *(int(number) for number in output.split())])
        found = CheckpointManager(save_once.config(tmp_path)).latest()
        assert found is not None or acknowledged == 0
        if found is not None:
            assert verify(found)["step"] >= acknowledged
    assert acknowledged > 10  # the kills came while it was at work
    save_once.save(tmp_path, 10**6)
    assert [name for name in os.listdir(tmp_path) if parse_hidden_sibling(name)] == []
