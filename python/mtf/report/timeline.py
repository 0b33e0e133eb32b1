"""The schedule of a whole run, put together from the states that were kept of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.errors import ConfigError
from mtf.report.history import MAX_BINS, History, make_history
from mtf.schedule.accumulation import AccumulationSchedule
from mtf.schedule.schedule import Schedule


class Timeline:
    """Which schedule knows an epoch: a state tells its own epoch and, up to the next edit, all later ones.

    Args:
        states: at least one; of two states of one epoch the later counts.
        config: the mixture that the run began with, to reach epochs before the first state; None: those are unknown.
    """

    def __init__(self, states: Sequence[Schedule], config: Mapping[str, Any] | None = None) -> None:
        ordered = sorted(states, key=lambda schedule: schedule.position)
        self._by_epoch = {schedule.epoch: schedule for schedule in ordered}
        self._states = ordered
        first = ordered[0]
        if first.epoch > 0 and config is not None and (start := _start_of(first, config)) is not None:
            self._by_epoch[0] = start
        self._epochs = sorted(self._by_epoch)
        self.first_epoch = self._epochs[0]
        self.last = ordered[-1]
        """The furthest state."""

    def schedule_of(self, epoch: int) -> Schedule:
        """The schedule that tells of ``epoch``."""
        return self._by_epoch[self._epochs[bisect_right(self._epochs, epoch) - 1]]

    def states_of(self, epoch: int) -> list[Schedule]:
        """The schedules that tell of ``epoch``, oldest first: several where the last doesn't know its beginning."""
        last = self.schedule_of(epoch)
        if last.known_from(epoch) == 0:
            return [last]
        return [state for state in self._states if state.epoch == last.epoch]

    def gaps(self) -> list[tuple[Schedule, Schedule]]:
        """States that follow each other although the first doesn't lead to the second: an edit lies between them."""
        known = [self._by_epoch[epoch] for epoch in self._epochs]
        return [(a, b) for a, b in pairwise(known) if not _leads_to(a, b)]

    def place(self, update: int, windows: AccumulationSchedule) -> tuple[int, int]:
        """Epoch and step after an update.

        Raises:
            ConfigError: an epoch before the first that is known, or one whose end isn't.
        """
        if self.first_epoch > 0:
            raise ConfigError(f"what was drawn before epoch {self.first_epoch} is not known")
        epoch = done = 0
        while True:
            steps = self.schedule_of(epoch).num_steps(epoch)
            if steps is None:
                raise ConfigError(f"how many steps epoch {epoch} has is not known")
            updates = windows.updates_in(steps, epoch, done)
            if update - done <= updates or not steps:
                return epoch, windows.batches_of(update - done, steps, epoch, done)
            done += updates
            epoch += 1

    def history(self, epoch: int, step: int, max_bins: int = MAX_BINS) -> History:
        """Everything from the first epoch that is known to ``step`` of ``epoch``."""
        if step == 0 and epoch > self.first_epoch:  # nothing of this epoch was drawn
            epoch -= 1
            step = self.schedule_of(epoch).num_steps(epoch) or 0
        return make_history(self.schedule_of, self.first_epoch, epoch, step, max_bins, self.states_of)


def _start_of(state: Schedule, config: Mapping[str, Any]) -> Schedule | None:
    """The schedule at its very beginning, if nothing has changed it up to ``state``."""
    try:
        lengths = dict(zip(state.names, state.lengths, strict=True))
        start = Schedule(MultiDataLoaderConfig.from_dict(config), lengths, state.seed)
        start.seek(*state.position)
    except ConfigError:
        return None
    return start if start.to_bytes() == state.to_bytes() else None


def _leads_to(one: Schedule, other: Schedule) -> bool:
    moved = Schedule.from_bytes(one.to_bytes())
    try:
        moved.seek(*other.position)
    except ConfigError:  # an epoch of unknown length lies between
        return False
    return moved.to_bytes() == other.to_bytes()
