"""Lists of batches, addressed by their index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtf._core import fold_in
from mtf.data.sources.base import Snapshot, Source, Stream
from mtf.data.sources.iterator_stream import IteratorStream


def is_sequence(loader: Any) -> bool:
    """Whether batches can be taken by index: a list, a tuple, or a map-style dataset of HF ``datasets``."""
    cls = type(loader)
    return isinstance(loader, Sequence) or (cls.__name__ == "Dataset" and cls.__module__ == "datasets.arrow_dataset")


class SequenceSource(Source):
    """Each element is a batch, addressed by its index; the order is the same in every pass.

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

    def num_batches(self) -> int:
        whole = len(self._batches)
        return len(range(self._rank, whole, self._world_size)) if self._keeps_rest else whole // self._world_size

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        size = self._world_size
        places = range(batch * size + self._rank, self.num_batches() * size + self._rank, size)
        elements = (self._batches[place] for place in places)
        return IteratorStream(elements, batch, fold_in(key, pass_), self._seed_each_batch, self._rank, size)

    def shard(self, rank: int, world_size: int) -> Source:
        return SequenceSource(
            self._batches, self.name, seed_each_batch=self._seed_each_batch, rank=rank, world_size=world_size
        )

    def size_to_divide(self) -> int:
        return len(self._batches)

    def spread(self, rank: int, world_size: int) -> Source:
        return SequenceSource(self._batches, self.name, rank=rank, world_size=world_size, keeps_rest=True)
