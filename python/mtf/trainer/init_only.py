"""Settings that a trainer reads when it is made: assigned later, they have no effect, which must not be silent."""

from __future__ import annotations

from typing import Any

from mtf.config.trainer import TrainerConfig

_NAMES = (
    "seed",
    "step_rng",
    "ddp",
    "per_loader_optimizers",
    "per_loader_schedulers",
    "loss_weights_per_loader",
    "performance.precision",
    "performance.compile_model",
    "performance.on_nonfinite",
    "fault_tolerance.on_hook_error",
    "checkpoint.root_dir",
    "checkpoint.save_every_n_steps",
    "checkpoint.save_every_n_epochs",
    "checkpoint.save_every_n_minutes",
    "checkpoint.filename_template",
)


def init_only_settings_of(config: TrainerConfig) -> dict[str, Any]:
    """Their values now, by dotted name, as plain data."""
    described = config.describe()
    values = {}
    for name in _NAMES:
        part, _, field = name.partition(".")
        values[name] = described[part][field] if field else described[part]
    return values
