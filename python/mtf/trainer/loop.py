"""The loop: take a window of batches, train on it, maybe write a row, maybe validate, maybe save."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from mtf.config.convert import describe
from mtf.config.trainer import TrainerConfig
from mtf.enums import ValidationFrequency
from mtf.errors import MtfError
from mtf.trainer import data_setup, preflight
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.evaluation.validator import ValidationLeft, Validator
from mtf.trainer.hooks.registry import HookList
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.run_state import Phase, RunState, StopCondition
from mtf.trainer.step import TrainStep, windows


class CommitPoints(Protocol):
    """What saves, between two updates or two epochs, and leaves on signals."""

    is_safe: bool

    def after_update(self, *, is_final: bool) -> None: ...

    def after_epoch(self) -> None: ...

    def after_validation(self, row: dict[str, float]) -> None: ...

    def at_end(self) -> None: ...

    def save_what_was_asked_for(self) -> None: ...

    def is_asked_to_leave(self) -> bool: ...

    def leave(self) -> None: ...


@dataclass(slots=True, kw_only=True)
class TrainLoop:
    """One call of ``fit``, from its first window to its end.

    Attributes:
        run: where the run stands; shared with everything that looks at it.
        step: trains on one window.
        val_loaders: name -> validation loader; empty: no validation.
        saves: saves at commit points.
        warn_of_changes: warns of settings that were changed too late.
    """

    run: RunState
    step: TrainStep
    data: TrainingData
    hooks: HookList
    validator: Validator
    val_loaders: dict[str, Any]
    reporter: Reporter
    saves: CommitPoints
    config: TrainerConfig
    warn_of_changes: Callable[[], None]

    def fit(self, limits: StopCondition) -> None:
        """Trains until ``limits``, a wish to stop, or a signal."""
        run = self.run
        if self._is_done(limits):
            warnings.warn(
                f"nothing to do: {limits.reason(run)}; both count from the beginning of training", stacklevel=3
            )
            return
        self._call("on_train_start")
        run.is_stopping = self.step.ranks.any(run.stop_reason is not None)
        self.reporter.open()
        self.saves.is_safe = False
        while not run.is_stopping and not self._is_done(limits):
            if run.pending.is_anything:  # after an error, or from a state taken in a hook
                self._finish_update(self.data.manager.epoch != run.epoch, limits.steps_reached(run))
                continue
            if not run.epoch_is_open:
                self._begin_epoch()
            if not self.run_epoch(limits):
                break
            self._end_epoch()
        self.saves.is_safe = True
        self.step.guard.window_is_finite()
        self.reporter.pause()
        self.step.schedulers.warn_of_missing(run.logged, validates=bool(self.val_loaders))
        self._call("on_train_end")
        self.saves.at_end()

    def run_epoch(self, limits: StopCondition) -> bool:
        """Trains to the end of the epoch; False when it stopped before."""
        run, multi = self.run, self.data.manager
        if multi.epoch == run.epoch:  # else all its batches were trained on when fit was left
            self.reporter.begin_epoch(multi)
        run.num_committed = run.num_batches
        while multi.epoch == run.epoch:  # again where an edit in the last window made the epoch longer
            for window in windows(iter(multi), self.config.performance.gradient_accumulation_steps):
                if not self.data.is_announced:
                    self.step.open_ranks()
                self.step.run(run, window)
                is_last, is_final = multi.epoch != run.epoch, limits.steps_reached(run)
                self._after_update(window, is_last, is_final)
                # An edit between the windows may have made the epoch shorter, too.
                if (run.is_stopping or is_final) and multi.epoch == run.epoch:
                    return False
        self.step.items.require_a_loss()
        return True

    def _is_done(self, limits: StopCondition) -> bool:
        """Whether nothing is left to do; pending work is, and so is the end of an epoch that has begun."""
        run = self.run
        is_ending = run.epoch_is_open and self.data.manager.epoch != run.epoch
        return limits.reached(run) and not is_ending and not run.pending.is_anything

    def _call(self, event: str, *args: Any) -> None:
        """Calls every hook between two windows. What they log stays when none of them raised."""
        self.hooks.call(event, *args)
        self.step.metrics.commit()

    def _begin_epoch(self) -> None:
        self._call("on_epoch_start", self.run.epoch)
        self._warn_of_edits()
        self.run.epoch_is_open = True
        self.saves.save_what_was_asked_for()

    def _warn_of_edits(self) -> None:
        """Edits of a configuration that nothing reads."""
        self.warn_of_changes()
        multi = self.data.manager
        preflight.warn_of_forgotten_edits(multi.config, multi.schedule.config)
        preflight.warn_of_wrong_config(self.config.multi, self.data.config_when_made)
        self.data.config_when_made = describe(self.config.multi)  # said once

    # After an update

    def _after_update(self, window: list[Any], is_last: bool, is_final: bool) -> None:
        """What happens between two windows.

        Args:
            is_last: the epoch's end follows, and saves after itself.
            is_final: ``fit`` ends here.
        """
        run, validation = self.run, self.config.validation
        if self.hooks.on_source_pass_end:
            run.pending.passes += data_setup.ended_passes(self.data.manager, window)
        run.pending.row = self.reporter.is_due()
        if validation.frequency is ValidationFrequency.EVERY_N_STEPS and self.val_loaders:
            assert validation.every_n_steps is not None
            run.pending.validation = run.global_step % validation.every_n_steps == 0
        if run.late_error is not None:
            error, run.late_error = run.late_error, None
            run.pending.save = True
            raise error
        self._finish_update(is_last, is_final)

    def _finish_update(self, is_last: bool, is_final: bool) -> None:
        """Does the pending work of the last update, and saves. Parts that are done aren't done again after an error in
        a later one."""
        run, pending = self.run, self.run.pending
        if pending.passes:
            self._notify_of_ended_passes()
        if pending.row:
            self.step.guard.window_is_finite()
            row = self.reporter.log()
            pending.row = False
            self.step.schedulers.after_row(row)
        if pending.validation:
            if self.val_loaders:
                self._validate()
            pending.validation = False
        if is_last:
            pending.save = False
        elif pending.save and not run.epoch_is_open:
            self._save(self.saves.after_epoch)
        else:
            self._save(partial(self.saves.after_update, is_final=is_final))

    def _save(self, save: Callable[[], None]) -> None:
        """A commit point. An error of a hook leaves it pending; what mtf refused it would refuse again."""
        self.run.pending.save = False  # not part of what is saved
        try:
            save()
        except MtfError:
            raise
        except Exception:
            self.run.pending.save = True
            raise

    def _notify_of_ended_passes(self) -> None:
        passes = self.run.pending.passes
        while passes:
            notified = passes.pop(0)  # a state that a hook takes must not have it again
            try:
                self._call("on_source_pass_end", *notified)
            except BaseException:
                passes.insert(0, notified)
                raise

    def _validate(self) -> None:
        run, before = self.run, self.run.phase
        run.enter(Phase.VALIDATING)
        try:
            row = self.validator.run(self.val_loaders, self.saves.is_asked_to_leave)
        except ValidationLeft:
            run.enter(before)
            self.saves.leave()
            raise
        run.enter(before)
        self.step.metrics.commit()
        run.logged.update(row)
        self.reporter.write_validation(row)
        self.step.schedulers.after_row(row)
        self.saves.after_validation(row)

    # The end of an epoch

    def _end_epoch(self) -> None:
        """Epoch schedulers, validation, ``on_epoch_end``, checkpoint: the checkpoint says the next epoch.

        Parts that are done aren't done again after an error in a later one, or from a state taken in between.
        """
        run = self.run
        run.enter(Phase.EPOCH_END)
        self.reporter.record_schedule()
        # Edits made from here on are about the next epoch.
        self.data.manager.set_epoch(run.epoch + 1)
        if self.hooks.on_source_pass_end:  # of passes whose end was the epoch's
            run.pending.passes += data_setup.ended_passes(self.data.manager, ())
            self._notify_of_ended_passes()
        self.reporter.end_epoch()
        parts = (self._step_epoch_schedulers, self._validate_epoch, self._step_monitoring_schedulers)
        while run.epoch_end_parts < len(parts):
            parts[run.epoch_end_parts]()
            run.epoch_end_parts += 1
        if run.epoch_end_parts == len(parts):
            self._call_epoch_end()
        run.epoch += 1
        run.epoch_is_open, run.epoch_end_parts = False, 0
        run.enter(Phase.BETWEEN_UPDATES)
        self._save(self.saves.after_epoch)

    def _step_epoch_schedulers(self) -> None:
        self.step.schedulers.after_epoch(self.run.logged, after_validation=False)

    def _validate_epoch(self) -> None:
        if self.config.validation.frequency is ValidationFrequency.PER_EPOCH and self.val_loaders:
            self._validate()

    def _step_monitoring_schedulers(self) -> None:
        self.step.schedulers.after_epoch(self.run.logged, after_validation=True)

    def _call_epoch_end(self) -> None:
        self.run.epoch_end_parts += 1  # a state that a hook takes must not call it again
        try:
            self._call("on_epoch_end", self.run.epoch)
            self._warn_of_edits()
        except BaseException:
            self.run.epoch_end_parts -= 1
            raise
