"""Reads one source in the schedule's order: opens passes, asks workers ahead, notices where a pass ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from mtf.data.sources.base import ResumeMode, Snapshot, Source, Stream


class PassEnded(Exception):
    """A pass gave fewer batches than were asked for."""

    def __init__(self, num_batches: int) -> None:
        super().__init__(num_batches)
        self.num_batches = num_batches


@dataclass
class Held:
    """How many batches all readers together have requested from workers and not taken yet."""

    num_batches: int = 0


class SourceReader:
    """The batches of one source, one after the other.

    Draws of a source come in the order of (pass, batch) whatever the schedule does with the other sources, so what was
    requested stays right through edits.

    Args:
        source: What is read.
        key: Key of the source's random numbers.
        held: Counts for all readers.

    Attributes:
        snapshot: State after the last batch taken; None for sources without one, and before the first batch.
        in_flight: Batches requested and not yet taken.
        batch_bytes: The largest batch taken so far, 0 as long as nobody measured one.
        overruns: (pass, length) of passes that had more batches than ``num_batches()`` said, since it was last emptied.
        pending_batch: (pass, batch, data, snapshot before it) of the batch taken last; None once it was handed out,
            which the consumer says by setting it so. Until then ``saved`` gives the position before it, and
            ``take`` gives it again, because the consumer may be interrupted in between.
    """

    def __init__(self, source: Source, key: int, held: Held) -> None:
        self.source = source
        self.key = key
        self._held = held
        self.snapshot: Snapshot | None = None
        self.in_flight = 0
        self.batch_bytes = 0
        self.overruns: list[tuple[int, int]] = []
        self.pending_batch: tuple[int, int, Any, Snapshot | None] | None = None
        self._has_state = source.resume_mode is not ResumeMode.SEEK
        self._sees_end = source.resume_mode is not ResumeMode.SEEK
        self._stream: Stream | None = None
        self._pass = 0
        self._batch = 0
        self._checked: tuple[int, int] | None = None  # the position at which the pass's length was last looked at
        # Passes opened before the current one has ended, and how much was requested of each pass after the current one.
        self._opened: deque[tuple[int, Stream]] = deque()
        self._later: dict[int, int] = {}

    @property
    def position(self) -> tuple[int, int] | None:
        """(pass, batch) of the next batch in order, None before anything was opened."""
        return None if self._stream is None else (self._pass, self._batch)

    def saved(self) -> Snapshot | None:
        """What has to be saved of the source at this position."""
        if self.source.has_run_state:
            return self.source.run_state(pending=self.pending_batch is not None)
        if self.pending_batch is not None:
            return self.pending_batch[3]
        if self.snapshot is None and self._has_state:
            self.snapshot = self._before_everything()
        return self.snapshot

    def take(self, pass_: int, batch: int) -> Any:
        """The batch at (pass_, batch); None if the loader gave that.

        After None or an error another attempt opens the position again.

        Raises:
            PassEnded: The pass has no such batch.
        """
        if self.pending_batch is not None and self.pending_batch[:2] != (pass_, batch):
            self.discard()  # it was never handed out, and isn't wanted any more
        stream = self._stream
        if self.pending_batch is None or stream is None:
            before = self.snapshot
            if before is None and self._has_state:
                before = self._before_everything()
            if before is not None and before.ended and (before.pass_, before.batch) == (pass_, batch):
                raise PassEnded(batch)  # as was found before somebody was interrupted
            # guard: position of a batch
            if stream is None or batch != self._batch or pass_ != self._pass:
                try:
                    stream = self._go_to(pass_, batch)
                except BaseException:
                    self.close()
                    raise
            try:
                data = next(stream)
                if self.in_flight:
                    self._count(-1)
            except StopIteration:
                self._end_pass()
                self.discard()  # what was requested after it are draws that don't exist
                raise PassEnded(batch) from None
            except BaseException:
                # guard: position after a failure
                self.close()  # nobody knows where the loader stands, or whether its workers live
                raise
            if data is None:
                self.close()
                return None
            self._batch = batch + 1
            self.pending_batch = pass_, batch, data, before
        if self._has_state and not self._is_after(pass_, batch):
            self.snapshot = stream.snapshot(pass_, batch + 1)
        if self._sees_end and batch + 1 == self.source.num_batches() and self._checked != (pass_, batch):
            self._check_length(stream)
        return self.pending_batch[2]

    def request(self, pass_: int, batch: int) -> None:
        """Says that the draw (pass_, batch), the one after those requested before, is coming."""
        self._count(1)
        if self._stream is None:
            self._open(pass_, batch)
        if pass_ == self._pass and self._stream is not None:
            self._stream.request(1)
            return
        self._later[pass_] = self._later.get(pass_, 0) + 1
        if self.source.opens_ahead:
            if not self._opened or self._opened[-1][0] != pass_:
                self._opened.append((pass_, self.source.open(pass_, batch, self.key)))
            self._opened[-1][1].request(1)

    def discard(self) -> None:
        """Drops what was requested and closes the pass; the next ``take`` opens its position."""
        kept, self.pending_batch = self.pending_batch, None
        if kept is not None:
            self.snapshot = kept[3]
        self._checked = None
        for _, stream in self._opened:
            stream.close()
        self._opened.clear()
        self._later.clear()
        self._count(-self.in_flight)
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        self.discard()
        self.source.close()

    def end_workers(self, *, replay: bool = False) -> bool:
        """Ends worker processes, unless the next batch could only be reached by producing those before it again.

        Args:
            replay: End them in that case as well.

        Returns:
            Whether worker processes are left.
        """
        source, stream, mode = self.source, self._stream, self.source.resume_mode
        if stream is None:
            source.close()
        elif mode is ResumeMode.SEEK:
            is_free = source.max_in_flight > 0
        elif mode is ResumeMode.REPLAY:
            is_free = self._is_at_start() or (replay and stream.has_workers())
        else:
            is_free = stream.has_workers()
        if stream is not None and is_free:
            self.close()
            return False
        return stream is not None and stream.has_workers()

    def _is_at_start(self) -> bool:
        """Whether the next batch is the first of a pass, or will be once the end of this one is seen."""
        return self._batch == 0 or (self.snapshot is not None and self.snapshot.ended)

    def _go_to(self, pass_: int, batch: int) -> Stream:
        old = self._stream
        if old is None or pass_ == self._pass or batch > 0:
            self.discard()
            return self._open(pass_, batch)
        old.close()
        requested = self._later.pop(pass_, 0)
        # Whatever else was requested of the old pass is never drawn: an edit ended the epoch before it.
        self._count(requested + sum(self._later.values()) - self.in_flight)
        if self._opened:
            opened_pass, stream = self._opened.popleft()
            if opened_pass == pass_:
                self._stream, self._pass, self._batch = stream, pass_, 0
                return stream
            self._opened.appendleft((opened_pass, stream))
            self.discard()
        stream = self._open(pass_, 0)
        if requested:
            stream.request(requested)
        return stream

    def _open(self, pass_: int, batch: int) -> Stream:
        self._stream = self.source.open(pass_, batch, self.key, self.snapshot)
        self._pass, self._batch = pass_, batch
        return self._stream

    def _check_length(self, stream: Stream) -> None:
        """At the end of a pass of known length: lets the source see its end, and notices one that continues.

        Not later than that, so that what is noticed doesn't depend on where a run is interrupted.
        """
        try:
            next(stream)
        except StopIteration:
            self._end_pass()
        except BaseException:
            self.close()
            raise
        else:
            self.overruns.append((self._pass, self._batch))
        self._checked = self._pass, self._batch - 1

    def _before_everything(self) -> Snapshot | None:
        state = self.source.initial_state()
        return None if state is None else Snapshot(0, 0, state)

    def _is_after(self, pass_: int, batch: int) -> bool:
        """Whether the snapshot is the one after this batch."""
        snapshot = self.snapshot
        return snapshot is not None and snapshot.batch == batch + 1 and snapshot.pass_ == pass_

    def _end_pass(self) -> None:
        if self.snapshot is not None and self.snapshot.pass_ == self._pass:
            self.snapshot = replace(self.snapshot, ended=True)

    def _count(self, change: int) -> None:
        self.in_flight += change
        self._held.num_batches += change
