"""Lists of batches, addressed by their index."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from mtf._core import fold_in
from mtf.data.protocols import length_of
from mtf.data.sources.base import Snapshot, Source, Stream
from mtf.data.sources.iterator_stream import IteratorStream


def is_sequence(loader: Any) -> bool:
    """Whether batches can be taken by index: a list, a tuple, a map-style dataset of HF ``datasets`` or of grain."""
    cls = type(loader)
    if isinstance(loader, Sequence) or (cls.__name__ == "Dataset" and cls.__module__ == "datasets.arrow_dataset"):
        return True
    return _is_grains(loader) and not _leaves_out(loader)


def _is_grains(loader: Any) -> bool:
    return any(base.__name__ == "MapDataset" and base.__module__.startswith("grain.") for base in type(loader).__mro__)


def _leaves_out(loader: Any) -> bool:
    """Whether a grain dataset has a filter somewhere, so that some of its indices have no element."""
    return "Filter" in type(loader).__name__ or any(map(_leaves_out, getattr(loader, "_parents", ())))


class SequenceSource(Source):
    """Each element is a batch, addressed by its index; the order is the same in every pass.

    A ``MapDataset`` of grain shuffles every pass differently, as after its ``repeat()``: pass ``p`` begins at index
    ``p * len``. One that is repeated without end is one endless pass.

    On several ranks a step takes ``world_size`` consecutive elements, one for each rank.
    """

    def __init__(
        self,
        batches: Sequence[Any],
        name: str,
        *,
        seed_each_batch: bool = True,
        rank: int = 0,
        world_size: int = 1,
        keeps_rest: bool = False,
    ) -> None:
        self.name = name
        self._batches = batches
        self._seed_each_batch = seed_each_batch
        self._rank, self._world_size = rank, world_size
        self._keeps_rest = keeps_rest
        self._continues = _is_grains(batches)

    def num_batches(self) -> int | None:
        whole = length_of(self._batches)
        if whole is None:
            return None
        return len(range(self._rank, whole, self._world_size)) if self._keeps_rest else whole // self._world_size

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        size, num = self._world_size, self.num_batches()
        first = batch * size + self._rank
        places = count(first, size) if num is None else range(first, num * size + self._rank, size)
        offset = pass_ * len(self._batches) if self._continues and num is not None else 0
        elements = (self._batches[place + offset] for place in places)
        return IteratorStream(elements, batch, fold_in(key, pass_), self._seed_each_batch, self._rank, size)

    def shard(self, rank: int, world_size: int) -> Source:
        return SequenceSource(
            self._batches, self.name, seed_each_batch=self._seed_each_batch, rank=rank, world_size=world_size
        )

    def size_to_divide(self) -> int | None:
        return length_of(self._batches)

    def spread(self, rank: int, world_size: int) -> Source:
        return SequenceSource(self._batches, self.name, rank=rank, world_size=world_size, keeps_rest=True)
