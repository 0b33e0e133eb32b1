"""When the trainer saves, what a checkpoint of it holds, and how it continues from one."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch

import mtf
from mtf import checkpoint
from mtf.checkpoint.coordinator import RankCheckpointer
from mtf.checkpoint.format.layout import Checkpoint
from mtf.checkpoint.storage.local import CheckpointWarning
from mtf.config.checks import nearest
from mtf.errors import CheckpointError, ConfigError, MtfError, StateMismatch
from mtf.schedule.schedule import Schedule
from mtf.trainer import preemption, run_directory

Trainer: TypeAlias = Any

_log = logging.getLogger("mtf")

# Settings that may be changed on the way, after which training isn't what it would have been.
_COURSE = (
    ("performance", "precision"),
    ("performance", "gradient_accumulation_steps"),
    ("performance", "clip_grad_norm"),
    ("loss_weights_per_loader",),
    ("per_loader_optimizers", "lr_scale"),
)

_log = logging.getLogger("mtf.trainer")


class Saver:
    """Saves at commit points only: between two windows, or between two epochs.

    A state that still owes something of its update (a validation) is saved again when that is done.

    Attributes:
        guard: tells of signals that ask the run to stop; None outside of ``fit``.
        is_safe: whether a state taken now is one from which training continues exactly; inside ``fit`` only where
            it begins and ends.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.saved_path: Path | None = None
        self._trainer = trainer
        self._manager = checkpoint.CheckpointManager(trainer.config.checkpoint, on_saved=self._tell)
        self._asked: list[str] = []
        self._best_is_due = False
        self._saved_at: tuple[int, int] | None = None
        self._ranks_save = RankCheckpointer(trainer, self._manager)
        self._leaves = False
        self._misses_metric = False
        self._run: str | None = None
        self._has_run = False
        self._directory_is_used = False
        self.guard: preemption.PreemptionGuard | None = None
        self.is_safe = True

    # Saving

    def ask(self, path: str) -> None:
        """Saves to ``path`` at the next commit point."""
        self._asked.append(path)

    def save(self, path: str, *, required: bool = True) -> None:
        """Saves to ``path`` now; ``required``: a full disk is an error."""
        self._ranks_save.to_path(path, self._parts(), self._tell, required=required)

    def after_update(self, *, is_final: bool) -> None:
        """A commit point inside an epoch; ``is_final``: ``fit`` ends here."""
        self._commit_point(self._manager.frequency.due(self._trainer.global_step), is_final=is_final)

    def after_epoch(self) -> None:
        """A commit point between two epochs."""
        due = self._manager.frequency.due(self._trainer.global_step)
        due = due or self._manager.frequency.due_after_epoch(self._trainer.epoch)
        self._commit_point(due, is_epoch_end=True)

    def at_end(self) -> None:
        """The last commit point of ``fit``: for what was asked for, and signals that came, after the one before."""
        due = "end of fit" if self._trainer.config.checkpoint.save_at_end else None
        if due and self._trainer.ranks.any(bool(self._trainer.hooks.on_train_end)):
            self._saved_at = None  # a hook may have changed what was saved at this update, averaged the weights for one
        self._commit_point(due, is_final=True)

    def is_asked_to_leave(self) -> bool:
        """Whether a signal has come on this rank."""
        return self.guard is not None and self.guard.requested is not None

    def _leave_before_start(self) -> None:
        """While the checkpoint folder is waited for: obeys a signal where there is nothing to save. A collective."""
        if self.guard is not None and self._learn_of_signal(self.guard) and self._has_nothing_to_save():
            self._leave_unchanged(self.guard)

    def _learn_of_signal(self, guard: preemption.PreemptionGuard) -> bool:
        """Whether a signal has come on any rank, which all then know of. A collective."""
        (number,) = self._trainer.ranks.largest([0 if guard.requested is None else int(guard.requested)])
        if number:
            guard.request(signal.Signals(number))
            self._leaves = True
        return bool(number)

    def _has_nothing_to_save(self) -> bool:
        trainer = self._trainer
        return trainer.global_step == 0 or self._saved_at == (trainer.global_step, trainer.epoch)

    def leave_if_asked(self) -> None:
        """Before the first update: obeys a signal that came while nothing was trained. A collective."""
        guard = self.guard
        assert guard is not None
        if not self._learn_of_signal(guard):
            return
        if self._has_nothing_to_save():
            self._leave_unchanged(guard)
        self._leave_on_signal(guard)

    def _leave_unchanged(self, guard: preemption.PreemptionGuard) -> None:
        """Leaves without a save: what there is to save is the newest checkpoint, or nothing."""
        assert guard.requested is not None
        if self._trainer.rank == 0 and self._trainer.config.preemption.requeue_job:
            preemption.requeue_slurm_job()
        self._trainer.ranks.any(False)
        guard.leave()

    def leave(self) -> None:
        """Saves and leaves on the signal that has come on any rank, where an update still owes something. A
        collective."""
        assert self.guard is not None
        if self._asked:
            self.save_what_was_asked_for()
        if self._learn_of_signal(self.guard):
            self._leave_on_signal(self.guard)

    def after_validation(self, row: dict[str, float]) -> None:
        """Under ``save_best``, a better metric makes the next commit point save.

        Raises:
            ConfigError: the metric that decides isn't there.
        """
        monitor = self._trainer.config.checkpoint.monitor_metric
        if self._trainer.config.checkpoint.save_best:
            if monitor not in row:
                raise ConfigError(
                    f"checkpoint.monitor_metric: the validation gives no {monitor!r}{nearest(str(monitor), row)}; "
                    f"there are {list(row)}"
                )
            # Only rank 0 knows what is in the directory.
            improves = self._trainer.rank == 0 and self._manager.improves(row)
            self._best_is_due = self._trainer.ranks.any(improves) or self._best_is_due
        elif monitor is not None and monitor not in self._trainer.metrics and not self._misses_metric:
            self._misses_metric = True
            warnings.warn(
                f"checkpoint.monitor_metric: there is no metric {monitor!r} so far"
                f"{nearest(monitor, self._trainer.metrics)}; without it no checkpoint can be called best",
                stacklevel=2,
            )

    def forget(self) -> None:
        """After another state was put in place: its position may be one at which another run was saved."""
        self._asked = []
        self._best_is_due = False
        self._saved_at = None

    def forget_what_was_asked_for(self) -> None:
        """After an error in a window: it is trained on again, and what asked for a save asks again."""
        self._asked = []

    def save_what_was_asked_for(self) -> None:
        """Paths given to ``save_checkpoint`` where it wasn't safe to save."""
        asked, self._asked = list(dict.fromkeys(self._asked)), []
        try:
            while asked:
                self.save(asked[0], required=False)
                asked.pop(0)
        except MtfError:  # the path is no good
            self._asked = asked[1:] + self._asked
            raise
        except Exception:  # of a hook
            self._asked = asked + self._asked
            raise

    def _commit_point(self, due: str | None, *, is_epoch_end: bool = False, is_final: bool = False) -> None:
        if self._asked:
            self.save_what_was_asked_for()
        assert self.guard is not None
        wants_save = due is not None or self._best_is_due
        if self._trainer.world_size > 1:
            wants_save = self._agree(self.guard, wants_save, is_epoch_end=is_epoch_end, is_final=is_final)
        signalled = self.guard.requested is not None if self._trainer.world_size == 1 else self._leaves
        if signalled:
            self._leave_on_signal(self.guard)
        elif wants_save:
            self._save_in_root(required=False)
        elif self._trainer.config.checkpoint.asynchronous:
            self._manager.poll()

    def _agree(
        self, guard: preemption.PreemptionGuard, wants_save: bool, *, is_epoch_end: bool, is_final: bool
    ) -> bool:
        """Every ``agree_every`` updates, and at each end, the ranks tell each other of signals, of wishes to stop and
        of minutes passed.

        Returns:
            Whether all ranks save now.
        """
        trainer = self._trainer
        config = trainer.config
        by_time = config.checkpoint.save_every_n_minutes is not None
        if not (is_epoch_end or is_final) and trainer.global_step % config.preemption.agree_every:
            # What the clock says differs between ranks; what counts updates doesn't.
            return self._counts_say(is_epoch_end=False) or self._best_is_due
        signalled = 0 if guard.requested is None else int(guard.requested)
        saves = wants_save and (trainer.rank == 0 or not by_time or self._counts_say(is_epoch_end=is_epoch_end))
        number, stops, save = trainer.ranks.largest([signalled, int(trainer.stop_reason is not None), int(saves)])
        if number:
            guard.request(signal.Signals(number))
            self._leaves = True
        trainer.run_state.is_stopping = trainer.run_state.is_stopping or bool(stops)
        return bool(save)

    def _counts_say(self, *, is_epoch_end: bool) -> bool:
        config, trainer = self._trainer.config.checkpoint, self._trainer
        steps, epochs = config.save_every_n_steps, config.save_every_n_epochs
        return bool(steps and trainer.global_step % steps == 0) or bool(
            is_epoch_end and epochs and trainer.epoch % epochs == 0
        )

    def _save_in_root(self, *, required: bool) -> Path | None:
        parts = self._parts()
        here = (parts["step"], parts["epoch"])
        saved = None
        if self._saved_at != here or required:
            saved = self._ranks_save.in_root(parts, required=required)
        self._best_is_due, self._saved_at = False, None if self._trainer.run_state.pending.is_anything else here
        return saved

    def _leave_on_signal(self, guard: preemption.PreemptionGuard) -> None:
        assert guard.requested is not None
        path = self._save_in_root(required=True)
        if self._trainer.rank == 0:
            preemption.write_marker(self._manager.root, guard.requested, self._trainer.global_step, path)
            if self._trainer.config.preemption.requeue_job:
                preemption.requeue_slurm_job()
        # A launcher kills the other ranks as soon as one has ended.
        self._trainer.ranks.any(False)
        guard.leave(path)

    def _parts(self) -> dict[str, Any]:
        """What is saved. A loss that isn't finite is never part of it."""
        trainer = self._trainer
        trainer._nonfinite.window_is_finite()
        trainer._data.require_same_schedule()
        tree = trainer._registry.collect()
        schedule = b""
        if tree["multi"] is not None:  # the schedule has a file of its own
            schedule = Schedule.pack_state(tree["multi"]["schedule"])
            tree["multi"] = {name: value for name, value in tree["multi"].items() if name != "schedule"}
        return {
            "step": trainer.global_step,
            "epoch": trainer.epoch,
            "model": tree.pop("model"),
            "state_tree": {"trainer": tree, "loggers": trainer._reporter.state_dict()},
            "schedule": schedule,
            "metrics": dict(trainer.metrics),
            "manifest": {
                "experiment": trainer.config.experiment_name,
                **({} if self._run is None else {"run": self._run}),
                "mtf": mtf.__version__,
                "torch": str(torch.__version__),
                **_arithmetic(trainer),
                "config": trainer.config.describe(),
            },
        }

    def _tell(self, path: Path) -> None:
        self.saved_path = path
        _log.info("saved %s after update %d", path, self._trainer.global_step)
        self._trainer.hooks.call("on_checkpoint_save", str(path))

    # Going on

    def resume(self, source: str | None) -> None:
        """Loads what ``fit`` was told to resume from.

        Args:
            source: a checkpoint's path, ``"latest"``, or None: then only ``auto_resume``, in a trainer that hasn't
                trained yet.
        """
        trainer = self._trainer
        if source is not None and not isinstance(source, (str, os.PathLike)):
            raise ConfigError(f"resume_from must be 'latest' or a checkpoint's path, it is {source!r}")
        is_new = trainer.global_step == 0 and trainer._data.pending_state is None
        auto_resume = trainer.config.fault_tolerance.auto_resume
        self._directory_is_used = trainer.ranks.from_first(
            run_directory.is_used(trainer.config.checkpoint, auto_resume) or source == "latest"
        )
        if self._directory_is_used:
            run_directory.claim(self._manager, trainer.ranks, self._leave_before_start, trainer.config.ddp.timeout_s)
        if source == "latest" or (auto_resume and is_new):
            found = self._newest()
            if found is not None:
                if source not in (None, "latest"):
                    warnings.warn(
                        f"resume_from={str(source)!r} isn't used: under fault_tolerance.auto_resume this run continues "
                        f"from its own newest checkpoint, {found.path}",
                        stacklevel=4,
                    )
                self._restore_on_all_ranks(found)
            elif source == "latest":
                raise CheckpointError(
                    f"resume_from='latest': there is no checkpoint in {self._manager.root}; "
                    "fault_tolerance.auto_resume=True begins from scratch then"
                )
            elif source is not None:
                self._load_on_all_ranks(source)
        elif source is not None:
            self._load_on_all_ranks(source)
        self._begin_run()
        if trainer.rank == 0:
            preemption.clear_marker(self._manager.root)
        self._manager.frequency.start()

    def _newest(self) -> Checkpoint | None:
        """The newest valid checkpoint of the directory. Rank 0 looks for it, and compares every file's checksum; the
        others read what they need of the same one."""
        ranks = self._trainer.ranks
        found = self._manager.load_latest() if ranks.rank == 0 else None
        path = ranks.from_first(None if found is None else found.path)
        return checkpoint.read(path, verify_shards=False) if found is None and path is not None else found

    def _begin_run(self) -> None:
        """Gives a fresh run an id, and names the checkpoints of other runs in its directory. A collective."""
        trainer = self._trainer
        names: list[str] = []
        if trainer.rank == 0:
            with suppress(CheckpointError):  # a directory that can't be listed: the first save says so
                if not self._has_run:
                    self._run = secrets.token_hex(4)
                    found = self._manager.others(self._run)
                    if trainer.global_step and found:  # load_state gave a state that doesn't say of which run it is
                        self._run = found[-1].run
                names = [other.name for other in self._manager.others(self._run)]
        self._has_run = True
        self._run, names = trainer.ranks.from_first((self._run, names))
        self._manager.begin_run(self._run, names)
        if names and self._directory_is_used and trainer.rank == 0:
            warnings.warn(
                f"checkpoint.root_dir: {self._manager.root} holds {len(names)} checkpoints of another run "
                f"({', '.join(names[-3:])}). They are neither counted nor deleted; to continue that run use "
                "fit(resume_from='latest'), else give each run a directory of its own",
                CheckpointWarning,
                stacklevel=5,
            )

    def load(self, path: str | Path) -> None:
        """Verifies the checkpoint at ``path`` and loads it."""
        self._restore(checkpoint.read(path, verify_shards=self._trainer.rank == 0))

    def _load_on_all_ranks(self, path: str | Path) -> None:
        """Loads the checkpoint at ``path``, the same on all ranks. A collective.

        Rank 0 compares the files of sharded tensors with their hashes, for all ranks, before any rank uses them: each
        rank doing so would read all of them as many times as there are ranks.
        """
        self._restore_on_all_ranks(checkpoint.read(path, verify_shards=self._trainer.rank == 0))

    def _restore_on_all_ranks(self, found: Checkpoint) -> None:
        """Loads what every rank has read. A collective."""
        # Who hasn't found it, or found it damaged, has raised; the same path may be another file on another machine.
        self._trainer.ranks.require_equal(
            "the checkpoint to resume from", {str(found.path): found.manifest.get("files")}
        )
        self._restore(found)

    def _restore(self, found: Checkpoint) -> None:
        trainer = self._trainer
        if not isinstance(found.state, Mapping) or not {"trainer", "loggers"} <= set(found.state):
            raise StateMismatch(f"{found.path}: is whole, but no Trainer saved it; checkpoint.read gives what it holds")
        for name, value in _arithmetic(trainer).items():
            saved = found.manifest.get(name, value)
            if saved != value:
                warnings.warn(
                    f"{found.path} was saved with {name}={saved}, here it is {value}: last bits may differ",
                    stacklevel=4,
                )
        described = trainer.config.describe()
        for place in _COURSE:
            there, here = _setting(found.manifest.get("config"), place), _setting(described, place)
            if there and there != here:
                warnings.warn(
                    f"{found.path} was saved with {'.'.join(place)}={there[0]}, here it is {here[0]}: training "
                    "continues with the new setting, and not as it would have",
                    stacklevel=4,
                )
        self._warn_if_unverifiable(found)
        trainer._registry.load(self._ranks_save.state_of(found))
        trainer._reporter.load_state_dict(found.state["loggers"])
        self._saved_at = None if trainer.run_state.pending.is_anything else (trainer.global_step, trainer.epoch)
        _log.info("resumed from %s after update %d, in epoch %d", found.path, trainer.global_step, trainer.epoch)
        trainer.hooks.call("on_checkpoint_load", str(found.path))
        self._run, self._has_run = found.manifest.get("run"), True

    def _warn_if_unverifiable(self, found: Checkpoint) -> None:
        """``verify_deterministic_resume`` must not pass because there is nothing to compare."""
        trainer = self._trainer
        multi = found.state["trainer"].get("multi")
        is_asked_for = trainer.config.fault_tolerance.verify_deterministic_resume
        if not is_asked_for or multi is None or not found.manifest["step"]:
            return
        saved = 1 + len(found.state["trainer"].get("other_ranks", ()))
        if multi.get("last_batches") and saved == trainer.world_size:
            return
        reason = (
            f"{saved} ranks saved it, here are {trainer.world_size}"
            if multi.get("last_batches")
            else "it was saved without fault_tolerance.verify_deterministic_resume"
        )
        warnings.warn(
            f"{found.path} holds no hashes of batches that this run could fetch again, because {reason}: this resume "
            "is not verified, and there is nothing to do, because the next one will be",
            CheckpointWarning,
            stacklevel=5,
        )

    def finish(self) -> None:
        """Returns when nothing is being written; errors of the writer surface here. A signal that came meanwhile, or
        while there was nothing to do, is obeyed like any other."""
        self._manager.wait()
        self._ranks_save.wait()
        self._commit_point(None, is_final=True)

    def close(self) -> None:
        """Waits, and gives the directory's lock back."""
        self.guard = None
        self.is_safe = True
        self._manager.close()
        self._ranks_save.wait()
        self._leaves = False


def _setting(config: Any, place: tuple[str, ...]) -> list[Any]:
    """A setting in a described configuration; empty where it has none of this name."""
    for name in place:
        if not isinstance(config, Mapping):
            return []
        if name == "lr_scale":  # of each loader whose rule has one
            config = {loader: scale for loader, rule in config.items() if (scale := rule.get(name, 1.0)) != 1.0}
        elif name in config:
            config = config[name]
        else:
            return []
    return [config]


def _arithmetic(trainer: Trainer) -> dict[str, Any]:
    """What changes the last bits of results besides the state."""
    return {"num_threads": torch.get_num_threads(), "compile_model": trainer.config.performance.compile_model}
