"""Rows as JSON, one per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from mtf.loggers.base import Logger, RunInfo
from mtf.loggers.files import drop_rows


class JsonlLogger(Logger):
    """Appends ``{"step": 50, "train/loss": 0.123, ...}`` to a file; NaN and infinities become strings.

    A run that goes on first drops the rows after the update from which it goes on; a new run starts the file afresh.
    """

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if info.step == 0:
            self._path.unlink(missing_ok=True)
        drop_rows(self._path, lambda line: int(json.loads(line)["step"]) <= info.step)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Appends one line; the file is opened for it, so a reader sees whole lines at any time."""
        plain = {name: value if math.isfinite(value) else repr(value) for name, value in row.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain}) + "\n")
