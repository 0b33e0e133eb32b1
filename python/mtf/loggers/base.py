"""What a logger is."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtf.call_site import user_level
from mtf.formatting import plain_repr


@dataclass(frozen=True)
class RunInfo:
    """The run that a logger is opened for.

    Attributes:
        name: of the experiment.
        config: plain data.
        step: updates done so far; above 0 in a resumed run.
        state: what ``state_dict`` of the same logger returned when the run was saved; empty for a new run.
    """

    name: str
    config: Mapping[str, Any]
    step: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)


class Logger(ABC):
    """Takes rows of metrics. Made for a ``RunInfo``; called on rank 0 only, from the main thread."""

    @abstractmethod
    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Writes one row.

        Args:
            row: metric -> value.
            step: updates since the beginning of training.
        """

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Shows a matplotlib figure, where the logger can show pictures; here: nothing.

        Args:
            name: such as ``pictures/schedule``.
            figure: a ``matplotlib.figure.Figure``.
            step: updates since the beginning of training.
        """

    def state_dict(self) -> dict[str, Any]:
        """Plain data that lets a resumed run go on in the same place, such as a run id."""
        return {}

    def flush(self) -> None:
        """Makes everything logged so far visible to readers."""

    def close(self) -> None:
        """Flushes and releases files and connections. May be called several times."""

    def __repr__(self) -> str:
        """The class and its plain attributes."""
        return plain_repr(self)


class SafeLogger(Logger):
    """Lets training go on when a logger raises: the first error of each kind of call is a warning."""

    def __init__(self, logger: Logger) -> None:
        self.logger = logger
        self._warned = False

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"logger {type(self.logger).__name__} raised {error!r}; training continues, and no more is said",
                stacklevel=user_level(),
            )

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        try:
            self.logger.log_metrics(row, step)
        except Exception as error:  # any backend may fail in any way; training is worth more than its log
            self._warn(error)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        try:
            self.logger.log_figure(name, figure, step)
        except Exception as error:  # as above
            self._warn(error)

    def state_dict(self) -> dict[str, Any]:
        try:
            return self.logger.state_dict()
        except Exception as error:  # as above
            self._warn(error)
            return {}

    def flush(self) -> None:
        try:
            self.logger.flush()
        except Exception as error:  # as above
            self._warn(error)

    def close(self) -> None:
        try:
            self.logger.close()
        except Exception as error:  # as above
            self._warn(error)
