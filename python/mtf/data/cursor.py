"""Where a mixture stands in its schedule: the draws taken ahead, the next of them, and the position that is state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mtf.data.live_schedule import MOVES
from mtf.schedule.schedule import Schedule

# Draws are taken from the schedule in blocks that grow, so that an edit, after which all are taken anew, wastes few.
# The next block is taken when this many are left: they are what can be asked for ahead.
_SMALLEST_BLOCK, _LARGEST_BLOCK, _LEFT = 256, 1024, 128


class Cursor:
    """The next draw, and the last committed position.

    The schedule's own cursor is brought up to date only when it is needed (``sync``), because moving it for every
    batch would cost more than the draw.

    Args:
        schedule: Moved and edited only through this object from now on.

    Attributes:
        names: Names of all sources by index, removed ones included.
        epoch: The epoch of the draws.
        first_step: Step in the epoch of the first draw in the lists.
        place: Index in the lists of the next draw.
        num_drawn: Draws in the lists.
        refill_at: The place at which the lists are taken anew.
        sources: Source index of each draw.
        passes: Its pass of that source.
        batches: Its batch in that pass.
        counts: Draws of each source in this epoch so far.
        is_busy: Changes the schedule itself just now.
        committed: Position ``(epoch, step)`` that is state; None until ``commit`` is first called.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.names: list[str] = []
        self.sources: list[int] = []
        self.passes: list[int] = []
        self.batches: list[int] = []
        self.counts: list[int] = []
        self.epoch = self.first_step = self.place = self.num_drawn = self.refill_at = 0
        self._looked_up_to = 0  # in place of ``refill_at`` once a user was given the schedule
        self._block = _SMALLEST_BLOCK
        self._is_stale = False  # the schedule was moved or edited, and isn't followed yet
        self._left_at = schedule.position  # elsewhere: it was moved by hand
        self.is_busy = False  # changes the schedule itself
        self.committed: tuple[int, int] | None = None
        # The committed schedule where the schedule itself can't give it any more: its epoch was left, or the end of a
        # pass was found after it.
        self._committed_schedule: dict[str, Any] | None = None
        self.follow()

    # Draws ----------------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Step in the epoch of the next draw."""
        return self.first_step + self.place

    @property
    def schedule(self) -> Schedule:
        """The schedule, its own cursor brought to the next draw."""
        self.sync()
        return self._schedule

    def expose(self) -> Schedule:
        """The schedule for users, who may move it: the next draw then looks where it stands."""
        self.sync()
        self._looked_up_to, self.refill_at = max(self.refill_at, self._looked_up_to), 0
        return self._schedule

    @property
    def present(self) -> list[bool]:
        """Whether each source is part of the mixture, by index."""
        return self._schedule.present

    @property
    def strategy(self) -> str:
        """Name of the sampling strategy."""
        return str(self._schedule.mixture.strategy)

    @property
    def next_epoch(self) -> int:
        """The epoch of the next draw; at the end of an epoch, the one after it."""
        if self.place < self.num_drawn:
            return self.epoch
        self.sync()
        return int(self._schedule.epoch) + bool(self._schedule.epoch_done)

    def refill(self) -> bool:
        """Takes the next block of draws; none at the end of the epoch.

        Returns:
            False where the draws there were still hold, because the schedule was only looked at.
        """
        usual, self._looked_up_to = self._looked_up_to, 0
        if self.place < usual and not self._is_stale and self._schedule.position == self._left_at:
            self.refill_at = usual
            return False
        self.sync()
        drawn, step = self._schedule.draw_lists(self._block), self._schedule.step
        num_drawn = len(drawn[0])
        self.sources, self.passes, self.batches = drawn
        self.first_step, self.place, self.num_drawn = step, 0, num_drawn
        self.refill_at = num_drawn - _LEFT if num_drawn == self._block else num_drawn
        self._block = min(2 * self._block, _LARGEST_BLOCK)
        return True

    def sync(self) -> None:
        """Brings the schedule's cursor to the position; after an interruption, or where somebody moved the schedule
        by hand, the position to the cursor."""
        if self._is_stale or self._schedule.position != self._left_at:
            self.follow()
        behind = self.first_step + self.place - self._schedule.step
        if behind:
            with self._busy():
                self._schedule.advance(behind)
            self._left_at = self._schedule.position

    def drop_draws(self) -> None:
        """Forgets the draws that were taken ahead; the next ``refill`` takes them anew."""
        self.num_drawn = self.refill_at = self._looked_up_to = 0

    def leave_draws(self) -> None:
        """Before the schedule is moved or edited: the draws count no more, whatever interrupts the move."""
        self.sync()
        self.drop_draws()
        self._is_stale = True

    def follow(self) -> None:
        """Starts anew from the schedule's cursor, after it was moved or edited."""
        schedule = self._schedule
        self.names = list(schedule.names)
        self._left_at = schedule.position
        self.epoch = schedule.epoch
        self.first_step, self.place = schedule.step, 0
        self.drop_draws()
        self._block = _SMALLEST_BLOCK
        self.counts = [int(count) for count in schedule.counts(schedule.step)]
        self._is_stale = False

    def follow_if_stale(self) -> None:
        """Follows the schedule where an interruption kept that from happening."""
        if self._is_stale:
            self.follow()

    # Epochs, ends of passes and edits ---------------------------------------------------------------------------------

    def open_next_epoch(self) -> None:
        """At the end of an epoch: goes to the start of the next one."""
        self.sync()
        if self._schedule.epoch_done:
            self._leave_epoch(self._schedule.next_epoch)

    def skip(self, num_draws: int) -> None:
        """Moves on by so many draws of the epoch."""
        self.leave_draws()
        with self._busy():
            self._schedule.advance(num_draws)
        self.follow()

    def seek_epoch(self, epoch: int) -> None:
        """Goes to the start of ``epoch``."""
        self.sync()
        self._leave_epoch(lambda: self._schedule.seek(epoch, 0))

    def _leave_epoch(self, move: Callable[[], Any]) -> None:
        """Lets the schedule ``move`` to another epoch, from where it can't give what was committed in this one."""
        is_committed = self.committed == self._schedule.position
        if self.committed is not None and self._committed_schedule is None:
            self._committed_schedule = self._schedule.state_dict(self.committed[1])
        self.leave_draws()
        with self._busy():
            move()
        if is_committed:
            self.committed, self._committed_schedule = self._schedule.position, None
        self.follow()

    def end_pass(self, source: int, num_batches: int) -> None:
        """A pass of ``source`` ended after ``num_batches`` batches, where the next draw wanted one more."""
        self.sync()
        if self.committed == self._schedule.position and self._committed_schedule is None:
            # The draw that found the end isn't committed, so a resumed run finds and reports the end again.
            self._committed_schedule = self._schedule.state_dict()
        self.leave_draws()
        with self._busy():
            self._schedule.end_pass(source, num_batches)
        self.follow()

    @contextmanager
    def editing(self) -> Iterator[Schedule]:
        """The schedule, to be edited at the next draw, and followed afterwards.

        Where the position is committed, the edit is part of the state, and so is the end of a pass before it.
        """
        self.leave_draws()
        if self.committed == self._schedule.position:
            self._committed_schedule = None
        with self._busy():
            yield self._schedule  # after an error the schedule stays to be followed
        self.follow()

    @contextmanager
    def changing_by_hand(self, method: str) -> Iterator[None]:
        """Around a call of a method of the schedule that changes it, whoever calls it.

        An edit takes effect at the next draw, and so does a move; either is part of the state like one that is made
        through this object.
        """
        if self.is_busy:
            yield
            return
        self.sync()
        if method not in MOVES:
            with self.editing():
                yield
            return
        is_committed = self.committed == self._schedule.position
        if self.committed is not None and self._committed_schedule is None:
            self._committed_schedule = self._schedule.state_dict(self.committed[1])
        self.leave_draws()
        with self._busy():
            yield
        if is_committed:
            self.committed, self._committed_schedule = self._schedule.position, None
        self.follow()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        was_busy, self.is_busy = self.is_busy, True
        try:
            yield
        finally:
            self.is_busy = was_busy

    # State ----------------------------------------------------------------------------------------------------------

    @property
    def is_committed(self) -> bool:
        """Whether the last committed position is the current one."""
        return self.committed == self._schedule.position

    @property
    def can_rewind(self) -> bool:
        """Whether something was handed out or moved since the last commit. Call after ``sync``."""
        return self.committed is not None and (not self.is_committed or self._committed_schedule is not None)

    def commit(self) -> None:
        """Makes the current position state."""
        self.committed = (self.epoch, self.first_step + self.place)
        self._committed_schedule = None

    def state_dict(self) -> dict[str, Any]:
        """The schedule at the committed position; at the current one if ``commit`` was never called."""
        self.sync()
        if self.committed is None:
            return self._schedule.state_dict()
        return self._committed_schedule or self._schedule.state_dict(self.committed[1])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves the schedule to a state. ``forget_commit`` and ``follow`` come after it."""
        self.leave_draws()
        with self._busy():
            self._schedule.load_state_dict(state)

    def forget_commit(self) -> None:
        """No position is committed."""
        self.committed, self._committed_schedule = None, None
