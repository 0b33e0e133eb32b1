"""Rows as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from mtf.config.logging import LoggingConfig
from mtf.loggers.base import Logger, RunInfo
from mtf.loggers.files import replace, start


class CsvLogger(Logger):
    """Appends rows to a CSV file with a column per metric; a metric that turns up later adds a column.

    A resumed run first drops the rows after the update from which it continues; a new run's trainer has moved
    another run's file aside, and the file starts afresh.
    """

    def __init__(self, path: str | Path, info: RunInfo) -> None:
        self._path = Path(path)
        start(self._path, info.step, lambda line: int(line.split(",", 1)[0]), header=True)
        self._columns = ["step"]
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), self._columns)

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """Writes ``<log_dir>/<experiment_name>/metrics.csv``."""
        return cls(Path(config.log_dir) / info.name / "metrics.csv", info)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Appends one line."""
        new = [name for name in row if name not in self._columns]
        if new or not self._path.exists():
            self._add_columns(new)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow({"step": step, **row})

    def _add_columns(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self._path.exists():
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        self._columns += new
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace(self._path, text.getvalue())
