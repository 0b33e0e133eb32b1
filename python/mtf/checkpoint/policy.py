"""When a run saves: every so many steps, epochs or minutes. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable


class SavePolicy:
    """Decides at the end of each window whether a checkpoint is due.

    Minutes are measured from :meth:`start` or the last save.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        every_n_minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            every_n_steps: updates between two saves; None: not by steps.
            every_n_epochs: epochs between two saves; None: not by epochs.
            every_n_minutes: minutes between two saves; None: not by time.
            clock: seconds, for tests.
        """
        self._every_n_steps = every_n_steps
        self._every_n_epochs = every_n_epochs
        self._every_s = None if every_n_minutes is None else every_n_minutes * 60.0
        self._clock = clock
        self._saved_at_s = clock()

    @property
    def enabled(self) -> bool:
        """Whether anything is ever due."""
        return any(value is not None for value in (self._every_n_steps, self._every_n_epochs, self._every_s))

    def __repr__(self) -> str:
        """When saves are due."""
        parts = [
            *([f"every {self._every_n_steps} steps"] if self._every_n_steps is not None else []),
            *([f"every {self._every_n_epochs} epochs"] if self._every_n_epochs is not None else []),
            *([f"every {self._every_s / 60:g} minutes"] if self._every_s is not None else []),
        ]
        return f"SavePolicy({', '.join(parts) or 'never'})"

    def start(self) -> None:
        """Begins counting minutes; for the start of training."""
        self._saved_at_s = self._clock()

    def saved(self) -> None:
        """Notes a save, whatever its reason was."""
        self._saved_at_s = self._clock()

    def due(self, step: int) -> str | None:
        """The reason to save after update number ``step`` (counted from 1), or None."""
        if self._every_n_steps is not None and step > 0 and step % self._every_n_steps == 0:
            return f"every {self._every_n_steps} steps"
        if self._every_s is not None and self._clock() - self._saved_at_s >= self._every_s:
            return f"every {self._every_s / 60:g} minutes"
        return None

    def due_after_epoch(self, epochs_done: int) -> str | None:
        """The reason to save when ``epochs_done`` epochs are complete, or None."""
        if self._every_n_epochs is not None and epochs_done > 0 and epochs_done % self._every_n_epochs == 0:
            return f"every {self._every_n_epochs} epochs"
        return None
