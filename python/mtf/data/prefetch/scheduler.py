"""Asks workers for the draws that come, in the schedule's order and under one budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.nested import num_bytes
from mtf.data.prefetch.native_reader import NativeReader
from mtf.data.prefetch.source_reader import Held, SourceReader
from mtf.data.sources.base import Source

if TYPE_CHECKING:
    from mtf.data.prefetch.engine import Engine

LEAST_BATCHES = 16
"""Batches held ahead where ``prefetch_batches`` isn't given."""


class PrefetchScheduler:
    """The one budget of a MultiLoader, over batches in threads and in worker processes.

    Sources that fetch when they are asked hold nothing and don't count. With native sources and worker processes in one
    mixture each kind gets a part of the budget according to its number of sources.

    Args:
        config: Its ``prefetch_batches``, ``prefetch_bytes`` and ``prefetch_workers`` are used.
        sources: The sources at the start.
        timeout_s: Seconds that a native fetch may take, None for no limit.
    """

    def __init__(self, config: MultiDataLoaderConfig, sources: Sequence[Source], timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._held = Held()
        self._engine: Engine | None = None
        natives = [source for source in sources if source.is_native]
        num_native = len(natives)
        wanted = max((source.num_threads for source in natives), default=1)
        self._num_threads = wanted if config.prefetch_workers is None else config.prefetch_workers
        num_worker_sources = sum(source.max_in_flight > 0 for source in sources)
        # Workers that several sources share hold their batches once.
        workers = {id(source.worker_group or source): source.max_in_flight for source in sources}
        in_workers = sum(workers.values())
        batches = config.prefetch_batches
        if batches is None:
            batches = max(LEAST_BATCHES, in_workers // 2, 2 * self._num_threads)
        share = num_native / (num_native + num_worker_sources) if num_native and num_worker_sources else 1.0
        self._native_batches = max(1, round(batches * share))
        if config.prefetch_bytes is None:
            worth = [source.ahead_bytes for source in natives if source.ahead_bytes is not None]
            self._native_bytes = max(worth) if worth and len(worth) == num_native else None
        else:
            self._native_bytes = max(1, int(config.prefetch_bytes * share))
        self._max_batches = batches if share == 1.0 else max(1, batches - self._native_batches)
        self._max_bytes: int | None = None
        if config.prefetch_bytes is not None:
            self._max_bytes = (
                config.prefetch_bytes if share == 1.0 else config.prefetch_bytes - (self._native_bytes or 0)
            )
        self._order: Sequence[SourceReader | NativeReader] = ()
        self._waiting: list[tuple[SourceReader, int, int, int]] = []  # (reader, pass, batch, place), not yet requested
        self._next = 0

    def reader(self, source: Source, key: int) -> SourceReader | NativeReader:
        """A reader of ``source`` that counts against the budget."""
        native = source.native(key)
        if native is None:
            return SourceReader(source, key, self._held)
        from mtf.data.prefetch.engine import Engine

        if self._engine is None:
            self._engine = Engine([], self._num_threads, self._native_batches, self._native_bytes)
        return NativeReader(source, self._engine, self._engine.add_source(native), self._timeout_s)

    def start(
        self,
        order: Sequence[SourceReader | NativeReader],
        sources: Sequence[int],
        passes: Sequence[int],
        batches: Sequence[int],
    ) -> None:
        """Takes over the next draws, from the current step on; those requested before aren't asked for twice."""
        self._order = order
        requested = [reader.in_flight + (reader.pending_batch is not None) for reader in order]
        numbers: list[int] = []
        native_passes: list[int] = []
        native_batches: list[int] = []
        self._waiting, self._next = [], 0
        try:
            for place, source in enumerate(sources):
                reader = order[source]
                if requested[source]:
                    requested[source] -= 1
                elif isinstance(reader, NativeReader):
                    numbers.append(reader.number)
                    native_passes.append(passes[place])
                    native_batches.append(batches[place])
                    reader.note(passes[place], batches[place])
                elif reader.source.max_in_flight:
                    self._waiting.append((reader, passes[place], batches[place], place))
            if numbers and self._engine is not None:
                self._engine.request(numbers, native_passes, native_batches)
        except BaseException:  # Ctrl-C: what was noted may not have been requested
            for reader in order:
                if isinstance(reader, NativeReader):
                    reader.discard()
            raise
        self._ask()

    def took(self, place: int, reader: SourceReader | NativeReader, data: Any) -> None:
        """A batch was taken at ``place``: asks for as many more as the budget has room for."""
        if self._next < len(self._waiting):
            if self._max_bytes is not None and isinstance(reader, SourceReader):
                reader.batch_bytes = max(reader.batch_bytes, num_bytes(data))
            while self._next < len(self._waiting) and self._waiting[self._next][3] <= place:
                self._next += 1  # taken without having been asked for
            self._ask()

    def _ask(self) -> None:
        held = self._held
        while self._next < len(self._waiting) and held.num_batches < self._max_batches:
            reader, pass_, batch, _ = self._waiting[self._next]
            if self._max_bytes is not None and not self._fits(reader):
                return
            try:
                reader.request(pass_, batch)
            except BaseException as error:
                self._give_up(reader)
                if not isinstance(error, Exception):
                    raise
            else:
                self._next += 1

    def _give_up(self, reader: SourceReader) -> None:
        """After an error while asking (a sampler's, a fork's): its batches are fetched when they are due, and what is
        wrong is raised there. Nobody knows what its stream still gives, nor what workers hold that it shares."""
        group = reader.source.worker_group
        lost = [reader] if group is None else [other for other in self._order if other.source.worker_group is group]
        for other in lost:
            other.close()
        self._waiting = [draw for draw in self._waiting[self._next :] if draw[0] not in lost]
        self._next = 0

    def _fits(self, reader: SourceReader) -> bool:
        """Whether one more batch of ``reader`` stays within the bytes.

        A batch counts as much as its source's largest so far; before a source has given one, as much as any source's
        largest. Before anything was given, one batch is asked for at a time.
        """
        assert self._max_bytes is not None
        streams = {id(other): other for other in self._order if isinstance(other, SourceReader)}.values()
        largest = max((other.batch_bytes for other in streams), default=0)
        if largest == 0:
            return self._held.num_batches == 0
        held = sum(other.in_flight * (other.batch_bytes or largest) for other in streams)
        return held + (reader.batch_bytes or largest) <= self._max_bytes

    def engine_stats(self) -> dict[str, Any] | None:
        """Statistics of the native engine, None without native sources."""
        return None if self._engine is None else self._engine.stats()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
