"""Metrics of several validation loaders as one row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from mtf.call_site import user_level
from mtf.config.checks import nearest
from mtf.config.validation import ValidationConfig
from mtf.enums import ValAggregation
from mtf.errors import ConfigError
from mtf.trainer.evaluation.table import PerLoader


def check_validation(config: ValidationConfig, names: Sequence[str]) -> None:
    """Checks settings against the validation loaders there are.

    Raises:
        ConfigError: weights or primary metrics don't fit ``names``.
    """
    weights = config.validation_weights
    if weights is not None and config.aggregation_fn is None and len(weights) != len(names):
        raise ConfigError(
            f"validation.validation_weights must have one weight per validation loader ({list(names)}), "
            f"it has {len(weights)}: {weights}"
        )
    for parameter in ("primary_metrics", "loader_every_n"):
        _check_names(f"validation.{parameter}", getattr(config, parameter), names)


def _check_names(parameter: str, used: Iterable[str], names: Sequence[str]) -> None:
    for name in used:
        if name not in names:
            raise ConfigError(
                f"{parameter}: no validation loader is called {name!r}, there are {list(names)}{nearest(name, names)}"
            )


def aggregate(
    config: ValidationConfig, names: Sequence[str], means: PerLoader, samples: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The row of one validation: ``val/<metric>`` and ``val/<loader>/<metric>``.

    Args:
        names: validation loaders in order.
        means: per loader and metric, the mean over the loader's samples.
        samples: numbers of samples behind ``means``.
    """
    missing = [name for name in names if name not in means]
    if missing:
        warnings.warn(
            f"validation loaders without a batch are left out: {missing}; give them data, or omit them",
            stacklevel=user_level(),
        )
    primary = config.aggregation is ValAggregation.PRIMARY_METRIC_PER_LOADER
    primary = primary and config.aggregation_fn is None and config.validation_weights is None
    row: dict[str, float] = {}
    if primary:
        chosen = {name: _primary(config, name, means[name]) for name in names if name in means}
        if config.per_loader_metrics:
            row = {f"val/{name}/{metric}": means[name][metric] for name, metric in chosen.items()}
        if config.global_metrics and chosen:
            row["val/primary"] = sum(means[n][m] for n, m in chosen.items()) / len(chosen)
        return row
    if config.per_loader_metrics:
        row = {f"val/{n}/{m}": value for n in names if n in means for m, value in means[n].items()}
    if config.global_metrics:
        if config.aggregation_fn is not None:
            combined: Mapping[str, float] = config.aggregation_fn({n: dict(means[n]) for n in names if n in means})
            if not isinstance(combined, Mapping):
                raise ConfigError(
                    f"validation.aggregation_fn must return a mapping of metric to value, got {combined!r}"
                )
        else:
            combined = _weighted(_weights(config, names, samples), means)
        row.update({f"val/{m}": float(value) for m, value in combined.items()})
    return row


def per_loader(config: ValidationConfig, names: Sequence[str], means: PerLoader) -> dict[str, float]:
    """The row of a validation of some of the loaders: ``val/<loader>/<metric>`` only, as what is meant by a metric over
    all loaders must not depend on which of them took part."""
    return aggregate(replace(config, global_metrics=False), names, means, {})


def _primary(config: ValidationConfig, name: str, metrics: Mapping[str, float]) -> str:
    metric = config.primary_metrics.get(name, "loss")
    if metric not in metrics:
        raise ConfigError(
            f"validation.primary_metrics: loader {name!r} has no metric {metric!r}, its steps return {list(metrics)}"
            f"{nearest(metric, metrics)}"
        )
    return metric


def _weights(
    config: ValidationConfig, names: Sequence[str], samples: Mapping[str, Mapping[str, float]]
) -> Callable[[str, str], float]:
    """The weight of a loader in the mean of a metric."""
    if config.validation_weights is not None:
        given = dict(zip(names, config.validation_weights, strict=True))
        return lambda loader, metric: given[loader]
    if config.aggregation is ValAggregation.MACRO_AVG_EQUAL_LOADERS:
        return lambda loader, metric: 1.0
    return lambda loader, metric: samples[loader][metric]


def _weighted(weight: Callable[[str, str], float], means: PerLoader) -> dict[str, float]:
    """Weighted mean per metric over the loaders that have it."""
    totals: dict[str, list[float]] = {}
    for loader, metrics in means.items():
        for metric, value in metrics.items():
            total = totals.setdefault(metric, [0.0, 0.0])
            total[0] += weight(loader, metric) * value
            total[1] += weight(loader, metric)
    return {metric: total / whole for metric, (total, whole) in totals.items() if whole}
