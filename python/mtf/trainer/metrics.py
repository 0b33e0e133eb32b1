"""Metrics of training: what steps return, kept on the device and read at logging intervals."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtf.config.checks import nearest
from mtf.data.blend.tracing.origins import SourceMeans
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError

_MAX_PENDING = 4096  # values kept on the device at most: memory stays bounded however rarely is logged


def is_metric_object(value: Any) -> bool:
    """Whether ``value`` accumulates by itself, as torchmetrics objects do. Told by protocol: importing it takes 3 s."""
    return all(callable(getattr(value, method, None)) for method in ("update", "compute", "reset"))


def scalar(name: str, value: Any) -> Any:
    """``value`` as a detached 0-dim tensor or a float; neither reads the device.

    Raises:
        ConfigError: it is neither a number nor a tensor with one element.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ConfigError(
                f"metric {name!r} must have one element, it is a tensor of shape {tuple(value.shape)}: what a "
                f"step returns beside 'loss' is logged, so return its mean, or leave it out: {{'loss': output.loss}}"
            )
        value = value.detach()
        if type(value) is not Tensor and hasattr(value, "full_tensor"):
            value = value.full_tensor()  # sharded over the ranks, which all are at this step
        return value if value.dim() == 0 else value.reshape(())
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return float(value)  # numpy scalars
    except (TypeError, ValueError):
        raise ConfigError(
            f"metric {name!r} must be a number, a tensor with one element or an object with update, compute and "
            f"reset, got {type(value).__name__}"
        ) from None


def require_own_name(name: str, loader: str, loaders: Iterable[str]) -> None:
    """Refuses a metric whose key in a row would be that of a loader's own metric.

    Raises:
        ConfigError: ``name`` begins with a loader's name and ``/``, or the name of another loader is ``loader``, ``/``
            and a part of ``name``.
    """
    if "/" not in name:
        return
    own = f"{loader}/{name}"
    for other in loaders:
        key = name if name.startswith(f"{other}/") else own if len(other) > len(loader) else ""
        rest = key[len(other) + 1 :] if key.startswith(f"{other}/") else ""
        if rest:
            raise ConfigError(
                f"metric {name!r} of loader {loader!r} would have the same key as metric {rest!r} of loader {other!r}: "
                f"return it as {rest!r}, which is kept for each loader anyway, or call it "
                f"'{name.replace('/', '_')}'"
            )


def computed(name: str, found: Any) -> dict[str, float]:
    """The value of a metric object under ``name``; of a collection, whose value is a mapping, ``<name>/<key>`` each.

    Raises:
        ConfigError: a value isn't one number.
    """
    value = found.compute()
    parts = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, Mapping) else {name: value}
    return {part: float(scalar(part, number)) for part, number in parts.items()}


def num_samples(batch: Any) -> int:
    """First dimension of the first tensor (or array) found in ``batch``; 1 where there is none."""
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor) and batch[0].dim():
        return batch[0].shape[0]  # by far the most common case
    found = _first_dimension(batch)
    return 1 if found is None else found


def _first_dimension(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, (str, bytes)):
        return None
    if isinstance(batch, (list, tuple)):
        parts: Any = batch
    elif isinstance(batch, Mapping):
        parts = batch.values()
    elif dataclasses.is_dataclass(batch):
        parts = (getattr(batch, f.name) for f in dataclasses.fields(batch))
    else:
        shape = getattr(batch, "shape", None)
        return int(shape[0]) if shape else None
    for part in parts:
        found = _first_dimension(part)
        if found is not None:
            return found
    return None


def to_floats(values: Sequence[Any]) -> list[float]:
    """Scalars as numbers, with one synchronisation for all tensors among them."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    if not tensors:
        return list(values)
    device = tensors[0].device
    if all(t.dtype == tensors[0].dtype and t.device == device for t in tensors):
        read = iter(torch.stack(tensors).tolist())
    else:
        read = iter(torch.stack([t.to(device, torch.float64) for t in tensors]).tolist())
    return [next(read) if isinstance(v, Tensor) else v for v in values]


class MetricValues(dict[str, float]):
    """Metrics by name. A name that isn't there is an error that lists those that are."""

    def __missing__(self, name: object) -> float:
        listed = ", ".join(sorted(self)) or "none yet"
        raise KeyError(f"there is no metric {name!r}{nearest(name, self)} (there are: {listed})")


class MetricTable:
    """Means over steps since the last row, per loader and metric.

    Adding keeps a 0-dim tensor on the device; nothing is read from it until ``means``. Sums are made in float64 in
    the order of the steps, so they don't depend on when the values were read.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self._uncommitted: list[list[Any]] = []
        self._extra_counts: dict[tuple[str, str], float] = {}
        self._uncommitted_extra: list[tuple[tuple[str, str], float]] = []
        self._num_pending = 0
        self._sums: dict[tuple[str, str], float] = {}
        self._counts: dict[tuple[str, str], float] = {}
        self._objects: dict[tuple[str, str], Any] = {}
        self._read_objects: dict[tuple[str, bool], float] = {}

    def add(self, loader: str, name: str, value: Any, weight: float = 1.0, count: float = 1.0) -> None:
        """Notes one value.

        Args:
            loader: empty for values that belong to none.
            weight: factor of the value in the sum.
            count: what it adds to the number that the sum is divided by.
        """
        if isinstance(value, SourceMeans):
            for source, total, rows in value.parts():
                self.add_scalar(source, name, total.item() if total.is_cpu else total, count=rows)
            return
        # A tensor hasn't the methods of a metric object, and says so slowly.
        if not isinstance(value, (Tensor, float)) and is_metric_object(value):
            self._objects[loader, name] = value
            return
        number = scalar(name, value)
        if isinstance(number, Tensor):
            # It may be a parameter or a buffer, whose current value is meant, not the one it has when it is read.
            number = number.item() if type(number) is Tensor and number.is_cpu else number.clone()
        self.add_scalar(loader, name, number, weight, count)

    def add_scalar(
        self, loader: str, name: str, number: float | Tensor, weight: float = 1.0, count: float = 1.0
    ) -> None:
        """As ``add`` for a number, or a 0-dim tensor that is detached and that nothing writes to any more."""
        values = self._pending[loader, name]
        values.append(number if weight == 1.0 else number * weight)
        self._uncommitted.append(values)
        if count != 1.0:
            key = (loader, name)
            self._extra_counts[key] = self._extra_counts.get(key, 0.0) + (count - 1.0)
            self._uncommitted_extra.append((key, count - 1.0))

    def commit(self) -> None:
        """The window has become an update: what it added stays."""
        self._num_pending += len(self._uncommitted)
        self._uncommitted.clear()
        self._uncommitted_extra.clear()
        if self._num_pending >= _MAX_PENDING:
            self._read()

    def roll_back(self) -> None:
        """The window failed: what it added goes."""
        for values in self._uncommitted:
            values.pop()
        self._uncommitted.clear()
        for key, extra in self._uncommitted_extra:
            self._extra_counts[key] -= extra
        self._uncommitted_extra.clear()

    def _read(self) -> None:
        self._uncommitted.clear()
        self._uncommitted_extra.clear()
        flat = iter(to_floats([v for values in self._pending.values() for v in values]))
        for key, values in self._pending.items():
            total = self._sums.get(key, 0.0)
            if not values:
                continue
            for _ in values:
                total += next(flat)
            self._sums[key] = total
            self._counts[key] = self._counts.get(key, 0) + len(values) + self._extra_counts.pop(key, 0)
        self._pending.clear()
        self._num_pending = 0

    def means(self, ranks: SingleRank, *, per_loader: bool) -> dict[str, float]:
        """``train/<metric>``, ``train/<loader>/<metric>``, and values without a loader under their own name.

        Reads the device once.
        """
        self._read()
        keys = [tuple(joined.split("\0", 1)) for joined in ranks.union(f"{a}\0{b}" for a, b in self._counts)]
        sums = [self._sums.get((a, b), 0.0) for a, b in keys]
        counts = [float(self._counts.get((a, b), 0)) for a, b in keys]
        both = ranks.sum(torch.tensor([sums, counts], dtype=torch.float64)).tolist()
        row: dict[str, float] = {}
        totals: dict[str, list[float]] = {}
        logged = {name: total / count for (loader, name), total, count in zip(keys, *both, strict=True) if not loader}
        for (loader, name), total, count in zip(keys, *both, strict=True):
            if not loader:
                continue
            if per_loader:
                row[f"train/{loader}/{name}"] = total / count
            whole = totals.setdefault(name, [0.0, 0.0])
            whole[0] += total
            whole[1] += count
        row.update({f"train/{name}": total / count for name, (total, count) in totals.items()})
        of_objects = {**self._read_objects, **self._computed()}
        row.update(
            {key: value for (key, is_per_loader), value in of_objects.items() if per_loader or not is_per_loader}
        )
        twice = sorted(set(row) & set(logged))
        if twice:
            raise ConfigError(f"trainer.log: {twice} are keys of metrics that steps return: log them under other names")
        return {**logged, **row}

    def _computed(self) -> dict[tuple[str, bool], float]:
        """Values of metric objects by their key in a row and whether that is one loader's. An object that several
        loaders share can't be told apart and counts for all; several of one name have a value for each loader only."""
        values: dict[tuple[str, bool], float] = {}
        owners: dict[int, set[str]] = {}
        named: dict[str, set[int]] = {}
        for (loader, name), found in self._objects.items():
            owners.setdefault(id(found), set()).add(loader)
            if loader:
                named.setdefault(name, set()).add(id(found))
        for (loader, name), found in self._objects.items():
            parts = computed(name, found)
            if not loader:
                values.update({(part, False): value for part, value in parts.items()})
                continue
            if len(named[name]) == 1:
                values.update({(f"train/{part}", False): value for part, value in parts.items()})
            if len(owners[id(found)]) == 1:
                values.update({(f"train/{loader}/{part}", True): value for part, value in parts.items()})
        return values

    def read_objects(self) -> None:
        """Before a validation, whose steps may return the same metric objects: reads and resets them.

        So a row has what an object saw since the last row or validation.
        """
        self._read_objects.update(self._computed())
        self.reset_objects()

    def reset_objects(self) -> None:
        """Metric objects belong to the user: what they hold must count nowhere else."""
        for found in {id(o): o for o in self._objects.values()}.values():
            found.reset()
        self._objects.clear()

    def clear(self) -> None:
        """Starts the next interval."""
        self._read()
        self._sums.clear()
        self._counts.clear()
        self.reset_objects()
        self._read_objects.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since the last row."""
        return not (any(self._pending.values()) or self._counts or self._objects or self._read_objects)

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts of the interval that is under way."""
        self._read()
        return {"sums": [(a, b, total, self._counts[a, b]) for (a, b), total in self._sums.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with an interval."""
        self._pending.clear()
        self._uncommitted.clear()
        self._extra_counts.clear()
        self._uncommitted_extra.clear()
        self._num_pending = 0
        self._read_objects.clear()
        self._sums, self._counts = {}, {}
        for a, b, total, count in state["sums"]:  # of several ranks: a metric may be there more than once
            self._sums[a, b] = self._sums.get((a, b), 0.0) + float(total)
            self._counts[a, b] = self._counts.get((a, b), 0) + (count if isinstance(count, float) else int(count))

    def for_rank(self, parts: Sequence[Mapping[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
        """Sums over all ranks stay what they were, whichever rank holds them: rank 0 takes all."""
        return {"sums": [entry for part in parts for entry in part["sums"]] if rank == 0 else []}


def proportions(names: Sequence[str], actual: Sequence[float], expected: Sequence[float]) -> dict[str, float]:
    """``loader_proportions/<loader>_batches`` and ``..._divergence`` from the batches of each loader since the
    epoch's start and from those that its weights promise."""
    total, total_expected = sum(actual), sum(expected)
    row: dict[str, float] = {}
    for name, drawn, awaited in zip(names, actual, expected, strict=True):
        # The counts may be numpy's, which print and are saved as such.
        share = float(drawn / total) if total else 0.0
        row[f"loader_proportions/{name}_batches"] = share
        row[f"loader_proportions/{name}_divergence"] = abs(
            share - (float(awaited / total_expected) if total_expected else 0.0)
        )
    return row
