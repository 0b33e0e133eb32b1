"""The loop: take a window of batches, train on it, maybe write a row, maybe validate, maybe save.

``fit`` runs epochs until its limits are reached. ``run_epoch`` trains on one window after the other; what an update
does is in :mod:`mtf.trainer.step`. ``_after_update`` notes in ``run.pending`` what is due after it, and
``_finish_update`` does that, up to a commit point, where :mod:`mtf.trainer.checkpointing` decides whether to save.
``_end_epoch`` does what is due between two epochs. Work that an error interrupts stays pending, and the next ``fit``
finishes it first.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtf.call_site import user_level
from mtf.config.convert import describe
from mtf.config.trainer import TrainerConfig
from mtf.enums import ValidationFrequency
from mtf.errors import MtfError
from mtf.schedule.accumulation import AccumulationSchedule
from mtf.trainer import data_setup, preflight
from mtf.trainer.checkpointing import Checkpointer, Decision
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.evaluation.sanity import check_monitors
from mtf.trainer.evaluation.validator import ValidationLeft, Validator
from mtf.trainer.hooks.registry import HookList
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.state.run_state import Phase, RunState, StopCondition
from mtf.trainer.steering.rollback import go_back
from mtf.trainer.steering.skips import SkippedUpdates
from mtf.trainer.steering.spike_guard import GoBack
from mtf.trainer.step import TrainStep, windows

_log = logging.getLogger("mtf.trainer")


@dataclass(slots=True, kw_only=True)
class TrainLoop:
    """One call of ``fit``, from its first window to its end.

    Attributes:
        run: where the run stands; shared with everything that looks at it.
        step: trains on one window.
        data: the mixture of training loaders.
        hooks: called at the events of the run.
        validator: runs every batch of the validation loaders.
        val_loaders: name -> validation loader; empty: no validation.
        reporter: writes rows, the progress bar and the record of the schedule.
        checkpointer: decides at commit points, between two updates or two epochs, and saves.
        config: everything that isn't code or data.
        skips: updates whose data are left out.
        note_logger: called when the logger is open.
        warn_of_changes: warns of settings that were changed too late.
    """

    run: RunState
    step: TrainStep
    data: TrainingData
    hooks: HookList
    validator: Validator
    val_loaders: dict[str, Any]
    reporter: Reporter
    checkpointer: Checkpointer
    config: TrainerConfig
    skips: SkippedUpdates
    note_logger: Callable[[], None]
    warn_of_changes: Callable[[], None]

    def fit(self, limits: StopCondition) -> None:
        """Trains until ``limits``, a wish to stop, or a signal."""
        run = self.run
        if self._is_done(limits):
            reached = self.data.manager.why_over or f"{limits.reason(run)}; both count from the beginning of training"
            warnings.warn(f"nothing to do: {reached}", stacklevel=user_level())
            return
        self._start()
        while not run.is_stopping and not self._is_done(limits):
            if run.pending.is_anything:  # an error interrupted it, or the state was taken in a hook
                run.is_final = limits.steps_reached(run)
                self._finish_update(self.data.manager.epoch != run.epoch, self.checkpointer.at_update)
                continue
            if not run.epoch_is_open:
                self._begin_epoch()
            try:
                if not self.run_epoch(limits, self.checkpointer.at_update):
                    break
            except GoBack as spike:
                go_back(spike, run, self.step, self.reporter, self.checkpointer, self.skips)
                continue
            self._end_epoch()
        self._end()

    def _start(self) -> None:
        """Before the first window of this call."""
        run = self.run
        self._call("on_train_start")
        if run.is_new:
            self.reporter.show_model(self.step.model)
        self._check_validation()
        run.is_stopping = self.step.ranks.any(run.stop_reason is not None)
        self.reporter.open()
        self.note_logger()
        self.checkpointer.can_save_now = False
        if self.config.validation.at_start and run.is_new and self._validates:
            self._validate(self.val_loaders)

    def _end(self) -> None:
        """After the last window of this call: the last checks, hooks and save."""
        run = self.run
        if (why := self.data.manager.why_over) is not None:
            _log.info("training ends after update %d: %s", run.global_step, why)
        self.checkpointer.can_save_now = True
        self.step.guard.window_is_finite()
        self.reporter.pause()
        self.step.schedulers.warn_of_missing(run.logged, validates=bool(self.val_loaders))
        self._call("on_train_end")
        self._act(partial(self.checkpointer.at_train_end, may_have_changed=bool(self.hooks.on_train_end)))

    def finish(self) -> None:
        """After the last update: waits for what is being written, and obeys a signal that came meanwhile."""
        self.checkpointer.wait()
        self._act(self.checkpointer.at_exit)
        self.reporter.finish(self.checkpointer.saved_path)

    # An epoch

    def _begin_epoch(self) -> None:
        self._call("on_epoch_start", self.run.epoch)
        self._warn_of_edits()
        self.run.epoch_is_open = True
        self.checkpointer.save_deferred()

    def run_epoch(self, limits: StopCondition, at_update: Callable[[], Decision]) -> bool:
        """Trains to the end of the epoch; False when it stopped before.

        Args:
            at_update: decides after each update whether to save, stop or exit.
        """
        run, multi, max_time_s = self.run, self.data.manager, self.config.preemption.max_time_s
        if multi.epoch == run.epoch:  # otherwise fit was left after the epoch's last batch, and only its end is due
            self.reporter.begin_epoch(multi)
        run.num_committed = run.num_batches
        # Usually one round. An edit in the last window may have made the epoch longer, and updates may be left out.
        while multi.epoch == run.epoch and multi.why_over is None:
            if self._leave_out(limits):
                return False
            if multi.epoch != run.epoch:
                break
            next_skip = self.skips.next_begin(run.global_step)
            for window in windows(iter(multi), self._window_length()):
                if not self.data.is_announced:
                    self.step.open_ranks()
                self.step.run(run, window)
                run.is_final = limits.steps_reached(run)
                if limits.time_reached(max_time_s):
                    self._stop_for_time()
                self._after_update(window, multi.epoch != run.epoch, at_update)
                # An edit between two windows may have ended the epoch, whose end is due then before fit stops.
                if (run.is_stopping or run.is_final) and multi.epoch == run.epoch:
                    return False
                if run.global_step == next_skip:
                    break
        self.step.items.require_a_loss()
        return True

    def _end_epoch(self) -> None:
        """Epoch schedulers, validation, ``on_epoch_end``, then a checkpoint, whose position is the next epoch's start.

        ``run.epoch_end_parts`` counts the parts that are done, so that they aren't done again when an error interrupts
        a later one, or in a run that continues from a state taken in between.
        """
        run = self.run
        run.enter(Phase.EPOCH_END)
        self.reporter.record_schedule()
        # Edits made from here on take effect in the next epoch.
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
        self.checkpointer.after_epoch()
        self._commit(self.checkpointer.at_update)

    def _step_epoch_schedulers(self) -> None:
        self.step.schedulers.after_epoch(self.run.logged, after_validation=False)

    def _validate_epoch(self) -> None:
        if self.config.validation.frequency is ValidationFrequency.PER_EPOCH and self.val_loaders:
            self._validate(self._loaders_of(self.run.epoch + 1))

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

    # After an update

    def _after_update(self, window: list[Any], is_last: bool, at_update: Callable[[], Decision]) -> None:
        """Notes what is due between two windows, and does it.

        Args:
            window: the batches that were trained on.
            is_last: whether the epoch's end follows, which saves after itself.
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
        self._finish_update(is_last, at_update)

    def _finish_update(self, is_last: bool, at_update: Callable[[], Decision]) -> None:
        """Does the pending work of the last update, then saves where a save is due.

        A part that is done isn't done again when an error interrupts a later one.
        """
        pending = self.run.pending
        if pending.passes:
            self._notify_of_ended_passes()
        if pending.row:
            self.step.guard.window_is_finite()
            row = self.reporter.log()
            pending.row = False
            self.step.schedulers.after_row(row)
        if pending.validation:
            every = self.config.validation.every_n_steps
            if self.val_loaders and every is not None:
                self._validate(self._loaders_of(self.run.global_step // every))
            pending.validation = False
        if is_last:
            pending.save = False
        else:
            self._commit(at_update)

    def _notify_of_ended_passes(self) -> None:
        passes = self.run.pending.passes
        while passes:
            notified = passes.pop(0)  # a state that a hook takes must not have it again
            try:
                self._call("on_source_pass_end", *notified)
            except BaseException:
                passes.insert(0, notified)
                raise

    def _commit(self, decide: Callable[[], Decision]) -> None:
        """A commit point. An error of a hook leaves it pending; one of mtf doesn't, because it would come again."""
        self.run.pending.save = False  # not part of what is saved
        try:
            self._act(decide)
        except MtfError:
            raise
        except Exception:
            self.run.pending.save = True
            raise

    def _act(self, decide: Callable[[], Decision]) -> None:
        """Saves what was deferred, then does what ``decide`` says."""
        self.checkpointer.save_deferred()
        decision = decide()
        self.run.is_stopping = self.run.is_stopping or decision.stop
        if decision.exit:
            self.checkpointer.save_and_exit()
        elif decision.save:
            self.checkpointer.save(required=False)
        else:
            self.checkpointer.poll()

    # Validation

    @property
    def _validates(self) -> bool:
        return bool(self.val_loaders) and self.config.validation.frequency is not ValidationFrequency.NEVER

    def _check_validation(self) -> None:
        """Before the first update of a run: a few batches of each validation loader."""
        if not (self.run.is_new and self._validates and self.config.validation.sanity_batches):
            return
        self.run.is_sanity_checking = True
        monitors = partial(check_monitors, config=self.config, hooks=self.hooks, rates=self.step.schedulers.general)
        try:
            self.validator.sanity_check(self.val_loaders, monitors)
        finally:
            self.run.is_sanity_checking = False
            self.step.metrics.roll_back()

    def _validate(self, names: Collection[str]) -> None:
        if not names:
            return
        run, before = self.run, self.run.phase
        run.enter(Phase.VALIDATING)
        some = None if len(names) == len(self.val_loaders) else list(names)
        try:
            row = self.validator.run(self.val_loaders, self.checkpointer.is_exit_requested, some)
        except ValidationLeft:
            run.enter(before)
            self.checkpointer.save_deferred()
            if self.checkpointer.agree_to_exit():
                self.checkpointer.save_and_exit()
            raise
        run.enter(before)
        self.step.metrics.commit()
        run.logged.update(row)
        self.reporter.write_validation(row)
        self.step.schedulers.after_row(row)
        self.checkpointer.after_validation(row)

    def _loaders_of(self, number: int) -> list[str]:
        """The loaders of the ``number``-th validation."""
        every = self.config.validation.loader_every_n
        return [name for name in self.val_loaders if number % every.get(name, 1) == 0]

    # Small parts

    def _is_done(self, limits: StopCondition) -> bool:
        """Whether nothing is left to do, neither pending work nor the end of an epoch that has begun."""
        run = self.run
        is_over = self.data.manager.why_over is not None
        is_ending = run.epoch_is_open and (is_over or self.data.manager.epoch != run.epoch)
        return (is_over or limits.reached(run)) and not is_ending and not run.pending.is_anything

    def _call(self, event: str, *args: Any) -> None:
        """Calls every hook between two windows. What they log stays when none of them raised."""
        self.hooks.call(event, *args)
        self.step.metrics.commit()

    def _accumulation(self) -> AccumulationSchedule:
        performance = self.config.performance
        return AccumulationSchedule(performance.gradient_accumulation_steps, performance.accumulate_by)

    def _window_length(self) -> int | Callable[[], int]:
        steps, run, schedule = self.config.performance.gradient_accumulation_steps, self.run, self._accumulation()
        return steps if isinstance(steps, int) else lambda: schedule.at(run.epoch, run.global_step)

    def _leave_out(self, limits: StopCondition) -> bool:
        """Skips the data of updates to be left out. Returns whether they lead ``fit`` to its limit inside the epoch."""
        run = self.run
        num_batches = self.skips.leave_out(run, self.data, self._accumulation(), limits)
        self.reporter.advance(num_batches)
        return num_batches > 0 and limits.steps_reached(run) and self.data.manager.epoch == run.epoch

    def _stop_for_time(self) -> None:
        run = self.run
        run.is_out_of_time = True
        run.stop_reason = run.stop_reason or f"preemption.max_time {self.config.preemption.max_time} has passed"
        run.is_stopping = run.is_stopping or self.step.ranks.world_size == 1

    def _warn_of_edits(self) -> None:
        """Warns of assignments to a configuration that have no effect."""
        self.warn_of_changes()
        multi = self.data.manager
        preflight.warn_of_forgotten_edits(multi.config, multi.schedule.config)
        preflight.warn_of_wrong_config(self.config.multi, self.data.config_when_made)
        self.data.config_when_made = describe(self.config.multi)  # said once
