"""Which source each row of a blended batch comes from, for the step that gets the batch."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtf.data.batch import Batch
from mtf.data.nested import leaves
from mtf.data.sources.base import Source
from mtf.errors import ConfigError


class _TensorRef(weakref.ref[Tensor]):
    """A weak reference that knows the id of its tensor when that is gone. Tensors are told apart by identity."""

    __slots__ = ("key",)
    key: int


# id of the first tensor of a batch -> the tensor and where the batch comes from. One entry is made per batch, so this
# is no WeakIdKeyDictionary, whose entries cost twice as much. A batch that is gone is forgotten.
_origins: dict[int, tuple[_TensorRef, Source, int, int]] = {}


def _forget(ref: _TensorRef) -> None:
    found = _origins.get(ref.key)
    if found is not None and found[0] is ref:
        del _origins[ref.key]


@dataclass(frozen=True, repr=False)
class RowSources:
    """The source of each row of a batch, on the batch's device.

    Attributes:
        index: Index of each row's source, int64 ``[rows]``.
        names: Name of each source, by index.
        counts: Rows of each source in this batch, by index.
    """

    index: Tensor
    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __repr__(self) -> str:
        """Rows of each source."""
        return f"RowSources({', '.join(f'{name}: {n}' for name, n in zip(self.names, self.counts, strict=True))})"

    def sums(self, values: Tensor) -> Tensor:
        """The sum of one value per row over the rows of each source, ``[sources]``, without a graph.

        Raises:
            ConfigError: ``values`` doesn't have one value per row.
        """
        if values.shape != self.index.shape:
            raise ConfigError(
                f"values must have one number per row, shape {tuple(self.index.shape)}, but have the shape "
                f"{tuple(values.shape)}"
            )
        zeros = torch.zeros(len(self.names), dtype=values.dtype, device=values.device)
        return zeros.index_add(0, self.index, values.detach())

    def means(self, values: Tensor) -> SourceMeans:
        """A metric of each source, for a training step to return: ``{"loss": ..., "accuracy": sources.means(hits)}``.

        It is logged as ``train/<source>/<metric>``, the mean of ``values`` over all rows of the source since the last
        row of the log, on all ranks; and as ``train/<metric>``, over all rows. Nothing waits for the device.

        Args:
            values: One number per row, ``[rows]``.

        Raises:
            ConfigError: ``values`` doesn't have one value per row.
        """
        return SourceMeans(self.names, self.sums(values), self.counts)


@dataclass(frozen=True, repr=False)
class SourceMeans:
    """Sums and counts of a metric by source, of the rows of one batch on one rank.

    Attributes:
        names: Name of each source, by index.
        sums: Sum of the metric over the rows of each source, ``[sources]``.
        counts: Rows of each source.
    """

    names: tuple[str, ...]
    sums: Tensor
    counts: tuple[int, ...]

    def __repr__(self) -> str:
        """Rows of each source, and no value: these may be on a device."""
        return f"SourceMeans({', '.join(f'{name}: {n} rows' for name, n in zip(self.names, self.counts, strict=True))})"

    def parts(self) -> list[tuple[str, Tensor, int]]:
        """Name, sum (0-dim) and number of rows of each source that has any."""
        every = zip(self.names, self.sums.unbind(), self.counts, strict=True)
        return [(name, total, count) for name, total, count in every if count]


def remember_origin(data: Any, source: Source, pass_: int, batch: int) -> None:
    """Lets ``sources_of`` find where ``data`` comes from, as long as its first tensor lives."""
    first = _first_tensor(data)
    if first is not None:
        ref = _TensorRef(first, _forget)
        ref.key = key = id(first)
        _origins[key] = ref, source, pass_, batch


def carry_origins(before: Any, after: Any) -> None:
    """Lets ``sources_of`` find the parts of ``after``, which is ``before`` with its tensors on another device."""
    for old, new in zip(leaves(before), leaves(after), strict=False):
        if new is not old and isinstance(old, Tensor) and isinstance(new, Tensor):
            found = _origins.get(id(old))
            if found is not None and found[0]() is old:
                remember_origin(new, *found[1:])


def sources_of(batch: Any) -> RowSources:
    """The source of each row of a batch of an ``mtf.Blend``, as a training step or a loop gets it.

    Reads no data and waits for no device: which source gave a row is computed from the batch's position.

    Args:
        batch: What the blend gave, or the ``mtf.Batch`` around it. With ``by_source`` the rows are those of the parts,
            one after the other.

    Raises:
        ConfigError: The batch isn't one of a blend, or its tensors were replaced by others.
    """
    data = batch.data if isinstance(batch, Batch) else batch
    first = _first_tensor(data)
    found = _origins.get(id(first))
    if first is None or found is None or found[0]() is not first:
        raise ConfigError(
            "sources_of needs a batch as an mtf.Blend gave it, in a Trainer or MultiLoader, before its tensors are "
            "replaced by others"
        )
    _, source, pass_, number = found
    index, names = source.sources_of(pass_, number), source.source_names
    counts = tuple(torch.bincount(index, minlength=len(names)).tolist())
    return RowSources(index.to(first.device, non_blocking=True), names, counts)


def _first_tensor(data: Any) -> Tensor | None:
    if isinstance(data, Tensor):
        return data
    if isinstance(data, (dict, list, tuple)):  # nearly always, and faster than a look at every leaf
        parts = data.values() if isinstance(data, dict) else data
        return next((found for part in parts if (found := _first_tensor(part)) is not None), None)
    return next((leaf for leaf in leaves(data) if isinstance(leaf, Tensor)), None)
