"""What loaders of rows have in common: batch sizes, ranks, positions."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, TypeVar

from mtf._core import NativeSource
from mtf.config.checks import whole_number
from mtf.data.prefetch.engine import NativeStream
from mtf.data.sources.base import ResumeMode, Snapshot, Source, Stream
from mtf.data.sources.rest_of_pass import PassCut, RestOfPass
from mtf.data.sources.standalone import StandaloneSource
from mtf.data.tracing.samples import BatchTrace, SamplePlace, Sought, TokenOrigin, rank_of
from mtf.errors import ConfigError
from mtf.random import Permutation, fold_in

_Rows = TypeVar("_Rows", bound="RowLoader")


class RowLoader(StandaloneSource):
    """Batches of rows that can be given in any order, gathered natively. A base class.

    The global batches of a pass don't depend on the number of ranks: each is divided among them.
    """

    resume_mode = ResumeMode.SEEK
    # Rows copied ahead that leave the cache before they are used are copied from memory twice: more would cost time.
    ahead_bytes = 16 << 20
    may_grow = True  # more rows leave those there were where they are in the order of a pass
    _rest: RestOfPass | None = None

    def _prepare_rows(
        self,
        num_rows: int,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        shuffle: bool,
        drop_last: bool = False,
        seed: int = 0,
        num_threads: int = 1,
        prefetch_batches: int = 8,
        prefetch_bytes: int | None = None,
    ) -> None:
        if batch_size is not None and global_batch_size is not None:
            raise ConfigError(
                "give either batch_size (per rank) or global_batch_size, "
                f"but they are {batch_size} and {global_batch_size}"
            )
        self._num_rows = num_rows
        self._batch_size = None if batch_size is None else whole_number("batch_size", batch_size, 1)
        self._global_batch_size = (
            None if global_batch_size is None else whole_number("global_batch_size", global_batch_size, 1)
        )
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._rank = 0
        self._world_size = 1
        self._prepare_alone(seed, num_threads, whole_number("prefetch_batches", prefetch_batches, 1), prefetch_bytes)

    @property
    def num_rows(self) -> int:
        """Rows (or windows) of one pass, all ranks together."""
        return self._num_rows

    @property
    def global_batch_size(self) -> int:
        """Rows of a full batch, all ranks together."""
        if self._global_batch_size is not None:
            return self._global_batch_size
        if self._batch_size is None:
            raise ConfigError(
                f"{type(self).__name__}: give batch_size (per rank) or global_batch_size, which rows need unless they "
                "are only used in a Blend"
            )
        return self._batch_size * self._world_size

    def num_batches(self) -> int:
        full, rest = divmod(self._num_rows, self.global_batch_size)
        return full + (rest > 0 and not self._drop_last)

    def __len__(self) -> int:
        return self.num_batches()

    @abstractmethod
    def native(self, key: int) -> NativeSource: ...

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        return NativeStream(self.native(key), pass_, batch, self.num_batches())

    def drop_last(self: _Rows) -> _Rows:
        other = copy.copy(self)
        other._drop_last = True
        return other

    def shard(self: _Rows, rank: int, world_size: int) -> _Rows:
        """The loader of one rank: each global batch is divided among the ranks in order, as evenly as can be.

        Raises:
            ConfigError: It is one rank's part already, or there are more ranks than rows in a global batch.
        """
        if self._world_size > 1:
            raise ConfigError(
                f"source {self.name!r} is already the part of rank {self._rank} of {self._world_size}; "
                "shard the whole loader"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must be in [0, world_size={world_size}), but is {rank}")
        if self._global_batch_size is not None and self._global_batch_size < world_size:
            raise ConfigError(
                f"source {self.name!r}: global_batch_size must be at least the number of ranks, {world_size}, "
                f"but is {self._global_batch_size}"
            )
        other = copy.copy(self)
        other._rank, other._world_size = rank, world_size
        return other

    def size_to_divide(self) -> int:
        return self._num_rows

    def spread(self, rank: int, world_size: int) -> Source:
        return _Spread(self, rank, world_size)

    def pass_cut(self, world_size: int) -> PassCut | None:
        return PassCut(self._num_rows, self.global_batch_size, self._drop_last, self.may_grow)

    def finish_pass(self: _Rows, rest: RestOfPass) -> _Rows:
        other = copy.copy(self)
        other._rest = rest
        return other

    def as_it_was(self: _Rows, cut: PassCut, rest: RestOfPass | None) -> _Rows:
        """The loader for ``trace_batch`` and ``find_batches`` of batches that were cut otherwise."""
        other = copy.copy(self)
        other._num_rows, other._drop_last, other._rest = cut.num_samples, cut.drop_last, rest
        other._batch_size, other._global_batch_size = None, cut.global_batch_size
        return other

    def weight(self, pass_: int, batch: int) -> float:
        if self._rest is not None and self._rest.pass_ == pass_:
            rows = len(self._rest.places(batch, self.global_batch_size))
        else:
            rows = min(self.global_batch_size, self._num_rows - batch * self.global_batch_size)
        share, num_greater = divmod(rows, self._world_size)
        return (share + (self._rank < num_greater)) * self._world_size / rows

    def trace_batch(self, pass_: int, batch: int, key: int) -> BatchTrace:
        size, rest = self.global_batch_size, self._rest_of(pass_)
        first = 0 if rest is None else rest.first_batch
        if not first <= batch < self.num_batches():
            raise ConfigError(
                f"source {self.name!r}: batch must be in [{first}, {self.num_batches()}), but is {batch}"
                + ("" if rest is None else f", because earlier ones of pass {pass_} were cut otherwise")
            )
        places = range(batch * size, min((batch + 1) * size, self._num_rows))
        if rest is not None:
            places = rest.places(batch, size)
        begin, end = places.start, places.stop
        rows: Any = places
        if self._shuffle:
            rows = self._pass_order(pass_, key).fill(begin, end).tolist()
        samples = [self._sample_at(pass_, begin + place, row) for place, row in enumerate(rows)]
        step = pass_ * self.num_batches() + batch
        return BatchTrace(step, self._world_size, samples, lambda place: self.tokens_at(pass_, begin + place, key))

    def find_batches(self, sought: Sought, passes: range, key: int) -> list[SamplePlace]:
        if sought.within is not None:
            raise ConfigError(f"source {self.name!r} isn't a blend and has no source {sought.within!r}")
        if sought.document is None and (sought.row is None or not 0 <= sought.row < self._num_rows):
            raise ConfigError(f"source {self.name!r}: row must be in [0, {self._num_rows}), but is {sought.row}")
        found = []
        for pass_ in passes:
            rest = self._rest_of(pass_)
            if sought.document is not None:
                places = self.places_of_document(sought.document, pass_, key)
            elif rest is not None and (sought.row or 0) >= rest.num_samples:
                places = []  # the pass began before there was this row
            else:
                row = sought.row or 0
                places = [self._pass_order(pass_, key).inverse(row) if self._shuffle else row]
            for place in places:
                if rest is not None and place < rest.first_sample:
                    continue  # it was given before the pass was cut otherwise
                if self._batch_at(pass_, place)[0] < self.num_batches():  # else drop_last leaves it out
                    row = self._pass_order(pass_, key)[place] if self._shuffle else place
                    found.append(self._sample_at(pass_, place, row))
        return found

    def tokens_at(self, pass_: int, place: int, key: int) -> list[TokenOrigin]:
        """Where the tokens of the row at a place of a pass come from; empty where rows have no tokens."""
        return []

    def places_of_document(self, document: int, pass_: int, key: int) -> list[int]:
        """The places of a pass whose rows have a token of a document.

        Raises:
            ConfigError: The rows have no documents, or not this one.
        """
        raise ConfigError(
            f"source {self.name!r} has no documents, so that document={document} can't be found; give row, the row's "
            "number in the source"
        )

    def record(self) -> dict[str, Any]:
        return {
            "kind": "rows",
            "rows": self._num_rows,
            "shuffle": self._shuffle,
            "global_batch_size": self.global_batch_size if self._has_batches else None,
            "drop_last": self._drop_last,
        }

    @property
    def _has_batches(self) -> bool:
        return self._batch_size is not None or self._global_batch_size is not None

    def _pass_order(self, pass_: int, key: int) -> Permutation:
        rest = self._rest_of(pass_)
        return Permutation(self._num_rows if rest is None else rest.num_samples, fold_in(key, pass_))

    def _rest_of(self, pass_: int) -> RestOfPass | None:
        """What is left of the pass, where it began with other batches or fewer rows."""
        return self._rest if self._rest is not None and self._rest.pass_ == pass_ else None

    def _batch_at(self, pass_: int, place: int) -> tuple[int, int, int]:
        """Number of the batch that has a place of a pass, the place in this batch, and its size."""
        rest, full = self._rest_of(pass_), self.global_batch_size
        if rest is not None:
            batch, in_batch = divmod(place - rest.first_sample, full)
            return batch + rest.first_batch, in_batch, len(rest.places(batch + rest.first_batch, full))
        batch, in_batch = divmod(place, full)
        return batch, in_batch, min(full, self._num_rows - batch * full)

    def _sample_at(self, pass_: int, place: int, row: int) -> SamplePlace:
        batch, in_batch, size = self._batch_at(pass_, place)
        rank, first = rank_of(in_batch, size, self._world_size)
        step = pass_ * self.num_batches() + batch
        return SamplePlace(step, in_batch, rank, in_batch - first, self.name, pass_, row)

    def global_batch_size_on(self, world_size: int) -> int:
        return self.global_batch_size

    def order(self) -> str | None:
        return "shuffled" if self._shuffle else "in order"

    def _shape(self) -> dict[str, int | None]:
        return {"num_rows": self._num_rows, "global_batch_size": self.global_batch_size}


class _Spread(Source):
    """Whole batches of a RowLoader, every ``world_size``-th of them."""

    def __init__(self, loader: RowLoader, rank: int, world_size: int) -> None:
        self.name = loader.name
        self._loader = loader
        self._rank, self._world_size = rank, world_size

    def num_batches(self) -> int:
        return len(range(self._rank, self._loader.num_batches(), self._world_size))

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        return _SpreadStream(self._loader, pass_, key, self._rank + batch * self._world_size, self._world_size)


class _SpreadStream(Stream):
    def __init__(self, loader: RowLoader, pass_: int, key: int, batch: int, step: int) -> None:
        self._native = loader.native(key)
        self._pass, self._batch, self._step, self._end = pass_, batch, step, loader.num_batches()

    def __next__(self) -> Any:
        if self._batch >= self._end:
            raise StopIteration
        data = next(NativeStream(self._native, self._pass, self._batch, self._end))
        self._batch += self._step
        return data
