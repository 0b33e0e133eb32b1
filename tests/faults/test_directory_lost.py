"""The run's directory is removed, replaced, read-only or full in the middle of training: the run continues, loudly."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trainer_tools as tools

import mtf
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage.local import CheckpointWarning
from mtf.trainer import preemption

LOST_AT, STEPS = 3, 6


class At(mtf.TrainerHooks):
    """Does something once, before the save that follows an update."""

    def __init__(self, update: int, action: Callable[[], Any]) -> None:
        self.update, self.action = update, action

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.update:
            self.action()


def make(root: Path, *hooks: mtf.TrainerHooks, asynchronous: bool = False, **options: Any) -> mtf.Trainer:
    saving = mtf.CheckpointConfig(
        root_dir=str(root), save_every_n_steps=1, max_checkpoints=2, asynchronous=asynchronous, **options
    )
    return tools.trainer(tools.config(checkpoint=saving), hooks=hooks)


def train(trainer: mtf.Trainer, steps: int = STEPS) -> mtf.TrainerState:
    trainer.fit(tools.loader(40, 1, shuffle=True), [tools.loader(4, 2)], max_steps=steps)
    return trainer.get_state()


def latest(root: Path) -> str | None:
    with warnings.catch_warnings():
        # Removed while it was written in the background, a checkpoint may lie there in parts; it is told of and left.
        warnings.simplefilter("ignore", CheckpointWarning)
        found = CheckpointManager(mtf.CheckpointConfig(root_dir=str(root))).latest()
    return None if found is None else found.name


@contextlib.contextmanager
def disk(path: Path, kilobytes: int) -> Iterator[Path]:
    """A small file system of its own."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is missing")
    if done.returncode != 0:
        pytest.skip("may not mount a small disk here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_removed_it_is_made_again(tmp_path: Path, asynchronous: bool) -> None:
    root = tmp_path / "run"
    hook = At(LOST_AT, lambda: shutil.rmtree(root, ignore_errors=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if asynchronous else "error", CheckpointWarning)  # of the save that it hit
        state = train(make(root, hook, asynchronous=asynchronous))
    assert state.diff(train(make(tmp_path / "whole"))) == []
    assert latest(root) == f"step-{STEPS:08d}"


def test_removed_all_the_time_the_run_goes_on(tmp_path: Path) -> None:
    """At every place of a save, by a thread."""
    root, over = tmp_path / "run", threading.Event()

    def remove() -> None:
        while not over.wait(0.002):
            shutil.rmtree(root, ignore_errors=True)

    thread = threading.Thread(target=remove)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        thread.start()
        try:
            state = train(make(root, asynchronous=True), 60)
        finally:
            over.set()
            thread.join()
    assert state.diff(train(make(tmp_path / "whole"), 60)) == []
    again = make(root)
    train(again, 61)
    assert latest(root) == "step-00000061"


# A writer of its own may still be rotating when the folder goes: that says so, too.
@pytest.mark.filterwarnings("ignore:.*old checkpoints can't be tidied up:mtf.checkpoint.CheckpointWarning")
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", ["a file in its place", "read-only", "full"])
def test_refused_by_the_system_the_run_goes_on(tmp_path: Path, kind: str, asynchronous: bool) -> None:
    with disk(tmp_path / "disk", 600) as place:
        root = place / "run"

        def lose() -> None:
            deadline = time.monotonic() + 30
            while latest(root) != f"step-{LOST_AT:08d}" and time.monotonic() < deadline:
                time.sleep(0.01)  # until the saves before are done
            if kind == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            elif kind == "full":
                with contextlib.suppress(OSError), open(place / "filler", "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            else:
                os.rename(root, place / "aside")
                root.write_text("no directory")

        trainer = make(root, At(LOST_AT, lose), asynchronous=asynchronous)
        words = {"a file in its place": "Not a directory", "read-only": "Read-only", "full": "No space left"}[kind]
        with pytest.warns(CheckpointWarning, match=rf"{root}.*{words}.*The run continues") as told:
            state = train(trainer)
        assert len(told) <= STEPS - LOST_AT + 1
        assert state.diff(train(make(tmp_path / "whole"))) == []
        # What was saved before is there.
        if kind == "read-only":
            subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        (place / "filler").unlink(missing_ok=True)
        kept = place / "aside" if kind == "a file in its place" else root
        assert latest(kept) == f"step-{LOST_AT:08d}"
        resumed = make(kept)
        resumed.fit(
            tools.loader(40, 1, shuffle=True), [tools.loader(4, 2)], max_steps=LOST_AT + 1, resume_from="latest"
        )


def test_a_signal_where_nothing_can_be_saved_is_an_error_that_says_so(tmp_path: Path) -> None:
    root = tmp_path / "run"

    def lose() -> None:
        shutil.rmtree(root)
        root.write_text("no directory")
        os.kill(os.getpid(), signal.SIGTERM)

    trainer = make(root, At(LOST_AT, lose))
    with pytest.raises(mtf.CheckpointError, match=rf"{root}.*Not a directory"):
        train(trainer)
    assert trainer.global_step == LOST_AT + 1, "the window was finished"
    root.unlink()
    assert train(trainer).diff(train(make(tmp_path / "whole"))) == []


def test_a_marker_that_cannot_be_written_does_not_change_how_the_run_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preemption, "replace_file", full)
    trainer = make(tmp_path / "run", At(LOST_AT, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.warns(UserWarning, match="PREEMPTED.*No space left"), pytest.raises(mtf.Preempted) as left:
        train(trainer)
    assert left.value.code == 75
    assert latest(tmp_path / "run") == f"step-{LOST_AT + 1:08d}"


def test_a_marker_that_cannot_be_removed_is_a_warning(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 600) as place:
        train(make(place / "run"), 2)
        (place / "run" / "PREEMPTED").write_text("{}")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        trainer = tools.trainer(tools.config(checkpoint=mtf.CheckpointConfig(root_dir=str(place / "run"))))
        with pytest.warns(UserWarning, match="PREEMPTED.*Read-only"):
            trainer.fit(tools.loader(40, 1, shuffle=True), [tools.loader(4, 2)], max_steps=3, resume_from="latest")
        assert trainer.global_step == 3


def test_a_second_run_in_the_directory_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    def second() -> None:
        with pytest.raises(mtf.CheckpointError, match="writes its checkpoints here"):
            train(make(tmp_path / "run"))

    assert train(make(tmp_path / "run", At(LOST_AT, second))).diff(train(make(tmp_path / "whole"))) == []
    assert latest(tmp_path / "run") == f"step-{STEPS:08d}"
