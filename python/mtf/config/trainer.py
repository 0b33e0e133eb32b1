"""The configuration of a whole run."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mtf.call_site import user_level
from mtf.config.base import Config
from mtf.config.checkpoint import CheckpointConfig
from mtf.config.checks import field_types, nearest, one_of, require_kinds
from mtf.config.convert import describe
from mtf.config.distributed import DDPConfig
from mtf.config.execution import FaultToleranceConfig, PerformanceConfig, PreemptionConfig
from mtf.config.foreign_names import translation
from mtf.config.logging import LoggingConfig
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.config.validation import ValidationConfig
from mtf.errors import ConfigError


@dataclass
class TrainerConfig(Config):
    """Everything about a run that isn't code or data.

    Settings of the user's own live in ``extras`` and are read and written as attributes:
    ``config.use_domain_adversarial = True``.

    Attributes:
        multi: how the training loaders are mixed; also accepted as ``train_loader_config``.
        val_loader_config: names of the validation loaders, when they are given as a list.
        validation: when and how to validate.
        checkpoint: where and when to save.
        fault_tolerance: resume, determinism and errors of hooks.
        preemption: what signals do.
        performance: precision, windows, clipping.
        logging: metrics and progress.
        ddp: how several ranks train together.
        seed: of data and of the random numbers of each step, in [0, 2**64). Initial weights are the user's.
        step_rng: ``"derived"`` seeds the process-wide generators before each step from (seed, step), so that the
            state holds positions only; ``"saved"`` leaves them alone and saves their states.
        experiment_name: name of the run in logs.
        per_loader_optimizers: loader -> ``{"optimizer_idx": [0, 2], "lr_scale": 0.5}``. Loaders that aren't named
            use all optimizers at their own rate.
        per_loader_schedulers: loader -> learning rate scheduler that steps on that loader's updates.
        loss_weights_per_loader: loader -> factor of its loss; 1 where none is given.
        extras: the user's own settings.
    """

    multi: MultiDataLoaderConfig = field(default_factory=MultiDataLoaderConfig)
    val_loader_config: MultiDataLoaderConfig | None = None
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    fault_tolerance: FaultToleranceConfig = field(default_factory=FaultToleranceConfig)
    preemption: PreemptionConfig = field(default_factory=PreemptionConfig)
    performance: PerformanceConfig = field(default_factory=PerformanceConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    ddp: DDPConfig = field(default_factory=DDPConfig)
    seed: int = 0
    step_rng: Literal["derived", "saved"] = "derived"
    experiment_name: str = "mtf"
    per_loader_optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    per_loader_schedulers: dict[str, Any] = field(default_factory=dict)
    loss_weights_per_loader: dict[str, float] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def train_loader_config(self) -> MultiDataLoaderConfig:
        """Another name of ``multi``."""
        return self.multi

    @classmethod
    def as_fields(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Also takes ``multi`` by its other name."""
        fields = super().as_fields(given)
        if "train_loader_config" in fields:
            if "multi" in fields:
                raise ConfigError("multi and train_loader_config are two names of one setting: give one of them")
            multi = fields.pop("train_loader_config")
            if multi is not None:
                fields["multi"] = multi
        return fields

    def require_valid(self) -> None:
        """Checks kinds and ranges, those of nested configurations included."""
        require_kinds(self, TrainerConfig, "")
        for f in dataclasses.fields(self):
            value, kind = getattr(self, f.name), f.default_factory
            if f.name == "val_loader_config" and value is not None:
                kind = MultiDataLoaderConfig
            if isinstance(kind, type) and issubclass(kind, Config):
                if not isinstance(value, kind):
                    raise ConfigError(
                        f"{f.name} must be a {kind.__name__}, got {value!r}; TrainerConfig.from_dict takes dicts"
                    )
                value.require_valid()
            elif kind is dict and not isinstance(value, Mapping):
                raise ConfigError(f"{f.name} must be a dict of names and their values, got {value!r}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be an integer in [0, 2**64), it is {self.seed}")
        one_of("step_rng", self.step_rng, ("derived", "saved"))
        for name in ("per_loader_optimizers", "loss_weights_per_loader"):
            if self.performance.manual_optimization and getattr(self, name):
                raise ConfigError(
                    f"{name} has no effect with performance.manual_optimization, where the step itself weights its "
                    "losses and chooses the optimizers"
                )
        clash = sorted(set(self.extras) & set(field_types(type(self))))
        if clash:
            raise ConfigError(f"extras: {clash} are settings of mtf; choose other names")

    def describe(self) -> dict[str, Any]:
        """As ``to_dict``, for people: what has no plain form is named instead of refused."""
        described: dict[str, Any] = describe(self)
        return described

    def __getattr__(self, name: str) -> Any:
        extras = self.__dict__.get("extras", {})
        if name in extras:
            return extras[name]
        raise AttributeError(
            f"the configuration has no {name!r}{nearest(name, [*field_types(type(self)), *extras])}; settings of your "
            f"own go into TrainerConfig(extras={{{name!r}: ...}}) or are assigned: config.{name} = ..."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train_loader_config":
            name = "multi"
        if name in field_types(type(self)):
            object.__setattr__(self, name, value)
            return
        # Only a name that is nearly one of ours, or another tool's word for one, is likely to be a slip.
        known = {**_nested_names(), **{field: field for field in field_types(type(self))}}
        near = [*map(known.__getitem__, difflib.get_close_matches(name, known, n=1, cutoff=0.85)), translation(name)][0]
        if near and name not in self.extras:
            warnings.warn(
                f"config.{name} is kept in config.extras, no setting of mtf has this name; did you mean {near!r}?",
                stacklevel=user_level(),
            )
        self.extras[name] = value


@functools.cache
def _nested_names() -> dict[str, str]:
    """Fields of the parts of a configuration, and how they are reached from the whole."""
    parts = [field for field in dataclasses.fields(TrainerConfig) if isinstance(field.default_factory, type)]
    return {
        name: f"{part.name}.{name}"
        for part in parts
        if issubclass(part.default_factory, Config)  # type: ignore[arg-type]
        for name in field_types(part.default_factory)  # type: ignore[arg-type]
    }


GenericTrainerConfig = TrainerConfig
