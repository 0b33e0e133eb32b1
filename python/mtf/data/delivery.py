"""Takes batches from the readers in the order of the draws, and tells the schedule where lengths were wrong."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from mtf.call_site import user_level
from mtf.data.agreed_lengths import warn_of_same_data
from mtf.data.batch import Batch, located, place_of
from mtf.data.blend.tracing.origins import carry_origins, remember_origin
from mtf.data.cursor import Cursor
from mtf.data.determinism.content_hash import short_hash
from mtf.data.determinism.recent_batches import RecentBatches
from mtf.data.prefetch.source_reader import PassEnded, SourceReader
from mtf.data.source_set import SourceSet
from mtf.data.sources.base import Source
from mtf.data.workers.fetch_timeout import FetchGuard
from mtf.errors import Closed, SourceError


class Lifetime:
    """Whether a mixture is open, in the process that made it."""

    def __init__(self) -> None:
        self.closed = False
        self._pid = os.getpid()

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the one that made the mixture."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises ``Closed`` where the mixture can't be used."""
        if self.closed:
            raise Closed("this MultiLoader is closed")
        # guard: fork
        if os.getpid() != self._pid:
            raise Closed("this MultiLoader belongs to the parent process: make one after the fork")


class Delivery:
    """Hands out the batches of a mixture, each exactly once, and moves the cursor by one for each.

    Args:
        cursor: Gives the draws.
        sources: Give the batches.
        guard: Limits the time of a fetch; None for no limit.
        mover: Puts a batch on the device; None leaves it where the loader made it.
        recent_batches: Gets the hash of every batch; None to take none.
        world_size: Number of processes.
        lifetime: Whether the mixture can still be used; looked at before draws are taken.

    Attributes:
        num_steps: Batches handed out.
        wait_s: Seconds waited for the batches of each source, by index; only grows, also when loaders come and go.
        ended_passes: (name, pass) of passes whose end no length had told before.
    """

    def __init__(
        self,
        cursor: Cursor,
        sources: SourceSet,
        *,
        guard: FetchGuard | None,
        mover: Callable[[Any], Any] | None,
        recent_batches: RecentBatches | None,
        world_size: int,
        lifetime: Lifetime,
    ) -> None:
        self._cursor = cursor
        self._sources = sources
        self._guard = guard
        self._mover = mover
        self._recent_batches = recent_batches
        self._world_size = world_size
        self._lifetime = lifetime
        self._order = sources.in_order(cursor.names)  # readers by source index
        self.num_steps = 0
        self.wait_s = [0.0] * len(self._order)
        self.ended_passes: list[tuple[str, int]] = []

    def next(self) -> Batch:
        """The batch at the position, which moves on by one.

        Raises:
            StopIteration: The epoch has ended.
        """
        cursor = self._cursor
        while True:
            if cursor.place >= cursor.refill_at:
                self._refill()
                if cursor.place >= cursor.num_drawn:
                    raise StopIteration
            place = cursor.place
            source, pass_, batch = cursor.sources[place], cursor.passes[place], cursor.batches[place]
            reader = self._order[source]
            if reader.source.has_end and reader.source.is_over(pass_, batch):
                raise StopIteration
            before = None if self._recent_batches is None else reader.saved()
            start = time.perf_counter()
            try:
                data = reader.take(pass_, batch) if self._guard is None else self._guard.call(reader.take, pass_, batch)
            except PassEnded as ended:
                self._on_pass_end(source, pass_, ended.num_batches)
                continue
            except BaseException as error:
                self._sources.discard_ended_workers()
                if isinstance(error, Exception):  # a loader may raise anything; it is named and chained
                    raise located(error, self._location(source, pass_, batch)) from error
                raise
            if data is None:
                raise SourceError(f"{self._location(source, pass_, batch)}: the loader gave None instead of a batch")
            self.wait_s[source] += time.perf_counter() - start
            if self._sources.undivided:
                self._compare_ranks(cursor.names[source], data)
            self._sources.prefetch.took(place, reader, data)
            index = cursor.counts[source]
            handed = Batch(
                data if self._mover is None else self._mover(data),
                source,
                cursor.names[source],
                cursor.first_step + place,
                pass_,
                batch,
                index,
                cursor.epoch,
                1.0 if self._world_size == 1 else reader.source.weight(pass_, batch),
            )
            if reader.source.names_rows or reader.source.reads_loaders:
                keep_origin(reader.source, data, handed)
            if self._recent_batches is not None:
                self._recent_batches.note(cursor.names[source], pass_, batch, data, before)
            # Whatever interrupts the lines above, the position still stands before this batch, which comes again then.
            # Nothing interrupts these: Python looks at signals where functions are called and loops go round.
            cursor.counts[source] = index + 1
            self.num_steps += 1
            cursor.place = place + 1
            reader.pending_batch = None
            if reader.overruns:
                self._on_late_end(source)
            return handed

    def _compare_ranks(self, name: str, data: Any) -> None:
        """Warns once, at the first batch of a source that isn't divided, where all ranks have the same."""
        if name in self._sources.undivided:
            self._sources.undivided.discard(name)
            warn_of_same_data(name, short_hash(data), self._sources.ranks)

    def _refill(self) -> None:
        """Takes the next draws from the schedule and asks for them ahead."""
        self._lifetime.check()
        cursor = self._cursor
        if not cursor.refill():
            return
        self._order = self._sources.in_order(cursor.names)
        self.wait_s += [0.0] * (len(cursor.names) - len(self.wait_s))
        self._sources.prefetch.start(self._order, cursor.sources, cursor.passes, cursor.batches)

    def _on_pass_end(self, source: int, pass_: int, num_batches: int) -> None:
        name, expected = self._cursor.names[source], self._cursor.schedule.lengths[source]
        if num_batches == 0:
            raise SourceError(f"{self._location(source, pass_, 0)}: the loader gave no batch at all")
        self.ended_passes.append((name, pass_))
        self._cursor.end_pass(source, num_batches)
        if expected is not None:
            warnings.warn(
                f"{name}: pass {pass_} ended after {num_batches} batches, but len() said {expected}; correct the "
                "loader's len(), so that the schedule is right from the start",
                stacklevel=user_level(),
            )

    def _on_late_end(self, source: int) -> None:
        reader = self._order[source]
        late = list(reader.overruns)
        if isinstance(reader, SourceReader):
            reader.overruns.clear()
        self._cursor.schedule.extend_pass(source, late[-1][1] + 1)
        for pass_, length in late:
            warnings.warn(
                f"{self._cursor.names[source]}: pass {pass_} went on after {length} batches, where len() said it "
                "would end; the rest was left out: correct the loader's len()",
                stacklevel=user_level(),
            )

    def _location(self, source: int, pass_: int, batch: int) -> str:
        return place_of(self._cursor.names[source], pass_, batch, self._cursor.epoch, self._cursor.step)


class EpochIterator(Iterator[Batch]):
    """The rest of an epoch; it ends where the epoch ends, and stays ended."""

    def __init__(self, delivery: Delivery, cursor: Cursor) -> None:
        self._delivery: Delivery | None = delivery
        self._cursor = cursor
        self._epoch = cursor.epoch

    def __next__(self) -> Batch:
        delivery = self._delivery
        if delivery is None:
            raise StopIteration
        if self._cursor.epoch != self._epoch:
            self._delivery = None
            raise StopIteration
        try:
            return delivery.next()
        except StopIteration:
            self._delivery = None
            raise


def keep_origin(source: Source, data: Any, handed: Batch) -> None:
    """Lets ``sources_of`` answer for a batch as it was handed out, which a mover may have made anew of ``data``."""
    if source.names_rows:
        remember_origin(handed.data, source, handed.pass_, handed.batch)
    elif handed.data is not data:
        carry_origins(data, handed.data)
