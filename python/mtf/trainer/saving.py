"""When the trainer saves, what a checkpoint of it holds, and how it goes on from one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mtf
from mtf import checkpoint
from mtf.checkpoint.directory import Checkpoint
from mtf.errors import CheckpointError
from mtf.trainer import capture, preemption
from mtf.trainer.state import TrainerState

if TYPE_CHECKING:
    from mtf.trainer.trainer import Trainer


class Saver:
    """Saves at commit points only: between two windows, or between two epochs.

    Attributes:
        guard: tells of signals that ask the run to stop; None outside of ``fit``.
        is_safe: whether a state taken now is one from which training goes on exactly; False while an epoch ends.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._manager = checkpoint.CheckpointManager(trainer.config.checkpoint, on_saved=self._tell)
        self._asked: list[str] = []
        self._best_is_due = False
        self._saved_at: tuple[int, int] | None = None
        self.guard: preemption.PreemptionGuard | None = None
        self.is_safe = True

    # Saving

    def ask(self, path: str) -> None:
        """Saves to ``path`` at the next commit point."""
        self._asked.append(path)

    def save(self, path: str) -> None:
        """Saves to ``path`` now."""
        parts = self._parts()
        metrics = parts.pop("metrics")
        step, epoch = parts.pop("step"), parts.pop("epoch")
        manifest = {"step": step, "epoch": epoch, "metrics": metrics, **parts.pop("manifest")}
        self._tell(checkpoint.write(path, manifest=manifest, **parts))

    def after_update(self) -> None:
        """A commit point inside an epoch."""
        self._commit_point(self._manager.frequency.due(self._trainer.global_step))

    def after_epoch(self) -> None:
        """A commit point between two epochs."""
        due = self._manager.frequency.due(self._trainer.global_step)
        self._commit_point(due or self._manager.frequency.due_after_epoch(self._trainer.epoch))

    def after_validation(self, row: dict[str, float]) -> None:
        """Under ``save_best``, a better metric makes the next commit point save."""
        if self._trainer.config.checkpoint.save_best and self._manager.improves(row):
            self._best_is_due = True

    def save_what_was_asked_for(self) -> None:
        """Paths given to ``save_checkpoint`` where it wasn't safe to save."""
        asked, self._asked = self._asked, []
        for path in dict.fromkeys(asked):
            self.save(path)

    def _commit_point(self, due: str | None) -> None:
        if self._asked:
            self.save_what_was_asked_for()
        assert self.guard is not None
        if self.guard.requested is not None:
            self._leave_on_signal(self.guard)
        elif due is not None or self._best_is_due:
            self._save_in_root(required=False)
        else:
            self._manager.poll()

    def _save_in_root(self, *, required: bool) -> Path | None:
        self._best_is_due = False
        parts = self._parts()
        here = (parts["step"], parts["epoch"])
        if self._saved_at == here and not required:
            return None
        self._saved_at = here
        path: Path | None = self._manager.save(**parts, required=required)
        return path

    def _leave_on_signal(self, guard: preemption.PreemptionGuard) -> None:
        assert guard.requested is not None
        path = self._save_in_root(required=True)
        preemption.write_marker(self._manager.root, guard.requested, self._trainer.global_step, path)
        if self._trainer.config.preemption.requeue_job:
            preemption.requeue_slurm_job()
        guard.leave(path)

    def _parts(self) -> dict[str, Any]:
        """What is saved. A loss that isn't finite is never part of it."""
        trainer = self._trainer
        trainer.nonfinite.window_is_finite()
        tree = capture.tree(trainer)
        return {
            "step": trainer.global_step,
            "epoch": trainer.epoch,
            "model": tree.pop("model"),
            "state_tree": {"trainer": tree, "loggers": trainer.reporter.state_dict()},
            "schedule": trainer.multi.schedule.to_bytes() if trainer.multi is not None else b"",
            "metrics": dict(trainer.metrics),
            "manifest": {
                "experiment": trainer.config.experiment_name,
                "mtf": mtf.__version__,
                "torch": str(torch.__version__),
                **_arithmetic(trainer),
                "config": trainer.config.describe(),
            },
        }

    def _tell(self, path: Path) -> None:
        self._trainer.hooks.call("on_checkpoint_save", self._trainer, str(path))

    # Going on

    def resume(self, source: str | None) -> None:
        """Loads what ``fit`` was told to go on from.

        Args:
            source: a checkpoint's path, ``"latest"``, or None: then only ``auto_resume``, in a trainer that hasn't
                trained yet.
        """
        trainer = self._trainer
        is_new = trainer.global_step == 0 and trainer.pending_multi_state is None
        if source is not None and source != "latest":
            self.load(source)
        elif source == "latest" or (trainer.config.fault_tolerance.auto_resume and is_new):
            found = self._manager.load_latest()
            if found is not None:
                self._restore(found)
            elif source == "latest":
                raise CheckpointError(
                    f"resume_from='latest': there is no checkpoint in {self._manager.root}; "
                    "fault_tolerance.auto_resume=True begins from scratch then"
                )
        preemption.clear_marker(self._manager.root)
        self._manager.frequency.start()

    def load(self, path: str) -> None:
        """Verifies the checkpoint at ``path`` and puts it in place."""
        self._restore(checkpoint.read(Path(path)))

    def _restore(self, found: Checkpoint) -> None:
        trainer = self._trainer
        for name, value in _arithmetic(trainer).items():
            saved = found.manifest.get(name, value)
            if saved != value:
                warnings.warn(
                    f"{found.path} was saved with {name}={saved}, here it is {value}: last bits may differ",
                    stacklevel=4,
                )
        capture.restore(trainer, TrainerState({**found.state["trainer"], "model": found.model}))
        trainer.reporter.load_state_dict(found.state["loggers"])
        self._saved_at = (trainer.global_step, trainer.epoch)
        trainer.hooks.call("on_checkpoint_load", trainer, str(found.path))

    def wait(self) -> None:
        """Returns when nothing is being written; errors of the writer surface here."""
        self._manager.wait()

    def close(self) -> None:
        """Waits, and gives the directory's lock back."""
        self.guard = None
        self.is_safe = True
        self._manager.close()


def _arithmetic(trainer: Trainer) -> dict[str, Any]:
    """What changes the last bits of results besides the state."""
    return {"num_threads": torch.get_num_threads(), "compile_model": trainer.config.performance.compile_model}
