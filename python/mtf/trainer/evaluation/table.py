"""Metrics of one validation: exact over uneven loaders and short last batches."""

from __future__ import annotations

import copy
import pickle
import warnings
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
        self._frozen: dict[str, Any] | None = None  # what they held before batches that don't count
        self._in_vain: list[Any] = []
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

    def begin_filler(self) -> None:
        """Before a step on a batch that doesn't count, which updates metric objects all the same."""
        if self._frozen is None:
            self._frozen = copy.deepcopy(self._objects)

    def end_filler(self, result: Any) -> None:
        """Notes objects in what a step returned for a batch that doesn't count: what they have seen is dropped."""
        if isinstance(result, Mapping):
            self._in_vain += [value for value in result.values() if is_metric_object(value)]

    def end_loader(self, loader: str, ranks: SingleRank) -> None:
        """Reads and resets metric objects: they accumulate one loader at a time. A collective.

        An object synchronises itself when it is read, so every rank reads it; one that had no batch, and so hasn't
        seen the object, reads an empty copy of another rank's.

        Raises:
            ConfigError: on several ranks, an object whose values differ, or that can't be copied to a rank.
        """
        objects = self._objects if self._frozen is None else self._frozen
        copies = _copies_of_missing(loader, objects, ranks, self._device)
        for name, found in sorted({**objects, **copies}.items()):
            parts = _read_empty(name, found) if name in copies else computed(name, found)
            values = ranks.gather((parts, float(self._num_samples), name not in copies))
            seen = [parts for parts, _, is_own in values if is_own]  # what an empty one gives doesn't matter
            for part, value in seen[0].items():
                shown = [str(parts.get(part)) for parts in seen]
                if len(set(shown)) > 1:
                    raise ConfigError(
                        f"metric {part!r} of loader {loader!r} has the values {', '.join(shown)} on the ranks: "
                        "an object must synchronise itself in compute(), as torchmetrics does; or return numbers"
                    )
                self._computed[loader, part] = (value, sum(count for _, count, _ in values))
        self.drop_objects()
        self._num_batches, self._num_samples = 0, 0

    def drop_objects(self) -> None:
        """Forgets what metric objects saw of a loader, which has ended, or which an error has."""
        for found in (*self._objects.values(), *self._in_vain):
            found.reset()
        self._objects, self._frozen, self._in_vain = {}, None, []

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


def _copies_of_missing(
    loader: str, objects: Mapping[str, Any], ranks: SingleRank, device: torch.device
) -> dict[str, Any]:
    """Empty copies of the objects that other ranks have and this one hasn't. A collective.

    Raises:
        ConfigError: on all ranks, for an object that can't be pickled.
    """
    if ranks.world_size == 1:
        return {}
    everywhere = ranks.gather(sorted(objects))
    names = sorted(set().union(*everywhere))
    missing = [name for name in names if any(name not in there for there in everywhere)]
    if not missing:
        return {}
    first = {name: next(rank for rank, there in enumerate(everywhere) if name in there) for name in missing}
    sent = ranks.gather({name: _packed(objects[name]) for name in missing if first[name] == ranks.rank})
    copies: dict[str, Any] = {}
    for name in missing:
        packed = sent[first[name]][name]
        if packed is None:
            without = [rank for rank, there in enumerate(everywhere) if name not in there]
            raise ConfigError(
                f"loader {loader!r} has no batch on ranks {without}, and the metric object {name!r} can't be copied "
                "to them, because it can't be pickled: return numbers instead, or give each rank a batch"
            )
        if name not in objects:
            made = pickle.loads(packed)
            made.reset()
            copies[name] = made.to(device) if callable(getattr(made, "to", None)) else made
    return copies


def _packed(found: Any) -> bytes | None:
    try:
        return pickle.dumps(found)
    except Exception:  # whatever an object of a user raises
        return None


def _read_empty(name: str, found: Any) -> dict[str, float]:
    """Reads an object that has seen nothing, so that the other ranks' can synchronise; its value isn't used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return computed(name, found)
    except (ArithmeticError, ValueError, IndexError, ConfigError):  # a mean of nothing
        return {}
