"""Settings and assignments that nothing reads in this run: each is named before the first batch, with the way out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mtf.call_site import user_level
from mtf.config.base import Config
from mtf.config.checkpoint import CheckpointConfig
from mtf.config.distributed import DDPConfig
from mtf.config.execution import PreemptionConfig
from mtf.config.logging import LoggingConfig
from mtf.config.trainer import TrainerConfig
from mtf.config.validation import ValidationConfig
from mtf.distributed.ranks import MultiRank, SingleRank
from mtf.enums import ValAggregation, ValidationFrequency
from mtf.errors import UsageError
from mtf.schedule.accumulation import AccumulationSchedule
from mtf.schedule.schedule import Schedule
from mtf.trainer.state.run_state import RunState, StopCondition

_LOGGERS = {
    "log_dir": ("jsonl", "csv", "tensorboard", "wandb"),
    "tensorboard_log_dir": ("tensorboard",),
    "wandb_project": ("wandb",),
    "wandb_entity": ("wandb",),
    "wandb_mode": ("wandb",),
    "wandb_tags": ("wandb",),
    "mlflow_tracking_uri": ("mlflow",),
    "mlflow_experiment": ("mlflow",),
    "trackio_project": ("trackio",),
}

_OF_DDP = ("find_unused_parameters", "broadcast_buffers", "bucket_cap_mb", "gradient_as_bucket_view")
_OF_FSDP = ("fsdp_wrap", "fsdp_param_dtype", "fsdp_reduce_dtype", "fsdp_reshard_after_forward")
_MOST_EPOCHS = 1000  # that are looked at for the first save

_FIXED = {
    "hooks": "call trainer.add_hook",
    "device": "make a new trainer on it",
}
_ELSEWHERE = {
    "max_epochs": "give it to fit",
    "max_steps": "give it to fit",
    "resume_from": "give it to fit",
    "train_loaders": "give them to fit",
    "val_loaders": "give them to fit",
    "schedulers": "give them to the constructor",
    "callbacks": "give them to the constructor as hooks, or call add_hook",
}


def warn_of_settings(config: TrainerConfig, val_loaders: Any, ranks: SingleRank) -> None:
    """Warns of settings without effect on this ``fit``.

    Args:
        val_loaders: as given to ``fit``.
    """
    saves_itself = config.fault_tolerance.auto_resume or config.preemption.max_time is not None
    for message in (
        *_of_ranks(config.ddp, is_alone=not isinstance(ranks, MultiRank)),
        *_of_validation(config.validation, has_loaders=val_loaders is not None),
        *_of_checkpoints(config.checkpoint, config.preemption, saves_itself=saves_itself),
        *_of_loggers(config.logging),
    ):
        warnings.warn(message, stacklevel=user_level())


def warn_of_late_saves(config: TrainerConfig, schedule: Schedule, run: RunState, limits: StopCondition) -> None:
    """Warns where a run begins whose first save would come after the end of ``fit``.

    Nothing is said where the length of an epoch isn't known, nor of what a clock or a metric decides.

    Args:
        schedule: stands where ``fit`` begins.
    """
    saves = config.checkpoint
    every = {
        name: getattr(saves, name)
        for name in ("save_every_n_steps", "save_every_n_epochs")
        if getattr(saves, name) is not None
    }
    others = saves.save_at_end or saves.save_best or saves.save_every_n_minutes is not None
    if not every or others or config.preemption.max_time is not None or not run.is_new or limits.reached(run):
        return
    end = _end_of_fit(config, schedule, run, limits, every)
    if end is None or _saves_before(every, run, *end):
        return
    settings = " and ".join(f"{name}={value}" for name, value in every.items())
    steps, epochs = end
    warnings.warn(
        f"checkpoint: with {settings} nothing is saved, because fit ends after update {steps} and {epochs} whole "
        f"epoch{'' if epochs == 1 else 's'}: set save_at_end=True, or save more often",
        stacklevel=user_level(),
    )


def _saves_before(every: Mapping[str, int], run: RunState, steps: int, epochs: int) -> bool:
    """Whether an update up to ``steps``, or the end of one of the first ``epochs`` epochs, saves."""
    by_steps, by_epochs = every.get("save_every_n_steps"), every.get("save_every_n_epochs")
    return bool(
        (by_steps and steps // by_steps > run.global_step // by_steps)
        or (by_epochs and epochs // by_epochs > run.epoch // by_epochs)
    )


def _end_of_fit(
    config: TrainerConfig, schedule: Schedule, run: RunState, limits: StopCondition, every: Mapping[str, int]
) -> tuple[int, int] | None:
    """Updates and whole epochs at the end of ``fit``; None where that can't be known, or where a save comes early."""
    accumulation = AccumulationSchedule(
        config.performance.gradient_accumulation_steps, config.performance.accumulate_by
    )
    bounds = limits.describe()
    max_steps, max_epochs = bounds["max_steps"], bounds["max_epochs"]
    steps, epoch, drawn = run.global_step, run.epoch, schedule.step if schedule.epoch == run.epoch else 0
    for _ in range(_MOST_EPOCHS):
        if max_epochs is not None and epoch >= max_epochs:
            return steps, epoch
        batches = schedule.num_steps(epoch)
        if batches is None:
            return (max_steps, epoch) if max_steps is not None and "save_every_n_epochs" not in every else None
        steps += accumulation.updates_in(batches - drawn, epoch, steps)
        if max_steps is not None and steps >= max_steps:
            return max_steps, epoch + (steps == max_steps)
        epoch, drawn = epoch + 1, 0
        if _saves_before(every, run, steps, epoch):
            return None
    return None


def _of_ranks(config: DDPConfig, *, is_alone: bool) -> Iterator[str]:
    if is_alone:
        names = (field.name for field in dataclasses.fields(config) if field.name != "timeout_s")
        changed = _changed(config, names)
        if changed:
            yield (
                f"ddp: {changed} have no effect, because this process was started alone: start it with torchrun, or "
                "omit them"
            )
        return
    other = _changed(config, _OF_FSDP if config.strategy == "ddp" else _OF_DDP)
    if other:
        needed = "fsdp" if config.strategy == "ddp" else "ddp"
        yield f"ddp: {other} have no effect with strategy={config.strategy!r}, because only {needed!r} reads them"


def _of_validation(config: ValidationConfig, *, has_loaders: bool) -> Iterator[str]:
    if config.frequency is ValidationFrequency.NEVER:
        return
    if not has_loaders:
        changed = _changed(config, (field.name for field in dataclasses.fields(config)))
        if changed:
            yield f"validation: {changed} have no effect without validation loaders: pass val_loaders to fit"
        return
    is_primary = config.aggregation is ValAggregation.PRIMARY_METRIC_PER_LOADER
    if config.aggregation_fn is not None:
        beaten = _changed(config, ("aggregation", "validation_weights", "primary_metrics"))
        if beaten:
            yield f"validation: {beaten} have no effect beside aggregation_fn, which decides alone"
    elif config.validation_weights is not None:
        beaten = _changed(config, ("aggregation", "primary_metrics"))
        if beaten:
            yield f"validation: {beaten} have no effect beside validation_weights, by which loaders are averaged"
    elif config.primary_metrics and not is_primary:
        yield (
            "validation.primary_metrics has no effect with aggregation="
            f"{config.aggregation.name}: set PRIMARY_METRIC_PER_LOADER"
        )
    if not config.per_loader_metrics and not config.global_metrics:
        yield "validation: with per_loader_metrics=False and global_metrics=False a validation gives no metric"


def _of_checkpoints(config: CheckpointConfig, signals: PreemptionConfig, *, saves_itself: bool) -> Iterator[str]:
    if config.monitor_metric is None and _changed(config, ("monitor_mode",)):
        yield "checkpoint.monitor_mode has no effect without monitor_metric"
    every = (config.save_every_n_steps, config.save_every_n_epochs, config.save_every_n_minutes)
    if config.save_at_end or config.save_best or any(value is not None for value in every):
        return
    may_save = bool(signals.signals)
    names = ("max_checkpoints", "keep_every_n_steps", "asynchronous", "filename_template")
    changed = _changed(config, names if may_save or saves_itself else ("root_dir", *names))
    if changed:
        until = " until a signal comes" if may_save else ""
        yield (
            f"checkpoint: {changed} have no effect, because nothing is saved{until}: set "
            "save_every_n_steps, save_every_n_epochs, save_every_n_minutes or save_at_end"
        )


def _of_loggers(config: LoggingConfig) -> Iterator[str]:
    kinds = (config.logger_type, *config.composite_loggers)
    if not all(isinstance(kind, str) and (kind in _BUILT_IN) for kind in kinds):
        return  # a logger of the user's may read any of them
    for name in _changed(config, _LOGGERS):
        if not set(_LOGGERS[name]) & set(kinds):
            readers = " or ".join(repr(kind) for kind in _LOGGERS[name])
            yield f"logging.{name} has no effect with logger_type={config.logger_type!r}: set {readers}"


_BUILT_IN = frozenset({"composite", "console", "none"}.union(*_LOGGERS.values()))


def _changed(config: Config, names: Iterable[str]) -> list[str]:
    """Those of the fields that aren't at their default."""
    default: Any = type(config)()
    return [name for name in names if getattr(config, name) != getattr(default, name)]


def warn_of_late_changes(
    now: Mapping[str, Any],
    when_read: Mapping[str, Any],
    said: dict[str, Any],
    *,
    way_out: str = "make a new trainer with them",
) -> None:
    """Warns of settings that were changed since they were read for the last time.

    Args:
        now: their values, by dotted name.
        when_read: likewise, when they were read.
        said: values that were warned of; brought up to date.
        way_out: what to do.
    """
    changed = [name for name, value in when_read.items() if now[name] != value and said.get(name) != now[name]]
    if changed:
        said.update({name: now[name] for name in changed})
        warnings.warn(
            f"these settings were changed after the trainer had read them, which has no effect: {changed}; {way_out}",
            stacklevel=user_level(),
        )


def check_assignment(name: str, *, is_subclass: bool) -> None:
    """Looks at an assignment to a trainer that is made already.

    Args:
        name: of the attribute.
        is_subclass: whether the trainer's class is a user's, whose attributes may have any name.

    Raises:
        UsageError: the attribute is read when the trainer is made.
    """
    if name in _FIXED:
        raise UsageError(f"trainer.{name} can't be set after the trainer was made: {_FIXED[name]}")
    if name in _ELSEWHERE and not is_subclass:
        warnings.warn(
            f"trainer.{name} is read by nothing, so setting it has no effect: {_ELSEWHERE[name]}",
            stacklevel=user_level(),
        )
