"""After a power loss at any instant of a save, whatever wasn't synced is gone, and still nothing is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import save_once
from power_loss import Disk, follow

from mtf.checkpoint.format.manifest import verify
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage import local


class Observer:
    """Checks every possible state of the disk after each call of a save."""

    def __init__(self, disk: Disk, scratch: Path) -> None:
        self._disk = disk
        self._scratch = scratch
        self.acknowledged = 2
        self.num_states = 0
        self.lost: list[str] = []

    def look(self) -> None:
        for build in self._disk.states():
            build(self._scratch)
            self.num_states += 1
            try:
                found = CheckpointManager(save_once.config(self._scratch)).latest()
                step = 0 if found is None else verify(found)["step"]
                if step < self.acknowledged:
                    self.lost.append(f"after call {self._disk.num_calls}: step {step}")
            except (Exception, Warning) as error:
                self.lost.append(f"after call {self._disk.num_calls}: {error}")
            shutil.rmtree(self._scratch)


def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> Observer:
    root = tmp_path / "run"
    for step in (1, 2):
        save_once.save(root, step, size=100)
    disk = Disk(root)
    observer = Observer(disk, tmp_path / "after")
    looking = False

    def after_call() -> None:
        nonlocal looking
        # Building the states makes calls as well, elsewhere.
        if not looking:
            looking = True
            try:
                observer.look()
            finally:
                looking = False

    with monkeypatch.context() as patch:
        follow(disk, root, patch, after_call)
        for step in steps:
            save_once.save(root, step, size=100)
            observer.acknowledged = step
            observer.look()
    return observer


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("steps", [[3], [2], [3, 4]])
def test_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(local, "exchange", lambda a, b: False)
    observer = watch(tmp_path, monkeypatch, steps)
    assert observer.lost == []
    assert observer.num_states > 40


def test_without_syncing_directories_something_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model sees what it is there for."""
    monkeypatch.setattr(local, "sync_directory", lambda path: None)
    assert watch(tmp_path, monkeypatch, [3]).lost != []


def test_without_syncing_files_something_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_file(path: Path, chunks: list[bytes]) -> tuple[int, str]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd: None)
            return real(path, chunks)

    real = local.write_file
    monkeypatch.setattr(local, "write_file", write_file)
    assert watch(tmp_path, monkeypatch, [3]).lost != []
