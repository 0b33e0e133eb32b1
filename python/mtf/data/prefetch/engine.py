"""The native prefetch engine as Python uses it: draws are requested in bulk and taken one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mtf import _core
from mtf.data.prefetch.source_reader import PassEnded
from mtf.data.sources.base import Stream


class PreparedSource(_core.CallableSource):
    """A Python source that has something to do on the consumer's thread before other threads fetch.

    Each request gets a ticket, a number of its own: ``fetch`` is called with ``(pass_, ticket)``, once at most.
    """

    @abstractmethod
    def prepare(self, passes: list[int], batches: list[int]) -> list[int]:
        """Called when these batches are requested, in the order in which they will be taken.

        Returns:
            Their tickets, none of which was given before.
        """

    @abstractmethod
    def forget(self) -> None:
        """Called when all that was requested and not taken is forgotten. A fetch may still be running or about to; what
        it gives or raises is dropped."""


class Engine:
    """Fetches the batches of several native sources ahead, in the order in which they will be taken, under one budget.

    What the consumer waits for is fetched whatever the budget says, so at most the budget and one batch are held. One
    thread requests and takes. A forked child's copy raises ``Closed``; when the interpreter exits, engines are closed.

    Attributes:
        take: ``take(source, timeout_s=None)`` gives the oldest requested batch of a source. It raises what the fetch of
            that batch raised, with its traceback; ``FetchTimeout`` after ``timeout_s`` seconds; ``Closed`` after
            ``close``; ``ConfigError`` if no batch of the source is requested. Ctrl-C ends the wait. A batch whose fetch
            raised counts as taken.
    """

    take: Callable[..., Any]

    def __init__(
        self,
        natives: Sequence[_core.NativeSource],
        num_threads: int = 1,
        max_batches: int = 16,
        max_bytes: int | None = None,
    ) -> None:
        """Makes the engine; threads start with the first request.

        Args:
            natives: The sources; their places in the sequence are their numbers.
            num_threads: Worker threads; with 0 each batch is fetched by the ``take`` that asks for it.
            max_batches: Budget in batches that are fetched or being fetched and not yet taken, at least 1.
            max_bytes: Budget in bytes of these, or None. A batch greater than it is fetched only when it is asked for.
        """
        self._core = _core.Prefetcher(list(natives), num_threads, max_batches, max_bytes)
        self._prepared: dict[int, PreparedSource] = {
            number: native for number, native in enumerate(natives) if isinstance(native, PreparedSource)
        }
        self.take = self._core.take

    def add_source(self, native: _core.NativeSource) -> int:
        """Adds a source to the running engine and returns its number."""
        number = self._core.add_source(native)
        if isinstance(native, PreparedSource):
            self._prepared[number] = native
        return number

    def request(self, sources: ArrayLike, passes: ArrayLike, batches: ArrayLike) -> None:
        """Appends draws in the order in which they will be taken.

        Args:
            sources: Number of the source of each draw, int32 ``[n]``.
            passes: Pass of each draw, int64 ``[n]``.
            batches: Batch inside that pass, int64 ``[n]``.

        Raises:
            ConfigError: Unequal lengths, or a source that doesn't exist; nothing is appended.
            Closed: The engine was closed.
        """
        numbers = np.asarray(sources, dtype=np.int32)
        of_pass = np.asarray(passes, dtype=np.int64)
        addresses = np.asarray(batches, dtype=np.int64)
        if self._prepared and len(numbers) == len(of_pass) == len(addresses):
            addresses = addresses.copy()
            for number, native in self._prepared.items():
                places = np.flatnonzero(numbers == number)
                if len(places):
                    addresses[places] = native.prepare(of_pass[places].tolist(), addresses[places].tolist())
        self._core.request(numbers, of_pass, addresses)

    def discard(self, source: int) -> int:
        """Forgets the batches of ``source`` that were requested and not taken; returns how many there were."""
        num_forgotten = self._core.discard(source)
        if source in self._prepared:
            self._prepared[source].forget()
        return num_forgotten

    def reset(self) -> None:
        """Forgets all batches that were requested and not taken."""
        self._core.reset()
        for native in self._prepared.values():
            native.forget()

    def stats(self) -> dict[str, Any]:
        """Where the time goes, and what is held.

        Returns:
            ``wait_s`` (seconds the consumer waited in ``take``), ``num_taken``, ``num_taken_ready`` (of these, there
            when asked for), ``num_in_caller`` (fetched by the consumer itself), ``num_wakeups``; now: ``num_queued``,
            ``num_running``, ``num_ready``, ``bytes_held``; ``mean_ready`` (ready batches found at a take),
            ``peak_bytes_held``, ``peak_batches_held``; lists per source: ``source_fetch_s``, ``source_num_fetched``,
            ``source_num_taken``. A consumer that waits with nothing ready needs more threads or faster storage.
        """
        return self._core.stats()

    def close(self) -> None:
        """Wakes everybody, forgets all batches, ends the threads. May be called several times.

        A thread that is still inside a fetch after five seconds is left behind.
        """
        self._core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NativeStream(Stream):
    """One pass of a native source, outside a mixture's engine."""

    def __init__(
        self, native: _core.NativeSource, pass_: int, batch: int, num_batches: int | None, num_threads: int = 0
    ) -> None:
        """Starts at batch ``batch`` of the ``num_batches`` of pass ``pass_``.

        Args:
            native: The source.
            pass_: The pass.
            batch: The first batch to give.
            num_batches: Batches in the pass; None where only the source notices its end.
            num_threads: Threads that fetch what is requested; with 0 a batch is fetched by ``next``.
        """
        self._engine = Engine([native], num_threads, max_batches=max(1, 2 * num_threads))
        self._pass = pass_
        self._batch = self._requested = batch
        self._num_batches = num_batches
        self._ended = False

    def request(self, num_batches: int) -> None:
        stop = self._requested + num_batches
        if self._num_batches is not None:
            stop = min(stop, self._num_batches)
        count = stop - self._requested
        if count > 0 and not self._ended:
            batches = np.arange(self._requested, stop, dtype=np.int64)
            self._engine.request(np.zeros(count, np.int32), np.full(count, self._pass, np.int64), batches)
            self._requested = stop

    def __next__(self) -> Any:
        if self._batch == self._requested:
            self.request(1)
        if self._ended or self._batch == self._requested:
            raise StopIteration
        self._batch += 1
        try:
            return self._engine.take(0)
        except PassEnded:
            self._ended = True
            raise StopIteration from None

    def close(self) -> None:
        self._ended = True
        self._engine.close()
