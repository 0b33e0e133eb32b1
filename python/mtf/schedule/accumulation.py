"""How many batches each update takes, where that changes during training."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Literal


class AccumulationSchedule:
    """Batches in an accumulation window, by epoch or by update.

    An epoch's last window may be shorter, because windows never reach over an epoch's end.

    Args:
        steps: a number, or a dict: epoch or update -> number from there on; it has an entry for 0.
        by: what the keys count.
    """

    def __init__(self, steps: int | Mapping[Any, int], by: Literal["epoch", "update"] = "epoch") -> None:
        entries = {int(start): int(n) for start, n in steps.items()} if isinstance(steps, Mapping) else {0: int(steps)}
        self._starts = sorted(entries)
        self._steps = [entries[start] for start in self._starts]
        self._by = by

    @classmethod
    def of(cls, performance: Mapping[str, Any]) -> AccumulationSchedule:
        """That of a performance configuration as plain data."""
        by = performance.get("accumulate_by", "epoch")
        return cls(performance.get("gradient_accumulation_steps", 1), by)

    @property
    def is_constant(self) -> bool:
        """Whether all windows are equally long."""
        return len(self._steps) == 1

    def at(self, epoch: int, update: int) -> int:
        """Batches of the window after ``update`` updates, in ``epoch``."""
        position = epoch if self._by == "epoch" else update
        return self._steps[bisect_right(self._starts, position) - 1]

    def updates_in(self, num_batches: int, epoch: int, update: int) -> int:
        """Updates in an epoch of ``num_batches`` that begins after ``update`` updates."""
        return self._walk(num_batches, epoch, update, None)[0]

    def batches_of(self, updates: int, num_batches: int, epoch: int, update: int) -> int:
        """Batches of the first ``updates`` updates of such an epoch."""
        return self._walk(num_batches, epoch, update, updates)[1]

    def _walk(self, num_batches: int, epoch: int, update: int, limit: int | None) -> tuple[int, int]:
        """Updates and batches; one round for each stretch of equal windows."""
        done = batches = 0
        while batches < num_batches and (limit is None or done < limit):
            window = self.at(epoch, update + done)
            longest = -(-(num_batches - batches) // window)
            if self._by == "update":
                place = bisect_right(self._starts, update + done)
                if place < len(self._starts):
                    longest = min(longest, self._starts[place] - update - done)
            longest = longest if limit is None else min(longest, limit - done)
            done += longest
            batches = min(num_batches, batches + longest * window)
        return done, batches
