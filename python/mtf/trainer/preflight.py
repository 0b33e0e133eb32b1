"""What ``fit`` looks at before its first batch: settings and arguments that contradict each other or do nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from mtf.call_site import user_level
from mtf.config.convert import describe
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.config.trainer import TrainerConfig
from mtf.data.mixture_plan import short_window
from mtf.data.multi_loader import MultiLoader
from mtf.distributed.ranks import SingleRank
from mtf.enums import ValidationFrequency
from mtf.errors import ConfigError
from mtf.trainer.state.run_state import RunState, StopCondition

_INIT_ONLY = (
    "seed",
    "step_rng",
    "ddp",
    "per_loader_optimizers",
    "per_loader_schedulers",
    "loss_weights_per_loader",
    "performance.precision",
    "performance.compile_model",
    "performance.compile_mode",
    "performance.activation_checkpointing",
    "performance.manual_optimization",
    "performance.on_nonfinite",
    "fault_tolerance.optimizer_settings",
    "fault_tolerance.on_hook_error",
    "checkpoint.root_dir",
    "checkpoint.save_every_n_steps",
    "checkpoint.save_every_n_epochs",
    "checkpoint.save_every_n_minutes",
    "checkpoint.filename_template",
)
READ_WITH_LOADERS = (
    "performance.fetch_timeout_s",
    "performance.pin_memory",
    "performance.device_prefetch",
    "fault_tolerance.seed_each_batch",
    "fault_tolerance.verify_deterministic_resume",
)
"""Settings that the first ``fit`` reads when it makes the mixture."""
READ_WITH_LOGGER = (
    "experiment_name",
    "logging.logger_type",
    "logging.composite_loggers",
    "logging.console_fields",
    "logging.log_dir",
    "logging.log_pictures",
    "logging.tensorboard_log_dir",
    "logging.wandb_project",
    "logging.wandb_entity",
    "logging.wandb_mode",
    "logging.wandb_tags",
    "logging.mlflow_tracking_uri",
    "logging.mlflow_experiment",
    "logging.trackio_project",
)
"""Settings that the first ``fit`` reads when it opens the logger, after ``on_train_start``."""
READ_BY_EACH_FIT = (
    "preemption.signals",
    "preemption.exit_code",
    "performance.deterministic",
    "performance.matmul_precision",
)
"""Settings that each ``fit`` reads where it begins."""


def checked_config(config: Any) -> TrainerConfig:
    """``config``, or the default one for None.

    Raises:
        ConfigError: it is something else, or settings in it are wrong.
    """
    if isinstance(config, nn.Module):
        raise ConfigError("config must be a TrainerConfig, it is a model: the order is Trainer(config, model, ...)")
    checked = config if config is not None else TrainerConfig()
    if not isinstance(checked, TrainerConfig):
        raise ConfigError(
            f"config must be a TrainerConfig, it is {checked!r}: a mixture goes into TrainerConfig(multi=...), "
            "a dict into TrainerConfig.from_dict"
        )
    checked.require_valid()
    return checked


def checked_model(model: Any) -> nn.Module:
    """``model``.

    Raises:
        ConfigError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, it is {model!r}")
    return model


def init_only_settings(config: TrainerConfig) -> dict[str, Any]:
    """Settings that only the trainer's constructor reads, by dotted name, as plain data."""
    return settings_named(config, _INIT_ONLY)


def settings_named(config: TrainerConfig, names: Iterable[str]) -> dict[str, Any]:
    """The settings of these dotted names, as plain data."""
    described = config.describe()
    values = {}
    for name in names:
        part, _, field = name.partition(".")
        values[name] = described[part][field] if field else described[part]
    return values


def warn_of_no_effect(
    config: TrainerConfig,
    model: nn.Module,
    optimizers: Sequence[Any],
    hooks: Iterable[Any],
    val_loaders: Any,
) -> None:
    """Warns of what has no effect on this ``fit``."""
    never = config.validation.frequency is ValidationFrequency.NEVER
    if val_loaders is None or never:
        idle = [type(hook).__name__ for hook in hooks if getattr(hook, "needs_validation", False)]
        if idle:
            way = "set another validation.frequency" if never else "pass val_loaders to fit"
            _warn(f"{', '.join(idle)} has no effect, because fit doesn't validate: {way}")
    if config.val_loader_config is not None:
        other = _changed(config.val_loader_config, MultiDataLoaderConfig(), besides=("dataloader_names",))
        if other:
            _warn(
                f"val_loader_config: {other} have no effect, because a validation runs every batch of every loader "
                "once; only dataloader_names is read. Give fit the loaders that should be validated"
            )
    if not optimizers:
        _warn("there is no optimizer, so fit changes no parameter: pass optimizers= unless that is meant")
    is_validated = (config.checkpoint.monitor_metric or "").startswith(("val/", "val_"))
    if config.checkpoint.save_best and is_validated and (val_loaders is None or never):
        _warn("checkpoint.save_best has no effect without validation: pass val_loaders to fit")
    validation = config.validation
    is_per_epoch = validation.frequency is ValidationFrequency.PER_EPOCH
    if val_loaders is not None and validation.every_n_steps is not None and is_per_epoch:
        _warn("validation.every_n_steps has no effect with frequency PER_EPOCH: set EVERY_N_STEPS")
    if not model.training:
        _warn("the model is in eval mode; call model.train() before fit unless that is meant")


def _changed(config: MultiDataLoaderConfig, reference: MultiDataLoaderConfig, besides: Sequence[str] = ()) -> list[str]:
    """Names of the settings in which two configurations differ."""
    here, there = describe(config), describe(reference)
    return [name for name in here if name not in besides and here[name] != there[name]]


def warn_of_forgotten_edits(config: MultiDataLoaderConfig, in_force: MultiDataLoaderConfig) -> None:
    """Warns where a hook has changed the mixture's configuration, and the schedule wasn't made of it.

    Args:
        config: what ``trainer.multi_loader_config`` shows.
        in_force: what the schedule was made of.
    """
    changed = _changed(config, in_force, besides=("dataloader_names", "seed"))
    if changed:
        _warn(
            f"multi_loader_config.{', '.join(changed)} was changed, which has no effect yet: call "
            "trainer.multi_loader_manager.rebuild_schedule()"
        )


def warn_of_wrong_config(config: MultiDataLoaderConfig, when_made: Mapping[str, Any]) -> None:
    """Warns where ``trainer.config.multi`` was changed after the mixture was made of it."""
    now = describe(config)
    changed = [name for name in now if now[name] != when_made[name]]
    if changed:
        _warn(
            f"config.multi.{', '.join(changed)} was changed after the mixture had been made of it, which has no "
            "effect: change trainer.multi_loader_config, and call trainer.multi_loader_manager.rebuild_schedule()"
        )


def warn_of_short_window(multi: MultiLoader) -> None:
    """Warns where an epoch's last accumulation window is short under loss weights."""
    found = short_window(multi.schedule, multi.epoch, *multi.accumulation)
    if found is not None:
        message = f"epoch {multi.epoch}: {found}"  # which ends with what to do
        warnings.warn(message, stacklevel=user_level())


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=user_level())


def require_same_on_all_ranks(
    ranks: SingleRank, config: TrainerConfig, run: RunState, limits: StopCondition, val_names: Sequence[str]
) -> None:
    """Compares settings that would make ranks run different numbers of steps or collectives.

    Raises:
        ConfigError: on all ranks, where they differ.
    """
    if ranks.world_size == 1:
        return
    described = config.describe()
    parts = ("performance", "validation", "checkpoint", "preemption", "ddp", "seed", "step_rng")
    settings = {name: described[name] for name in (*parts, "per_loader_optimizers", "loss_weights_per_loader")}
    settings["logging"] = {"log_scalars_every_n_steps": config.logging.log_scalars_every_n_steps}
    position = {"updates": run.global_step, "epoch": run.epoch}
    fields = {"config": settings, "limits": limits.describe(), "position": position}
    ranks.require_equal("the run", {**fields, "validation loaders": list(val_names)})
