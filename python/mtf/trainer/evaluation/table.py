"""Metrics of one validation: exact over uneven loaders and short last batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError
from mtf.trainer.metrics import computed, is_metric_object, num_samples, require_own_name, scalar

PerLoader = dict[str, dict[str, float]]
"""Values by loader and metric."""


class EvaluationTable:
    """Sums over samples and numbers of samples, per loader and metric, in float64 on the device."""

    def __init__(self, device: torch.device, loaders: Collection[str] = ()) -> None:
        self._device = device
        self._loaders = loaders
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
        if result is None:  # the step left the batch out
            return {}
        given = dict(result) if isinstance(result, Mapping) else {"loss": result}
        count = given.pop("num_samples", None)
        n: Any = num_samples(batch) if count is None else scalar("num_samples", count)
        if isinstance(n, Tensor):
            n = n.to(self._device, torch.float64)
        self._num_batches += 1
        self._num_samples = self._num_samples + n
        seen: dict[str, Any] = {}
        for name, value in given.items():
            if "/" in name:
                require_own_name(name, loader, self._loaders)
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
