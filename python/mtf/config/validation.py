"""When a run validates, and how the metrics of several loaders become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

from mtf.config.base import Config
from mtf.config.checks import at_least, parse_enum, require_kinds
from mtf.enums import ValAggregation, ValidationFrequency
from mtf.errors import ConfigError

AggregationFn = Callable[[dict[str, dict[str, float]]], Mapping[str, float]]


@dataclass
class ValidationConfig(Config):
    """When validation runs and how metrics of several loaders become one.

    Attributes:
        frequency: at the end of each epoch, every ``every_n_steps`` updates, or only when ``validate`` is called.
        every_n_steps: updates between two validations, for EVERY_N_STEPS.
        at_start: also validate before the first update.
        limit_batches: batches of each loader that a validation uses, its first ones: a number, over all ranks, or a
            share in (0, 1] of its length. None: all.
        sanity_batches: batches of each loader that are validated on before the first update of a new run, to find
            mistakes in the step, and monitored metrics that don't exist, at once. No hook is called, nothing is
            logged, and no state changes; loaders that nothing can put back are left out. 0: none.
        loader_every_n: loader -> it takes part in every n-th validation only, and in the one at the start. A
            validation without some loaders gives ``val/<loader>/<metric>`` only.
        aggregation: of loaders, where neither ``aggregation_fn`` nor ``validation_weights`` is given.
        aggregation_fn: ``{loader: {metric: value}} -> {metric: value}``; beats ``validation_weights``.
        validation_weights: one weight per validation loader, in their order, for a weighted mean over loaders;
            relative, need not sum to 1; beats ``aggregation``.
        primary_metrics: loader -> its metric, for PRIMARY_METRIC_PER_LOADER; ``loss`` where nothing is given.
        per_loader_metrics: report ``val/<loader>/<metric>``.
        global_metrics: report ``val/<metric>``, aggregated over loaders.
    """

    frequency: ValidationFrequency = ValidationFrequency.PER_EPOCH
    every_n_steps: int | None = None
    at_start: bool = False
    limit_batches: int | float | None = None
    sanity_batches: int = 2
    loader_every_n: dict[str, int] = field(default_factory=dict)
    aggregation: ValAggregation = ValAggregation.MICRO_AVG_WEIGHTED_BY_SAMPLES
    aggregation_fn: AggregationFn | None = None
    validation_weights: list[float] | None = None
    primary_metrics: dict[str, str] = field(default_factory=dict)
    per_loader_metrics: bool = True
    global_metrics: bool = True

    def require_valid(self) -> None:
        """Accepts enums by name; checks what can be checked without loaders."""
        require_kinds(self, ValidationConfig, "validation.")
        self.frequency = parse_enum(ValidationFrequency, self.frequency, "validation.frequency")
        self.aggregation = parse_enum(ValAggregation, self.aggregation, "validation.aggregation")
        if self.every_n_steps is not None:
            at_least("validation.every_n_steps", self.every_n_steps, 1)
        if self.frequency is ValidationFrequency.EVERY_N_STEPS and self.every_n_steps is None:
            raise ConfigError("validation.every_n_steps is required with frequency EVERY_N_STEPS")
        at_least("validation.sanity_batches", self.sanity_batches, 0)
        for name, number in self.loader_every_n.items():
            at_least(f"validation.loader_every_n[{name!r}]", number, 1)
        if self.loader_every_n and not self.per_loader_metrics:
            raise ConfigError(
                "validation.loader_every_n needs validation.per_loader_metrics: a validation of some of the loaders "
                "has no metric over all of them"
            )
        limit = self.limit_batches
        if limit is not None and not (limit >= 1 if isinstance(limit, int) else 0.0 < limit <= 1.0):
            raise ConfigError(
                "validation.limit_batches must be an int of at least 1, or a share of the batches in (0, 1], it is "
                f"{limit!r}"
            )
        if self.aggregation is ValAggregation.CUSTOM and self.aggregation_fn is None:
            raise ConfigError("validation.aggregation CUSTOM needs validation.aggregation_fn")
        if self.validation_weights is not None:
            self._check_weights(self.validation_weights)

    @staticmethod
    def _check_weights(weights: Sequence[float]) -> None:
        where = "validation.validation_weights"
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise ConfigError(f"{where} must be a list, one weight per validation loader in their order, got {weights}")
        for i, weight in enumerate(weights):
            if not isinstance(weight, Real) or not 0.0 <= weight < float("inf"):
                raise ConfigError(f"{where}[{i}] must be finite and not negative, it is {weight!r}")
        if not sum(weights) > 0.0:
            raise ConfigError(f"{where} must not all be zero: {weights}")
