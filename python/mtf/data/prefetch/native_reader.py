"""Reads one source that the native engine fetches on its threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mtf.data.sources.base import Snapshot, Source
from mtf.data.workers.fetch_timeout import thread_stacks
from mtf.errors import FetchTimeout

if TYPE_CHECKING:
    from mtf.data.prefetch.engine import Engine


class NativeReader:
    """The batches of one native source, in the order in which they were requested.

    Args:
        source: The source.
        engine: Fetches it; shared by all native sources.
        number: The source's number in the engine.
        timeout_s: Seconds to wait for a batch, None for no limit.
    """

    snapshot = None
    pending_batch: None = None
    overruns: Sequence[tuple[int, int]] = ()

    def __init__(self, source: Source, engine: Engine, number: int, timeout_s: float | None) -> None:
        self.source = source
        self.engine = engine
        self.number = number
        self._timeout_s = timeout_s
        self._requested: deque[tuple[int, int]] = deque()

    @property
    def in_flight(self) -> int:
        """Batches requested and not yet taken."""
        return len(self._requested)

    def note(self, pass_: int, batch: int) -> None:
        """Remembers a draw that is requested from the engine."""
        self._requested.append((pass_, batch))

    def saved(self) -> Snapshot | None:
        """What a run has made of the source; nothing where a position is enough."""
        return self.source.run_state() if self.source.has_run_state else None

    def take(self, pass_: int, batch: int) -> Any:
        """The batch at (pass_, batch); None if the loader gave that.

        After None or an error another attempt fetches it again.
        """
        requested = self._requested
        try:
            if not requested or requested[0] != (pass_, batch):
                self.discard()
                requested.append((pass_, batch))
                self.engine.request([self.number], [pass_], [batch])
            data = self.engine.take(self.number, self._timeout_s)
        except FetchTimeout as error:
            self.discard()
            raise FetchTimeout(f"{error}; the threads stood at:\n{thread_stacks()}") from None
        except BaseException:
            self.discard()
            raise
        if data is None:
            self.discard()
        else:
            requested.popleft()
        return data

    def discard(self) -> None:
        """Forgets what was requested."""
        if self._requested:
            self.engine.discard(self.number)
            self._requested.clear()

    def close(self) -> None:
        """Forgets what was requested; the engine is closed by its owner."""
        self.discard()
        self.source.close()
