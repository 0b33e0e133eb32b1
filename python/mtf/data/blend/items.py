"""Blends that read single rows in Python: datasets, sources of one's own, and native rows next to these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as collate_default

from mtf.data.blend.rows import NativeRows, Rows, RowSource
from mtf.data.blend.run import BlendRun
from mtf.data.sampling.sample_order import IndexOrder
from mtf.data.sources.base import Stream
from mtf.errors import SourceError

Collate = Callable[[list[Any]], Any]
Index = tuple[str, int, int, int]
"""A sample: name of its source, pass, place, row."""


class SampleDataset(torch.utils.data.Dataset[tuple[str, Any]]):
    """The samples of a blend as a map-style dataset over ``(source, pass, place, row)``.

    Attributes:
        rows: Per source what its rows are taken from.
        keys: Per source the key of its random numbers.
    """

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        self.rows = dict(rows)
        self.keys: dict[str, int] = {}

    def __getitem__(self, index: Index) -> tuple[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[Index]) -> list[tuple[str, Any]]:
        """The samples, each with the name of its source; one call per source where its dataset takes several."""
        samples: list[Any] = [None] * len(indices)
        at: dict[str, list[int]] = {}
        for number, (name, *_) in enumerate(indices):
            at.setdefault(name, []).append(number)
        for name, numbers in at.items():
            for number, item in zip(numbers, self._read(name, [indices[n] for n in numbers]), strict=True):
                samples[number] = name, item
        return samples

    def _read(self, name: str, indices: list[Index]) -> list[Any]:
        rows, key = self.rows[name], self.keys[name]
        if isinstance(rows, RowSource):
            return rows.read_rows([(pass_, place) for _, pass_, place, _ in indices], key)
        if isinstance(rows, NativeRows):
            items: list[Any] = []
            begin = 0
            while begin < len(indices):
                end, pass_ = begin, indices[begin][1]
                while end < len(indices) and indices[end][1] == pass_:
                    end += 1
                items += rows.items(key, pass_, [place for _, _, place, _ in indices[begin:end]])
                begin = end
            return items
        getitems = getattr(rows, "__getitems__", None)
        numbers = [row for *_, row in indices]
        return list(getitems(numbers)) if getitems is not None else [rows[number] for number in numbers]


class BlendCollate:
    """Makes a batch of samples that carry the names of their sources.

    Args:
        collate_fn: Of the user, or one per source with ``by_source``; None: torch's default.
        by_source: Gives ``{name: part}``.
    """

    def __init__(self, collate_fn: Collate | Mapping[str, Collate] | None, by_source: bool) -> None:
        self.collate_fn = collate_fn
        self.by_source = by_source

    def __call__(self, samples: list[tuple[str, Any]]) -> Any:
        if self.by_source:
            parts: dict[str, list[Any]] = {}
            for name, sample in samples:
                parts.setdefault(name, []).append(sample)
            return {name: self._of(name)(parts[name]) for name in parts}
        collate = self._of("")
        try:
            return collate([sample for _, sample in samples])
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            if self.collate_fn is not None or len({name for name, _ in samples}) == 1:
                raise
            raise SourceError(
                f"the samples of the sources {sorted({name for name, _ in samples})} can't be stacked ({error}): give "
                "them one structure, pass collate_fn=..., or by_source=True, which gives {name: part}"
            ) from error

    def _of(self, name: str) -> Collate:
        if isinstance(self.collate_fn, Mapping):
            found = self.collate_fn.get(name)
            return collate_default if found is None else found
        return collate_default if self.collate_fn is None else self.collate_fn


class BlendOrder(IndexOrder):
    """The samples of each batch, as one rank has them.

    Args:
        run: Gives the run that is read; a loop may begin another one.
    """

    def __init__(self, run: Callable[[], BlendRun], order: str, rank: int = 0, world_size: int = 1) -> None:
        self.run, self.words = run, order
        self.rank, self.world_size = rank, world_size

    def num_batches(self) -> int:
        return self.run().batches_per_pass

    def shard(self, rank: int, world_size: int) -> BlendOrder:
        return BlendOrder(self.run, self.words, rank, world_size)

    def describe(self) -> str:
        return self.words

    def open(self, pass_: int, key: int, batch: int) -> Iterator[list[Index]]:
        run, sizes = self.run(), self.run().sizes
        for number in range(pass_ * run.batches_per_pass + batch, (pass_ + 1) * run.batches_per_pass):
            if run.is_over(number):
                return
            size = sizes.size(number)
            share, num_greater = divmod(size, self.world_size)
            begin = sizes.start(number) + self.rank * share + min(self.rank, num_greater)
            table = run.samples(begin, share + (self.rank < num_greater))
            columns = (table.source.tolist(), table.pass_.tolist(), table.place.tolist(), table.row.tolist())
            yield [(table.names[source], *where) for source, *where in zip(*columns, strict=True)]


class ItemStream(Stream):
    """A pass of a blend that reads single rows, opened anew after each edit.

    Args:
        run: What is read.
        pass_: The pass.
        batch: The first batch to give.
        batches_per_pass: Batches of one pass.
        open_at: Opens the pass at a batch as the run is now.
    """

    def __init__(
        self, run: BlendRun, pass_: int, batch: int, batches_per_pass: int, open_at: Callable[[int], Stream]
    ) -> None:
        self._run, self._open_at = run, open_at
        self._first = pass_ * batches_per_pass
        self._batch = self._requested = batch
        self._version = run.version
        self._stream = open_at(batch)

    def request(self, num_batches: int) -> None:
        self._follow()
        self._requested += num_batches
        self._stream.request(num_batches)

    def __next__(self) -> Any:
        self._follow()
        data = next(self._stream)
        self._batch += 1
        self._requested = max(self._requested, self._batch)
        self._run.next_batch = self._first + self._batch
        return data

    def close(self) -> None:
        self._stream.close()

    def _follow(self) -> None:
        """After an edit: what was fetched ahead was drawn before it."""
        if self._version == self._run.version:
            return
        self._version = self._run.version
        self._stream.close()
        self._stream = self._open_at(self._batch)
        if self._requested > self._batch:
            self._stream.request(self._requested - self._batch)


LOADER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)


def make_loader(dataset: SampleDataset, collate: BlendCollate, options: Mapping[str, Any]) -> DataLoader[Any]:
    """The DataLoader whose machinery fetches the samples; ``options``: of ``LOADER_OPTIONS``."""
    return DataLoader(dataset, batch_sampler=[[]], collate_fn=collate, **options)
