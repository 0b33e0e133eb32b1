"""Validation: every batch exactly once, and metrics that are exact over uneven loaders and short last batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtf.config.checks import nearest
from mtf.config.validation import ValidationConfig
from mtf.data.transfer import move_to
from mtf.data.workers.fetch_timeout import FetchGuard
from mtf.distributed.ranks import SingleRank
from mtf.enums import ValAggregation
from mtf.errors import ConfigError, SourceError
from mtf.trainer.batch import add_note, length_of, num_samples
from mtf.trainer.metrics import computed, is_metric_object, scalar
from mtf.trainer.progress_bar import Progress
from mtf.trainer.validation_data import validation_batches

if TYPE_CHECKING:
    from mtf.trainer.trainer import Trainer

PerLoader = dict[str, dict[str, float]]


class ValidationLeft(Exception):
    """A validation was left before its end, as its caller asked; it is to be made anew."""


class EvaluationTable:
    """Sums over samples and numbers of samples, per loader and metric, in float64 on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[tuple[str, str], Any] = {}
        self._counts: dict[tuple[str, str], Any] = {}
        self._objects: dict[str, Any] = {}
        self._computed: dict[tuple[str, str], tuple[float, float]] = {}
        self._num_batches = 0
        self._num_samples: Any = 0

    def add(self, loader: str, result: Any, batch: Any) -> dict[str, Any]:
        """Notes what a validation step returned for ``batch``; returns its metrics, detached.

        Every metric counts as a mean over the batch's samples: ``num_samples`` of the result, else the batch's
        first dimension.
        """
        given = dict(result) if isinstance(result, Mapping) else {"loss": result}
        count = given.pop("num_samples", None)
        n: Any = num_samples(batch) if count is None else scalar("num_samples", count)
        if isinstance(n, Tensor):
            n = n.to(self._device, torch.float64)
        self._num_batches += 1
        self._num_samples = self._num_samples + n
        seen: dict[str, Any] = {}
        for name, value in given.items():
            if is_metric_object(value):
                if name not in self._objects and self._num_batches > 1:
                    raise ConfigError(f"metric {name!r} of loader {loader!r} is an object in some batches only")
                self._objects[name] = value
                seen[name] = value
                continue
            seen[name] = value = scalar(name, value)
            key = (loader, name)
            if isinstance(value, Tensor):
                value = value.to(self._device, torch.float64)
            # A mean over no sample may be NaN; it must not poison the sum.
            weighted: Any = 0.0
            if isinstance(n, Tensor):
                weighted = torch.where(n == 0, 0.0, value * n)
            elif n:
                weighted = value * n
            self._sums[key] = self._sums.get(key, 0.0) + weighted
            self._counts[key] = self._counts.get(key, 0) + n
        return seen

    def end_loader(self, loader: str, ranks: SingleRank) -> None:
        """Reads and resets metric objects: they accumulate one loader at a time.

        Raises:
            ConfigError: on several ranks, an object that one rank doesn't have, or whose values differ.
        """
        _require_on_all_ranks(loader, sorted(self._objects), ranks)
        for name, found in sorted(self._objects.items()):
            values = ranks.gather((computed(name, found), float(self._num_samples)))
            for part, value in values[0][0].items():
                shown = [str(parts.get(part)) for parts, _ in values]
                if len(set(shown)) > 1:
                    raise ConfigError(
                        f"metric {part!r} of loader {loader!r} has the values {', '.join(shown)} on the ranks: "
                        "an object must synchronise itself in compute(), as torchmetrics does; or return numbers"
                    )
                self._computed[loader, part] = (value, sum(count for _, count in values))
            found.reset()
        self._objects = {}
        self._num_batches, self._num_samples = 0, 0

    def drop_objects(self) -> None:
        """After an error: what metric objects saw of a loader that isn't ended."""
        for found in self._objects.values():
            found.reset()
        self._objects = {}

    def read(self, ranks: SingleRank) -> tuple[PerLoader, dict[str, dict[str, float]]]:
        """Means per loader and metric, and the numbers of samples behind them. The only host synchronisation."""
        keys = [tuple(joined.split("\0", 1)) for joined in ranks.union(f"{a}\0{b}" for a, b in self._sums)]
        table = torch.zeros(2, len(keys), dtype=torch.float64, device=self._device)
        for i, (loader, name) in enumerate(keys):
            if (loader, name) in self._sums:
                table[0, i] = self._sums[loader, name]
                table[1, i] = self._counts[loader, name]
        sums, counts = ranks.sum(table).tolist()
        means: PerLoader = {}
        samples: dict[str, dict[str, float]] = {}
        for (loader, name), total, count in zip(keys, sums, counts, strict=True):
            if count:
                means.setdefault(loader, {})[name] = total / count
                samples.setdefault(loader, {})[name] = count
        for (loader, name), (value, count) in self._computed.items():
            means.setdefault(loader, {})[name] = value
            samples.setdefault(loader, {})[name] = count
        return means, samples


def _require_on_all_ranks(loader: str, names: list[str], ranks: SingleRank) -> None:
    """An object synchronises itself when it is read, so every rank must read the same ones."""
    if ranks.world_size == 1:
        return
    for rank, others in enumerate(ranks.gather(names)):
        if others != names:
            raise ConfigError(
                f"loader {loader!r} has the metric objects {names} on rank {ranks.rank} and {others} on rank {rank}: "
                "every rank needs a batch of it at least; numbers instead of objects need none"
            )


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
    for name in config.primary_metrics:
        if name not in names:
            raise ConfigError(
                f"validation.primary_metrics: no validation loader is called {name!r}, there are {list(names)}"
                f"{nearest(name, names)}"
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
            f"validation loaders without a batch are left out: {missing}; give them data or leave them away",
            stacklevel=3,
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


def run_validation(
    trainer: Trainer, named: Mapping[str, Any], leaves: Callable[[], bool] = lambda: False
) -> dict[str, float]:
    """Validates ``trainer.model`` on every batch of ``named`` (name -> loader), in order.

    The model is in eval mode and no graph is kept; afterwards each module's mode and the random numbers of training
    are as before. (``no_grad``, as ``inference_mode`` breaks modules that cache tensors.)

    Args:
        leaves: asked before each batch whether to leave.

    Raises:
        ValidationLeft: ``leaves`` said so.
    """
    check_validation(trainer.config.validation, list(named))
    trainer.metric_table.read_objects()
    modes = [(module, module.training) for module in trainer.model.modules()]
    table = EvaluationTable(trainer.device)
    try:
        trainer.model.eval()
        with trainer.reporter.validating(), trainer.step_rng.validation(), torch.no_grad():
            trainer.hooks.call("on_validation_start", trainer)
            for index, (name, loader) in enumerate(named.items()):
                _run_loader(trainer, table, index, name, loader, leaves)
            means, samples = table.read(trainer.ranks)
    finally:
        table.drop_objects()
        for module, mode in modes:
            module.training = mode
    row = aggregate(trainer.config.validation, list(named), means, samples)
    trainer.hooks.call("on_validation_end", trainer, row)
    return row


def _run_loader(
    trainer: Trainer, table: EvaluationTable, index: int, name: str, loader: Any, leaves: Callable[[], bool]
) -> None:
    hooks = trainer.hooks
    shows = trainer.config.logging.progress_bar and trainer.rank == 0
    progress = Progress(f"validation {name}", length_of(loader), is_shown=shows)
    limit_s = trainer.config.performance.fetch_timeout_s
    guard = None if limit_s is None else FetchGuard(limit_s)
    batch_idx = 0
    try:
        for batch, counts in validation_batches(loader, name, trainer.ranks, guard):
            if leaves():
                raise ValidationLeft
            data = move_to(batch, trainer.device, non_blocking=True)
            place = (batch_idx, index, name)
            for method in hooks.on_validation_batch_start:
                method(trainer, data, *place)
            with trainer.precision.autocast():
                result = trainer.ranks.run(trainer.validation_step, data, *place)
            if counts:
                seen = table.add(name, result, data)
                for method in hooks.on_validation_batch_end:
                    method(trainer, data, *place, seen)
                progress.advance(1)
            batch_idx += 1
        table.end_loader(name, trainer.ranks)
    except SourceError:  # which says it itself
        raise
    except Exception as error:
        add_note(error, f"in the validation on loader {name!r}, at batch {batch_idx}")
        raise
    finally:
        progress.close()
        if guard is not None:
            guard.close()
