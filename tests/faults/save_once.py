"""One save as a process of its own, for fault tests: ``save_once.py ROOT STEP``.

Imports no torch, so it starts quickly. Prints ``saved`` once the save is acknowledged, and ``refused`` when the system
refused it and the run continues.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage.transaction import Transaction

FILES = ("model.safetensors", "state.safetensors", "state.json", "schedule.mtf")


def config(root: str | Path, keep: int = 2) -> Any:
    """A manager's fields for these tests."""
    return SimpleNamespace(
        root_dir=str(root),
        save_every_n_steps=None,
        save_every_n_epochs=None,
        save_every_n_minutes=None,
        max_checkpoints=keep,
        keep_every_n_steps=None,
        monitor_metric=None,
        monitor_mode="min",
        asynchronous=False,
        filename_template="step-{step:08d}",
    )


def save(root: str | Path, step: int, size: int = 1 << 20) -> Path | None:
    """Saves a checkpoint whose files say its step, each in two chunks."""
    manager = CheckpointManager(config(root))

    def fill(transaction: Transaction) -> None:
        for name in FILES:
            transaction.add(name, [f"{name} of step {step}".encode(), b"x" * size])

    path = manager.save_files(manager.path_for(step, 0), fill, {"step": step, "epoch": 0})
    print("refused" if path is None else "saved", flush=True)
    manager.close()
    return path


if __name__ == "__main__":
    warnings.simplefilter("always")
    save(sys.argv[1], int(sys.argv[2]))
