"""Rows as TensorBoard scalars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf.config.logging import LoggingConfig
from mtf.errors import ConfigError
from mtf.loggers.base import Logger, RunInfo


class TensorBoardLogger(Logger):
    """Writes event files. A resumed run tells TensorBoard to hide what came after its update."""

    def __init__(self, directory: str | Path, info: RunInfo) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            needed = "logger_type 'tensorboard' needs tensorboard: pip install 'mtf-torch[tensorboard]'"
            raise ConfigError(needed) from error
        purge = info.step + 1 if info.step else None
        self._writer = SummaryWriter(str(directory), purge_step=purge)
        self._writer.add_text("config", f"```json\n{json.dumps(info.config, indent=2)}\n```", info.step)

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """Writes to ``tensorboard_log_dir``, or ``<log_dir>/<experiment_name>``."""
        return cls(config.tensorboard_log_dir or Path(config.log_dir) / info.name, info)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """One scalar per metric."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """One image."""
        self._writer.add_figure(name, figure, step, close=False)

    def flush(self) -> None:
        """Writes what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file; the next row opens another."""
        self._writer.close()
