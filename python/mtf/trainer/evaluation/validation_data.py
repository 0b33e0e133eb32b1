"""Validation loaders on several ranks: each batch on one rank, none padded, none counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any

from mtf.data.batch import located
from mtf.data.protocols import length_of as length_of_loader
from mtf.data.sources.base import Source
from mtf.data.sources.resolve import as_source
from mtf.data.workers.fetch_timeout import FetchGuard
from mtf.data.workers.supervision import forget_ended, iterate, supervise
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError, SourceError
from mtf.trainer.evaluation.leaving import Leaving


def limit_of(loader: Any, name: str, limit: float | None) -> int | None:
    """Batches of ``loader`` that ``limit``, a number or a share of its length, allows; None: all.

    Raises:
        ConfigError: a share of a loader without a length.
    """
    if limit is None or isinstance(limit, int):
        return limit
    length = length_of(loader)
    if length is None:
        raise ConfigError(
            f"validation.limit_batches={limit} is a share, and validation loader {name!r} has no length: give a number "
            "of batches"
        )
    return max(1, int(length * limit))


def validation_batches(
    loader: Any, name: str, ranks: SingleRank, guard: FetchGuard | None, leaving: Leaving, limit: int | None = None
) -> Iterator[tuple[Any, bool]]:
    """This rank's batches of one validation, each with whether it counts.

    What mtf can divide (ArrayLoader, map-style DataLoader, a list of batches) is divided among the ranks; everything
    else, loaders with a DistributedSampler among them, is taken as each rank has it. Where the model is sharded, all
    ranks must run equally many forward passes: a rank that has no batch left runs one more that doesn't count.
    There are no more batches once ``leaving`` is due.

    Args:
        limit: batches of all ranks together, or, where each rank has batches of its own, of each. None: all.
    """
    if ranks.world_size == 1:
        for batch in islice(_located(one_pass(loader), name, guard), limit):
            if leaving.is_due():
                return
            yield batch, True
        return
    source = _divided(loader, name, ranks)
    if source is not None and limit is not None:
        limit = len(range(ranks.rank, limit, ranks.world_size))
    batches = islice(_located(one_pass(loader) if source is None else _first_pass(source), name, guard), limit)
    try:
        if ranks.is_sharded:
            yield from _together(iter(batches), ranks, leaving)
        else:
            for batch in batches:
                if leaving.is_due():
                    return
                yield batch, True
    finally:
        if source is not None:
            source.close()


def _located(batches: Iterable[Any], name: str, guard: FetchGuard | None) -> Iterator[Any]:
    """``batches``, whose errors name the loader and the batch.

    Raises:
        SourceError: The loader raised, gave None or lost a worker.
        FetchTimeout: It gave no batch within the guard's limit.
    """
    take: Callable[[], Any] | None = None
    for number in count():
        try:
            if take is None:
                forget_ended(batches)
                take = supervise(iterate(batches))
            batch = take() if guard is None else guard.call(take)
        except StopIteration:
            return
        except Exception as error:  # a loader may raise anything; it is named and chained
            raise located(error, f"validation loader {name!r}, batch {number}") from error
        if batch is None:
            raise SourceError(f"validation loader {name!r}, batch {number}: the loader gave None instead of a batch")
        yield batch


def _divided(loader: Any, name: str, ranks: SingleRank) -> Source | None:
    """This rank's part; None where the loader isn't divided by mtf."""
    try:
        whole = as_source(loader, name)
        part = whole.spread(ranks.data.rank, ranks.data.world_size) if ranks.data.world_size > 1 else whole
    except ConfigError:
        return None
    return None if part.num_batches() is None else part


def _first_pass(source: Source) -> Iterator[Any]:
    stream = source.open(0, 0, 0)
    try:
        num_batches = source.num_batches()
        assert num_batches is not None
        stream.request(min(num_batches, source.max_in_flight))
        for i in range(num_batches):
            try:
                batch = next(stream)
            except StopIteration:
                return
            if 0 < source.max_in_flight < num_batches - i:
                stream.request(1)
            yield batch
    finally:
        stream.close()


def _together(batches: Iterator[Any], ranks: SingleRank, leaving: Leaving) -> Iterator[tuple[Any, bool]]:
    """Runs until no rank has a batch left; one small reduction per batch."""
    last: Any = None
    while True:
        batch = next(batches, None)
        has_one = batch is not None
        have, have_none, leave = ranks.all_reduce_max(
            [int(has_one), int(not has_one and last is None), int(leaving.is_asked_here())]
        )
        if leave:
            leaving.note()
        if leave or not have:
            return
        if have_none:
            # A rank that never had a batch needs one to run the model on: another rank's will do.
            found = ranks.gather(batch if has_one else None)
            example = next(other for other in found if other is not None)
            last = example if last is None else last
        last = batch if has_one else last
        yield last, has_one


def length_of(loader: Any) -> int | None:
    """Batches in one pass of ``loader``, or None where that can't be known."""
    return loader.num_batches() if isinstance(loader, Source) else length_of_loader(loader)


def one_pass(loader: Any) -> Iterable[Any]:
    """The batches of ``loader`` once; a source always gives its first pass, and keeps no position."""
    return _Pass(loader) if isinstance(loader, Source) else loader


class _Pass:
    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        stream = self._source.open(0, 0, 0)
        try:
            while True:
                try:
                    batch = next(stream)
                except StopIteration:
                    return
                yield batch
        finally:
            stream.close()
