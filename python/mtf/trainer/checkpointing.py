"""When a run saves, what a checkpoint of it holds, and how it continues from one.

The loop asks at every commit point (between two updates, between two epochs) for a :class:`Decision`, and does what it
says: it saves, stops, or saves and exits because of a signal. Nothing here knows the trainer: a checkpoint is what the
registry of components collects, and a resume gives every component its part back. How files are written is a matter of
:mod:`mtf.checkpoint`, and which checkpoint is the latest one of :mod:`mtf.trainer.state.resuming`.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mtf
from mtf import checkpoint
from mtf.call_site import user_level
from mtf.checkpoint.coordinator import RankCheckpointer
from mtf.checkpoint.format.layout import Checkpoint
from mtf.checkpoint.storage.base import Storage
from mtf.config.checks import nearest
from mtf.config.trainer import TrainerConfig
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError, MtfError
from mtf.schedule.schedule import Schedule
from mtf.trainer import preemption
from mtf.trainer.state import resuming
from mtf.trainer.state.registry import Stateful, StateRegistry
from mtf.trainer.state.resume_parts import ResumeParts, require_path
from mtf.trainer.state.run_state import RunState

_log = logging.getLogger("mtf.trainer")


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens at a commit point.

    Attributes:
        save: whether a checkpoint is due.
        stop: whether ``fit`` returns after this update, because some rank asked for it.
        exit: whether a signal asked the process to save and exit.
    """

    save: bool
    stop: bool = False
    exit: bool = False


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a run continues from.

    Attributes:
        path: the checkpoint's path, or its URL.
        step: updates done.
        epoch: the epoch that training continues in.
    """

    path: Path | str
    step: int
    epoch: int


class Checkpointer:
    """Saves at commit points, and resumes.

    Args:
        config: when, where and how to save; what a signal does; whether to resume by itself.
        ranks: those that train, and save together.
        registry: the components of the state.
        run: where the run stands.
        loggers: their state is saved beside the trainer's.
        before_save: raises where the present state must not be saved. A collective.
        describe_data: how the rows of the loaders are numbered, for the manifest.
        on_saved: called with the path of each checkpoint when it is durable.
        on_loaded: called with the path of each checkpoint that was loaded.
        storage: where the run's checkpoints go, in place of ``config.checkpoint.root_dir``.

    Attributes:
        saved_path: the newest checkpoint of this process; None before the first.
        guard: knows whether a signal has asked the run to stop; None outside of ``fit``.
        can_save_now: whether training could continue exactly from a state taken now. Inside ``fit`` that holds only at
            its beginning and end; elsewhere :meth:`defer_save` saves at the next commit point.
    """

    def __init__(
        self,
        config: TrainerConfig,
        ranks: SingleRank,
        registry: StateRegistry,
        run: RunState,
        *,
        loggers: Stateful,
        before_save: Callable[[], None],
        describe_data: Callable[[], dict[str, Any]],
        on_saved: Callable[[str], None],
        on_loaded: Callable[[str], None],
        storage: Storage | None = None,
    ) -> None:
        self.saved_path: Path | str | None = None
        self.guard: preemption.PreemptionGuard | None = None
        self.can_save_now = True
        self._config = config
        self._ranks = ranks
        self._registry = registry
        self._run = run
        self._loggers = loggers
        self._before_save = before_save
        self._describe_data = describe_data
        self._on_saved = on_saved
        self._on_loaded = on_loaded
        self._manager = checkpoint.CheckpointManager(config.checkpoint, self._notify, storage)
        self._writer = RankCheckpointer(self._manager, ranks, config)
        self._directory = resuming.RunDirectory(config, ranks, self._manager)
        self._deferred: list[str] = []
        self._best_is_due = False
        self._saved_at: tuple[int, int] | None = None  # update and epoch of the newest whole save
        self._exits = False
        self._misses_metric = False
        self._loaded: Path | str | None = None  # what the state was last loaded from

    # When to save

    def at_update(self) -> Decision:
        """Decides after an update, or after an epoch where none is open. All ranks decide the same."""
        run, policy = self._run, self._manager.frequency
        is_epoch_end = not run.epoch_is_open
        due = policy.due(run.global_step) is not None
        due = due or (is_epoch_end and policy.due_after_epoch(run.epoch) is not None)
        # Where ranks tell each other of signals, and of what else only some of them know.
        ranks_meet = is_epoch_end or run.is_final or run.global_step % self._config.preemption.agree_every == 0
        if self._ranks.world_size > 1 and not ranks_meet:
            # Wall-clock triggers differ between ranks, so only update-based triggers may decide here.
            return Decision(self._is_due_by_count(is_epoch_end=False) or self._best_is_due, exit=self._exits)
        return self._decide(due, is_epoch_end=is_epoch_end)

    def at_train_end(self, *, may_have_changed: bool) -> Decision:
        """Decides after the last update of ``fit``.

        Args:
            may_have_changed: whether a hook may have changed what was saved at this update, for example by averaging
                the weights.
        """
        due = self._config.checkpoint.save_at_end or self._is_out_of_time()
        if due and self._ranks.any(may_have_changed):
            self._saved_at = None
        return self._decide(due)

    def at_exit(self) -> Decision:
        """Decides when ``fit`` is about to return, because a signal may have come meanwhile."""
        return self._decide(False)

    def after_validation(self, row: dict[str, float]) -> None:
        """Looks at the metrics of a validation: under ``save_best`` a better one makes the next commit point save.

        Raises:
            ConfigError: the validation doesn't give the metric that decides.
        """
        monitor, known = self._config.checkpoint.monitor_metric, self._run.metrics
        if monitor not in row and (monitor in known or self._config.validation.loader_every_n):
            return  # a metric of training, or of a loader that this validation left out
        if self._config.checkpoint.save_best:
            if monitor not in row:
                raise ConfigError(
                    f"checkpoint.monitor_metric: the validation gives no {monitor!r}{nearest(str(monitor), row)}; "
                    f"there are {', '.join(row)}"
                )
            # Only rank 0 knows what is in the directory.
            improves = self._ranks.rank == 0 and self._manager.improves(row)
            self._best_is_due = self._ranks.any(improves) or self._best_is_due
        elif monitor is not None and monitor not in known and not self._misses_metric:
            self._misses_metric = True
            warnings.warn(
                f"checkpoint.monitor_metric: there is no metric {monitor!r} so far{nearest(monitor, known)}; without "
                "it no checkpoint can be called best",
                stacklevel=user_level(),
            )

    def after_epoch(self) -> None:
        """The same after an epoch, where ``save_best`` looks at a metric of training."""
        config = self._config.checkpoint
        if config.save_best and not str(config.monitor_metric).startswith(("val/", "val_")):
            self.after_validation(self._run.metrics)

    def _decide(self, due: bool, *, is_epoch_end: bool = False) -> Decision:
        assert self.guard is not None
        save, requested = due or self._best_is_due, self.guard.requested
        if self._ranks.world_size == 1:
            return Decision(save, exit=requested is not None)
        # One reduction: has any rank got a signal, been asked to stop, or found a save due by the clock?
        by_time = self._config.checkpoint.save_every_n_minutes is not None
        save = save and (self._ranks.rank == 0 or not by_time or self._is_due_by_count(is_epoch_end=is_epoch_end))
        asked = [0 if requested is None else int(requested), int(self._run.stop_reason is not None), int(save)]
        number, stops, saves = self._ranks.all_reduce_max(asked)
        if number:
            self.guard.request(signal.Signals(number))
            self._exits = True
        return Decision(bool(saves), bool(stops), self._exits)

    def _is_due_by_count(self, *, is_epoch_end: bool) -> bool:
        config, run = self._config.checkpoint, self._run
        steps, epochs = config.save_every_n_steps, config.save_every_n_epochs
        return bool(steps and run.global_step % steps == 0) or bool(is_epoch_end and epochs and run.epoch % epochs == 0)

    def _is_out_of_time(self) -> bool:
        """Whether ``preemption.max_time`` has passed on any rank. A collective where it is set."""
        return self._config.preemption.max_time is not None and self._ranks.any(self._run.is_out_of_time)

    # Saving

    def save(self, path: str | None = None, *, required: bool = True) -> Any:
        """Saves now.

        Args:
            path: None: under the template's name in the run's directory.
            required: True: the checkpoint is durable when this returns, and a failed write (a full disk) is an error.
                False: a failed write is a warning, and a save into the run's directory is skipped if the newest
                checkpoint is of this very update.

        Returns:
            The path (or URL); None where nothing was written.
        """
        contents = self._contents()
        if path is not None:
            self._writer.to_path(path, contents, self._notify, required=required)
            return path
        here = (contents["step"], contents["epoch"])
        saved = None
        if self._saved_at != here or required:
            saved = self._writer.in_root(contents, required=required)
        # A state with pending work, such as a validation, is saved again once that is done.
        self._best_is_due, self._saved_at = False, None if self._run.pending.is_anything else here
        return saved

    def _contents(self) -> dict[str, Any]:
        """What a checkpoint holds: weights, state of every component, schedule, and a manifest that describes them."""
        self._before_save()
        tree = self._registry.collect()
        schedule = b""
        if tree["multi"] is not None:  # the schedule has a file of its own
            schedule = Schedule.pack_state(tree["multi"]["schedule"])
            tree["multi"] = {name: value for name, value in tree["multi"].items() if name != "schedule"}
        return {
            "step": self._run.global_step,
            "epoch": self._run.epoch,
            "model": tree.pop("model"),
            "state_tree": {"trainer": tree, "loggers": self._loggers.state_dict()},
            "schedule": schedule,
            "metrics": self._run.metrics,
            "manifest": {
                "experiment": self._config.experiment_name,
                **({} if self._directory.run is None else {"run": self._directory.run}),
                "mtf": mtf.__version__,
                "torch": str(torch.__version__),
                **resuming.arithmetic(self._config),
                "config": self._config.describe(),
                "data": self._describe_data(),
            },
        }

    def _notify(self, path: Path | str) -> None:
        self.saved_path = path
        _log.info("saved %s after update %d", path, self._run.global_step)
        self._on_saved(str(path))

    def defer_save(self, path: str) -> None:
        """Saves to ``path`` at the next commit point."""
        self._deferred.append(path)

    def save_deferred(self) -> None:
        """Saves to the paths that were deferred."""
        if not self._deferred:
            return
        deferred, self._deferred = list(dict.fromkeys(self._deferred)), []
        try:
            while deferred:
                self.save(deferred[0], required=False)
                deferred.pop(0)
        except MtfError:  # the path can't be written, so it isn't tried again
            self._deferred = deferred[1:] + self._deferred
            raise
        except Exception:  # a hook raised; the next commit point tries again
            self._deferred = deferred + self._deferred
            raise

    def drop_deferred(self) -> None:
        """Forgets deferred saves after an error in a window: that is trained on again, and asks for them again."""
        self._deferred = []

    def poll(self) -> None:
        """Calls ``on_saved`` for asynchronous saves that have finished. Never waits."""
        if self._config.checkpoint.asynchronous:
            self._manager.poll()

    def wait(self) -> None:
        """Returns when nothing is being written; errors of the writer surface here."""
        self._manager.wait()
        self._writer.wait()

    def close(self) -> None:
        """Waits for what is being written, and releases the directory's lock."""
        self.guard = None
        self.can_save_now = True
        self._manager.close()
        self._writer.wait()
        self._exits = False

    # Leaving because of a signal

    def is_exit_requested(self) -> bool:
        """Whether a signal has come on this rank."""
        return self.guard is not None and self.guard.requested is not None

    def agree_to_exit(self) -> bool:
        """Whether a signal has come on any rank; then all ranks exit. A collective."""
        assert self.guard is not None
        (number,) = self._ranks.all_reduce_max([0 if self.guard.requested is None else int(self.guard.requested)])
        if number:
            self.guard.request(signal.Signals(number))
            self._exits = True
        return bool(number)

    def save_and_exit(self) -> None:
        """Saves, then leaves ``fit`` because of the signal that has come.

        Raises:
            Preempted: or ``KeyboardInterrupt``, after the save.
        """
        assert self.guard is not None
        assert self.guard.requested is not None
        self._exit(self.save())

    def exit_if_requested(self) -> None:
        """Leaves ``fit`` before its first update if a signal came meanwhile. A collective."""
        if self.agree_to_exit():
            if self._has_nothing_to_save():
                self._exit(self._loaded)
            self.save_and_exit()

    def _exit_while_waiting(self) -> None:
        """Leaves ``fit`` on a signal that comes while it waits for the checkpoint folder. A collective."""
        if self.guard is not None and self.agree_to_exit() and self._has_nothing_to_save():
            self._exit(None)

    def _has_nothing_to_save(self) -> bool:
        return self._run.global_step == 0 or self._saved_at == (self._run.global_step, self._run.epoch)

    def _exit(self, path: Any) -> None:
        """Writes the marker, requeues the job where that is wanted, and leaves ``fit``.

        Args:
            path: the checkpoint of the present state; None: there is none, because there was nothing to save.
        """
        assert self.guard is not None
        assert self.guard.requested is not None
        if self._ranks.rank == 0:
            root = self._manager.root
            if path is not None or not isinstance(root, Path) or root.is_dir():
                preemption.write_marker(root, self.guard.requested, self._run.global_step, path)
            if self._config.preemption.requeue_job:
                preemption.requeue_slurm_job()
        self._ranks.any(False)  # a launcher kills the other ranks as soon as one has ended
        self.guard.leave(path)

    # Resuming

    def resume(self, source: str | None, parts: Any = None, *, is_new: bool) -> Resumed | None:
        """Loads what ``fit`` was told to resume from, or some ``parts`` of it. A collective.

        Args:
            source: a checkpoint's path, ``"latest"``, or None: then only ``auto_resume``, in a run that is new.
            is_new: whether nothing was trained or loaded so far.

        Raises:
            CheckpointError: there is no such checkpoint, or another run writes into the directory.
            StateMismatch: it doesn't fit this run.
        """
        require_path(source, parts)
        found, is_own = self._directory.find(source, is_new=is_new, while_waiting=self._exit_while_waiting)
        resumed = None if found is None else self._restore(found, None if is_own else parts)
        self._directory.begin_run(self._run.global_step)
        if self._ranks.rank == 0:
            preemption.clear_marker(self._manager.root)
        self._manager.frequency.start()
        return resumed

    def load(self, path: str | Path, parts: Any = None) -> Resumed:
        """Verifies the checkpoint at ``path`` and loads it, or some ``parts`` of it."""
        return self._restore(checkpoint.read(path, verify_shards=self._ranks.rank == 0), parts)

    def go_back(self) -> Resumed | None:
        """Loads the newest checkpoint that this run has saved; None where there is none. A collective."""
        self.wait()
        found = self._directory.newest_of_run()
        return None if found is None else self._restore(found)

    def forget(self) -> None:
        """Forgets what was saved and what is due, after a state of another run was loaded."""
        self._deferred = []
        self._best_is_due = False
        self._saved_at = None

    def _restore(self, found: Checkpoint, parts: Any = None) -> Resumed:
        """Loads what every rank has read. All components check it before the first one changes. A collective."""
        run = self._run
        resuming.require_of_a_trainer(found)
        if parts is not None:
            return self._restore_parts(found, ResumeParts(parts, self._registry.names, self._registry.registered))
        resuming.warn_of_changes(found, self._config)
        resuming.warn_if_unverifiable(found, self._config, self._ranks.world_size)
        self._registry.load(self._writer.state_of(found))
        self._loggers.load_state_dict(found.state["loggers"])
        self._saved_at = None if run.pending.is_anything else (run.global_step, run.epoch)
        _log.info("resumed from %s after update %d, in epoch %d", found.path, run.global_step, run.epoch)
        self._loaded = found.path
        self._on_loaded(str(found.path))
        self._directory.continue_run(found.manifest.get("run"))
        return Resumed(found.path, run.global_step, run.epoch)

    def _restore_parts(self, found: Checkpoint, parts: ResumeParts) -> Resumed:
        self._run.require_whole()
        self._registry.load(self._writer.state_of(found), parts.entries)
        left = ", ".join(parts.left_out) or "nothing"
        _log.info("loaded %s from %s, and not: %s", ", ".join(parts.names), found.path, left)
        if parts.continues_run:
            self._loggers.load_state_dict(found.state["loggers"])
            self._directory.continue_run(found.manifest.get("run"))
        self.forget()
        self._on_loaded(str(found.path))
        return Resumed(found.path, self._run.global_step, self._run.epoch)
