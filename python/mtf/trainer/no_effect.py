"""Settings and assignments that nothing reads in this run: each is named before the first batch, with the way out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mtf.call_site import user_level
from mtf.config.base import Config
from mtf.config.checkpoint import CheckpointConfig
from mtf.config.logging import LoggingConfig
from mtf.config.trainer import TrainerConfig
from mtf.config.validation import ValidationConfig
from mtf.enums import ValAggregation, ValidationFrequency
from mtf.errors import UsageError

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


def warn_of_settings(config: TrainerConfig, val_loaders: Any) -> None:
    """Warns of settings without effect on this ``fit``.

    Args:
        val_loaders: as given to ``fit``.
    """
    for message in (
        *_of_validation(config.validation, has_loaders=val_loaders is not None),
        *_of_checkpoints(config.checkpoint),
        *_of_loggers(config.logging),
    ):
        warnings.warn(message, stacklevel=user_level())


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


def _of_checkpoints(config: CheckpointConfig) -> Iterator[str]:
    if config.monitor_metric is None and _changed(config, ("monitor_mode",)):
        yield "checkpoint.monitor_mode has no effect without monitor_metric"
    every = (config.save_every_n_steps, config.save_every_n_epochs, config.save_every_n_minutes)
    if config.save_at_end or config.save_best or any(value is not None for value in every):
        return
    changed = _changed(config, ("max_checkpoints", "asynchronous", "filename_template"))
    if changed:
        yield (
            f"checkpoint: {changed} have no effect, because nothing is saved until a signal comes: set "
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


def warn_of_late_changes(now: Mapping[str, Any], when_made: Mapping[str, Any], said: dict[str, Any]) -> None:
    """Warns of settings that only the constructor reads and that were changed since.

    Args:
        now: as ``preflight.init_only_settings`` gives them.
        when_made: likewise, when the trainer was made.
        said: values that were warned of; brought up to date.
    """
    changed = [name for name, value in now.items() if value != when_made[name] and said.get(name) != value]
    if changed:
        said.update({name: now[name] for name in changed})
        warnings.warn(
            f"these settings were changed after the trainer had read them, which has no effect: {changed}; make a new "
            "trainer with them",
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
