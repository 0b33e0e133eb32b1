"""Rows as JSON, one per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from mtf.config.logging import LoggingConfig
from mtf.loggers.base import Logger, RunInfo
from mtf.loggers.files import start


class JsonlLogger(Logger):
    """Appends ``{"step": 50, "train/loss": 0.123, ...}`` to a file; NaN and infinities become strings.

    A resumed run first drops the rows after the update from which it continues; a new run's trainer has moved
    another run's file aside, and the file starts afresh.
    """

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        self._path = Path(path)
        start(self._path, info.step, lambda line: int(json.loads(line)["step"]))

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """Writes ``<log_dir>/<experiment_name>/metrics.jsonl``."""
        return cls(Path(config.log_dir) / info.name / "metrics.jsonl", info)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Appends one line; the file is opened for it, so a reader sees whole lines at any time."""
        plain = {name: value if math.isfinite(value) else repr(value) for name, value in row.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")
