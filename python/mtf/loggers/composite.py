"""Several loggers as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtf.loggers.base import Logger, SafeLogger


class CompositeLogger(Logger):
    """Gives every row to each of its loggers; one that raises doesn't keep the others from theirs."""

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = {kind: SafeLogger(logger) for kind, logger in loggers.items()}

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """To all."""
        for logger in self._loggers.values():
            logger.log_metrics(row, step)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """To all."""
        for logger in self._loggers.values():
            logger.log_figure(name, figure, step)

    def state_dict(self) -> dict[str, Any]:
        """By kind."""
        return {kind: logger.state_dict() for kind, logger in self._loggers.items()}

    def flush(self) -> None:
        """All."""
        for logger in self._loggers.values():
            logger.flush()

    def close(self) -> None:
        """All."""
        for logger in self._loggers.values():
            logger.close()
