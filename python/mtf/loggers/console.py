"""Rows as lines on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from mtf.config.logging import LoggingConfig
from mtf.loggers.base import Logger, RunInfo

_NUM_FIELDS = 4
# What a line shows where nobody chose: what each is called there, and how it is written.
_USUAL: Mapping[str, str] = {
    "train/loss": "train/loss {:.4g}",
    "lr/optimizer0": "lr {:.3g}",
    "throughput/samples_per_s": "{:,.0f} samples/s",
    "throughput/data_wait_share": "{:.0%} waiting for data",
}


class ConsoleLogger(Logger):
    """Prints one line per row to standard output, above a progress bar where there is one.

    Args:
        fields: names or patterns (``val/*``) of what a line shows; empty: four fields, the loss first.
    """

    def __init__(self, fields: Sequence[str] = ()) -> None:
        self._fields = tuple(fields)

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """Shows ``console_fields``."""
        return cls(config.console_fields)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Prints ``update 50 · train/loss 0.123 · lr 0.001 · 812 samples/s · 3% waiting for data``."""
        shown = [f"{name} {row[name]:.4g}" for name in self._chosen(row)] if self._fields else _usual(row)
        if shown:
            write_line(" · ".join([f"update {step}", *shown]))

    def _chosen(self, row: Mapping[str, float]) -> Iterable[str]:
        return (name for name in row if any(fnmatchcase(name, pattern) for pattern in self._fields))


def _usual(row: Mapping[str, float]) -> list[str]:
    """Four fields: those that every training row has, or the first, those over all loaders before those of one."""
    shown = [text.format(row[name]) for name, text in _USUAL.items() if name in row]
    results = [name for name in row if name not in _USUAL and _is_result(name) and not _is_repeated(name, row)]
    results.sort(key=lambda name: (name.count("/"), not name.endswith("loss")))  # stable: the order of the row
    return [*shown, *(f"{name} {row[name]:.4g}" for name in results[: _NUM_FIELDS - len(shown)])]


def _is_result(name: str) -> bool:
    return not name.startswith(("lr/", "throughput/", "loader_proportions/"))


def _is_repeated(name: str, row: Mapping[str, float]) -> bool:
    """Whether a value of one loader is that over all of them, as it is where there is only one."""
    kind, _, metric = name.partition("/")
    overall = f"{kind}/{metric.rpartition('/')[2]}"
    return overall != name and row.get(overall) == row[name]


def write_line(line: str) -> None:
    """Prints a line to standard output without breaking a progress bar."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stdout)
    else:
        print(line, flush=True)
