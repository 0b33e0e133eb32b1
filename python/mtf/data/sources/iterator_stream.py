"""One pass of a plain iterator, each batch under generators seeded from its position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mtf._core import fold_in
from mtf.data.determinism.content_hash import short_hash
from mtf.data.rng.generators import BatchSeed
from mtf.data.sources.base import Snapshot, Stream
from mtf.data.workers.supervision import end_workers, has_workers, supervise


class IteratorStream(Stream):
    """Batches of an iterator, each produced under generators seeded from its position."""

    def __init__(
        self,
        iterator: Iterator[Any],
        batch: int,
        pass_key: int,
        seed_each_batch: bool,
        rank: int = 0,
        world_size: int = 1,
        *,
        hashes: bool = False,
        state: Callable[[], Any] | None = None,
    ) -> None:
        self._iterator = iterator
        self._take: Callable[[], Any] | None = supervise(iterator)
        # Of the next batch, among those of all ranks.
        self._number, self._stride = batch * world_size + rank, world_size
        self._pass_key = pass_key
        self._seed = BatchSeed() if seed_each_batch else None
        self._hashes = hashes
        self._state = state
        self._digest = ""

    def __next__(self) -> Any:
        if self._take is None:
            raise StopIteration
        seed = self._seed
        if seed is None:
            data = self._take()
        else:
            seed.enter(fold_in(self._pass_key, self._number))
            try:
                data = self._take()
            finally:
                seed.exit()
        self._number += self._stride
        if self._hashes:
            self._digest = short_hash(data)
        return data

    def snapshot(self, pass_: int, batch: int) -> Snapshot:
        return Snapshot(pass_, batch, None if self._state is None else self._state(), digest=self._digest)

    def has_workers(self) -> bool:
        return self._take is not None and has_workers(self._iterator)

    def close(self) -> None:
        if self._take is not None:
            self._take = None
            end_workers(self._iterator)
