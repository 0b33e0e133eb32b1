"""One call of ``fit`` around its loop: what is opened and resumed before, and what is closed on every way out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from mtf.config.trainer import TrainerConfig
from mtf.data.rng.generators import discard_rng_changes
from mtf.data.steering.mixture_edit import check_on_other_mixture
from mtf.data.steering.update_ranges import check_ranges
from mtf.errors import ConfigError, UsageError
from mtf.trainer import data_setup, no_effect, preflight
from mtf.trainer.evaluation.aggregation import check_validation
from mtf.trainer.loop import TrainLoop
from mtf.trainer.optimization.precision import arithmetic
from mtf.trainer.parts import Parts
from mtf.trainer.preemption import PreemptionGuard
from mtf.trainer.state.run_state import Phase, StopCondition

_LOCK = threading.RLock()


def fit(
    parts: Parts,
    training_step: Callable[..., Any],
    validation_step: Callable[..., Any],
    train_loaders: Any,
    val_loaders: Any,
    *,
    max_epochs: int | None,
    max_steps: int | None,
    resume_from: str | None,
    resume_parts: str | Sequence[str] | None,
    on_other_mixture: Any,
    skip: Any,
    check: Callable[[], None],
) -> None:
    """Trains; the arguments are those of ``Trainer.fit``.

    Args:
        check: raises where the trainer can't train as it is now.
    """
    run, config, checkpointer = parts.run, parts.config, parts.checkpointer
    with ExitStack() as stack:
        stack.enter_context(only_this_thread())
        if run.is_fitting:
            raise UsageError("fit was called inside fit (by a hook or a step): request_stop, then call it again")
        run.enter(Phase.BETWEEN_UPDATES)
        run.begin_fit()
        stack.callback(_leave, parts)
        stack.enter_context(parts.ranks.failures(lambda: f"after {run.global_step} updates"))
        limits = StopCondition(max_epochs, max_steps, run.epoch)
        checkpointer.guard = stack.enter_context(
            PreemptionGuard(config.preemption.signals, config.preemption.exit_code)
        )
        config.require_valid()
        check()
        parts.data.on_other_mixture, ranges = check_on_other_mixture(on_other_mixture), check_ranges(skip)
        named = _open(parts, (resume_from, resume_parts), train_loaders, val_loaders, limits)
        parts.skips.add_on_all_ranks(ranges, run.global_step, parts.ranks)
        loop = _loop(parts, training_step, validation_step, named)
        stack.callback(parts.data.end_workers, named.values())
        checkpointer.exit_if_requested()
        if run.is_resumed and config.fault_tolerance.verify_deterministic_resume:
            parts.data.manager.verify_recent_batches()
        run.is_resumed = False
        stack.enter_context(discard_rng_changes(parts.rng.is_derived))
        stack.enter_context(arithmetic(config.performance))
        try:
            loop.fit(limits)
            loop.finish()
        except BaseException as error:
            if run.is_in_window:
                checkpointer.drop_deferred()
            loop.step.roll_back(run)
            run.interrupt()
            # Several ranks save together, and others may not be here.
            checkpointer.can_save_now = parts.ranks.world_size == 1
            parts.hooks.call("on_exception", error)
            raise


def _open(
    parts: Parts, source: tuple[str | None, Any], train_loaders: Any, val_loaders: Any, limits: StopCondition
) -> dict[str, Any]:
    """Opens the loaders and loads the state to continue from; returns the validation loaders by name.

    Args:
        source: ``resume_from`` and ``resume_parts``.
    """
    config, data, run = parts.config, parts.data, parts.run
    preflight.warn_of_no_effect(config, parts.model, parts.optimizers.optimizers, parts.hooks, val_loaders)
    no_effect.warn_of_settings(config, val_loaders, parts.ranks)
    _warn_of_changes(parts)
    is_new = data.open(train_loaders)
    try:
        parts.checkpointer.resume(*source, is_new=run.global_step == 0 and data.pending_state is None)
        is_new = data.open(train_loaders) if data.multi is None else is_new
        run.require_whole()
        data.load_pending()
        preflight.warn_of_short_window(data.manager)
        named = data_setup.name_validation(val_loaders, config.val_loader_config, data.manager.initial_names)
        for part in (parts.optimizers, parts.schedulers, parts.loss_weights):
            part.check_names(data.setting_names)
        if named:
            check_validation(config.validation, list(named))
        preflight.require_same_on_all_ranks(parts.ranks, config, run, limits, list(named))
        data.require_same_schedule()
    except BaseException:
        if is_new:
            # guard: trainer that can't resume
            data.undo_open()
        raise
    if is_new:
        data.warn_of_idle()
        parts.init_only.update(preflight.settings_named(config, preflight.READ_WITH_LOADERS))
    no_effect.warn_of_late_saves(config, data.manager.schedule, run, limits)
    return named


def _loop(
    parts: Parts, training_step: Callable[..., Any], validation_step: Callable[..., Any], val_loaders: dict[str, Any]
) -> TrainLoop:
    at_start = preflight.settings_named(parts.config, preflight.READ_BY_EACH_FIT)
    return TrainLoop(
        run=parts.run,
        step=parts.train_step(training_step),
        data=parts.data,
        hooks=parts.hooks,
        validator=parts.validator(validation_step),
        val_loaders=val_loaders,
        reporter=parts.reporter,
        checkpointer=parts.checkpointer,
        config=parts.config,
        skips=parts.skips,
        note_logger=lambda: _note_logger(parts),
        warn_of_changes=lambda: _warn_of_changes(parts, at_start),
    )


def _note_logger(parts: Parts) -> None:
    """The logger is open, made of the settings as they are now or as they were in an earlier ``fit``."""
    for name, value in preflight.settings_named(parts.config, preflight.READ_WITH_LOGGER).items():
        parts.init_only.setdefault(name, value)


def _warn_of_changes(parts: Parts, at_start: Mapping[str, Any] | None = None) -> None:
    """Warns of settings that were changed too late.

    Args:
        at_start: those that each ``fit`` reads, when this one began.
    """
    now = preflight.settings_named(parts.config, (*parts.init_only, *(at_start or ())))
    no_effect.warn_of_late_changes(now, parts.init_only, parts.said_changes)
    if at_start is not None:
        way = "only fit reads them, where it begins, so they count from the next fit on"
        no_effect.warn_of_late_changes(now, at_start, parts.said_changes, way_out=way)


def _leave(parts: Parts) -> None:
    parts.run.interrupt()
    parts.run.enter(Phase.IDLE)
    try:
        parts.optimizers.clear()
        parts.reporter.close()
    finally:  # a second Ctrl-C must not keep the directory
        parts.checkpointer.close()


def require_same_objects(
    parts: Parts, config: TrainerConfig, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Raises ``UsageError`` where ``trainer.config``, ``trainer.model`` or ``trainer.optimizers`` was replaced."""
    if parts.config is not config:
        raise UsageError(
            "trainer.config was replaced after the trainer had been made, which training would not follow: change "
            "the settings of the configuration there is, or make a new trainer"
        )
    if parts.model is not model or [*map(id, parts.optimizers.optimizers)] != [*map(id, optimizers)]:
        raise UsageError(
            "trainer.model or trainer.optimizers was replaced after the trainer had been made, which training "
            "would only half follow: make a new trainer with them"
        )


@contextmanager
def only_this_thread() -> Iterator[None]:
    """One thread at a time trains in a process: its steps draw from generators that belong to the whole process.

    A hook or a step may call ``fit`` of another trainer.

    Raises:
        ConfigError: another thread is inside.
    """
    if not _LOCK.acquire(blocking=False):
        raise ConfigError(
            "another thread of this process is inside fit: random numbers of steps come from generators that all "
            "threads share, so neither run would be reproducible. Let them take turns, or use one process for each"
        )
    try:
        yield
    finally:
        _LOCK.release()
