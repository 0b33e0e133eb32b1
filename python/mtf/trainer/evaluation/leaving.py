"""Leaving a validation on a signal, on all ranks at once: none may wait in a collective that another never comes to."""

from __future__ import annotations

import time
from collections.abc import Callable

from mtf.distributed.ranks import SingleRank

_LOOK_S = 0.2


class Leaving:
    """Whether one validation is to be left.

    Ranks have unequal numbers of batches, so they can't meet at each. A rank that is asked to leave says so in the
    store that all share, stops reading batches, and waits where the loader ends; the others look into the store
    between two batches, five times a second at most. There all agree.

    Args:
        ranks: Those that validate.
        asked: Whether a signal has come on this rank; None: the validation is never left.
    """

    def __init__(self, ranks: SingleRank, asked: Callable[[], bool] | None) -> None:
        self._ranks = ranks
        self._asked = asked
        self._is_seen = False
        self._look_s = max(_LOOK_S, ranks.world_size / 5000)  # all together 5000 times a second at most
        self._looked_s = time.monotonic()
        self._flag = ranks.new_flag() if asked is not None else ""

    def is_asked_here(self) -> bool:
        """Whether a signal has come on this rank."""
        return self._asked is not None and self._asked()

    def is_due(self) -> bool:
        """Before a batch: whether this rank should read no more."""
        if self._asked is None or self._is_seen:
            return self._is_seen
        if self._asked():
            self._is_seen = True
            self._ranks.raise_flag(self._flag)
        elif self._ranks.world_size > 1 and time.monotonic() - self._looked_s > self._look_s:
            self._looked_s = time.monotonic()
            self._is_seen = self._ranks.sees_flag(self._flag)
        return self._is_seen

    def note(self) -> None:
        """Another rank has said it in a collective."""
        self._is_seen = True

    def agree(self) -> bool:
        """Where a loader has ended on this rank: whether all leave. A collective."""
        return self._asked is not None and self._ranks.any(self._is_seen or self._asked())
