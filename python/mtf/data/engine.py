"""The native prefetch engine as Python uses it: draws are requested in bulk and taken one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mtf import _core
from mtf.data.source import Stream


class PreparedSource(_core.CallableSource):
    """A Python source that has something to do on the consumer's thread before a pass is fetched by other threads."""

    @abstractmethod
    def prepare(self, pass_: int) -> None:
        """Called before the first batch of ``pass_`` is requested, possibly again later."""


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
        for number, native in self._prepared.items():
            for pass_ in np.unique(of_pass[numbers == number]):
                native.prepare(int(pass_))
        self._core.request(numbers, of_pass, np.asarray(batches, dtype=np.int64))

    def discard(self, source: int) -> int:
        """Forgets the batches of ``source`` that were requested and not taken; returns how many there were."""
        return self._core.discard(source)

    def reset(self) -> None:
        """Forgets all batches that were requested and not taken."""
        self._core.reset()

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
    """One pass of a native source, fetched in the thread that asks."""

    def __init__(self, native: _core.NativeSource, pass_: int, batch: int, num_batches: int) -> None:
        """Starts at batch ``batch`` of the ``num_batches`` of pass ``pass_``."""
        self._engine = Engine([native], num_threads=0, max_batches=1)
        self._pass = pass_
        self._batch = batch
        self._num_batches = num_batches

    def __next__(self) -> Any:
        if self._batch >= self._num_batches:
            raise StopIteration
        self._engine.request([0], [self._pass], [self._batch])
        self._batch += 1
        return self._engine.take(0)

    def close(self) -> None:
        self._batch = self._num_batches
        self._engine.close()
