"""The rows that a run has logged: from JSON lines, CSV or TensorBoard's event files, the later of two winning."""

from __future__ import annotations

import csv
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from mtf.errors import ConfigError
from mtf.report.series import Series

ROWS_NAMES = ("metrics.jsonl", "metrics.csv")
Row = tuple[int, Mapping[str, float]]


class Metrics:
    """Every metric of a run as a ``Series``.

    Attributes:
        series: by metric.
        last_update: of the last row; 0 without rows.
        num_rows: how many count.
        num_replaced: rows that a resume from an earlier update has replaced.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.last_update = 0
        self.num_rows = 0
        self.num_replaced = 0

    def __repr__(self) -> str:
        return f"Metrics({len(self.series)} series, {self.num_rows} rows up to update {self.last_update})"

    def add(self, update: int, row: Mapping[str, float]) -> None:
        """Adds a row."""
        self.num_rows += 1
        self.last_update = max(self.last_update, update)
        for name, value in row.items():
            found = self.series.get(name)
            if found is None:
                found = self.series[name] = Series()
            found.add(update, value)


def read_rows(path: Path) -> Metrics:
    """A file that the ``jsonl`` or ``csv`` logger wrote, also one that is being written.

    Raises:
        ConfigError: a line that is no row; names it.
    """
    read, updates_of = (_read_csv, _csv_updates) if path.suffix == ".csv" else (_read_jsonl, _jsonl_updates)
    updates = array("q", updates_of(path))
    kept = _not_replaced(updates)
    metrics = Metrics()
    metrics.num_replaced = len(updates) - sum(kept)
    for update, row in compress(read(path), kept):
        metrics.add(update, row)
    return metrics


def rows_of(rows: Iterable[Row]) -> Metrics:
    """Rows in memory, in order."""
    metrics = Metrics()
    for update, row in rows:
        metrics.add(update, row)
    return metrics


def read_events(directory: Path) -> Metrics:
    """Scalars of TensorBoard's event files.

    Raises:
        ConfigError: tensorboard isn't installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    except ImportError as error:
        raise ConfigError("reading TensorBoard's event files needs it: pip install 'mtf-torch[tensorboard]'") from error
    # 0 keeps all; what a resumed run has replaced is left out by it.
    events = EventAccumulator(str(directory), size_guidance={SCALARS: 0})
    events.Reload()
    metrics = Metrics()
    for name in events.Tags()["scalars"]:
        series = metrics.series[name] = Series()
        for scalar in events.Scalars(name):
            series.add(scalar.step, scalar.value)
            metrics.last_update = max(metrics.last_update, scalar.step)
        metrics.num_rows = max(metrics.num_rows, series.num_values)
    return metrics


def _not_replaced(updates: Sequence[int]) -> list[bool]:
    """Which rows no later row has replaced: after a step back to an update, earlier rows from there on don't count.

    Rows at one update that follow each other, such as training and validation, belong together.
    """
    kept = [True] * len(updates)
    lowest: float = float("inf")  # of the rows behind the last step back seen so far
    here: float = float("inf")
    for i in range(len(updates) - 1, -1, -1):
        if i + 1 < len(updates) and updates[i] > updates[i + 1]:
            lowest = min(lowest, here)
            here = float("inf")
        kept[i] = updates[i] < lowest
        here = min(here, updates[i])
    return kept


def _jsonl_updates(path: Path) -> Iterator[int]:
    """As ``_read_jsonl``, the updates alone: lines of the logger begin with them, others are read whole."""
    begins = re.compile(r'\{"step": (\d+)[,}]')
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            found = begins.match(line)
            yield int(found[1]) if found else _parse(path, number, line)[0]


def _csv_updates(path: Path) -> Iterator[int]:
    return (update for update, _ in _read_csv(path))


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return  # being written, or by a process that was killed
            yield _parse(path, number, line)


def _parse(path: Path, number: int, line: str) -> Row:
    try:
        row: dict[str, Any] = json.loads(line)
        update = int(row.pop("step"))
        return update, {name: float(value) for name, value in row.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}, line {number}: no row of metrics ({error!r})") from None


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(line for line in file if line.endswith("\n"))
        header = next(lines, ["step"])
        for number, cells in enumerate(lines, 2):
            try:
                row = {name: float(cell) for name, cell in zip(header[1:], cells[1:], strict=False) if cell}
                yield int(cells[0]), row
            except (ValueError, IndexError) as error:
                raise ConfigError(f"{path}, line {number}: no row of metrics ({error!r})") from None
