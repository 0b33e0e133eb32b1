"""Several runs side by side: what came out, what they logged, and where their settings differ."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf.errors import ConfigError
from mtf.formatting import duration
from mtf.report.page import figure_of, page_of, section, table
from mtf.report.pictures.style import Palette
from mtf.report.read import read_run
from mtf.report.report import RunReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mtf.report.series import Series

_CAPTIONS = {
    "losses": "Training loss of each run, over all sources and for each. Each row of a log has the mean since the row "
    "before.",
    "validation": "Measured on held-out data, over all loaders.",
    "learning_rates": "As the schedulers left them after each logged update.",
}


@dataclass(frozen=True, repr=False)
class Comparison:
    """Runs beside each other. ``save`` writes them as one HTML file; ``print`` shows the table of results.

    Attributes:
        reports: of the runs, in the order given.
        names: of the runs, all different.
    """

    reports: list[RunReport]
    names: list[str]

    @property
    def update(self) -> int:
        """The most updates that any of the runs has done."""
        return max(report.update for report in self.reports)

    def results(self) -> dict[str, list[str]]:
        """Fact -> its value in each run, as text; ``-`` where a run doesn't know it."""
        rows: dict[str, list[str]] = {}
        for i, report in enumerate(self.reports):
            for fact, value in _facts(report).items():
                rows.setdefault(fact, ["-"] * len(self.reports))[i] = value
        return rows

    def settings(self) -> dict[str, list[str]]:
        """Dotted setting -> its value in each run, for those that differ."""
        flat = [_flat(report.config) for report in self.reports]
        names = list(dict.fromkeys(name for settings in flat for name in settings))
        table = {name: [settings.get(name, "-") for settings in flat] for name in names}
        return {name: values for name, values in table.items() if len(set(values)) > 1}

    def pictures(self) -> dict[str, Figure]:
        """The figures for which two runs or one have data.

        Raises:
            ConfigError: matplotlib isn't installed.
        """
        from mtf.report.pictures import metrics as drawn

        colors = Palette(self.names, [1.0] * len(self.names))
        losses: dict[str, dict[str, Series]] = {}
        validation: dict[str, dict[str, Series]] = {}
        rates: dict[str, dict[str, Series]] = {}
        for name, report in zip(self.names, self.reports, strict=True):
            for source, series in sorted(report.training_losses().items()):
                losses.setdefault(source or "all", {})[name] = series
            for metric, loaders in report.validation_metrics().items():
                if "" in loaders:
                    validation.setdefault(metric, {})[name] = loaders[""]
            for optimizer, series in report.learning_rates().items():
                rates.setdefault(optimizer, {})[name] = series
        figures = {}
        if losses:
            figures["losses"] = drawn.panels(losses, colors, self.update, "Training loss: {}")
        if validation:
            figures["validation"] = drawn.validation(validation, colors, self.update)
        if rates:
            figures["learning_rates"] = drawn.panels(rates, colors, self.update, "Learning rate: {}", smooth=False)
        return figures

    def to_dict(self) -> dict[str, Any]:
        """Plain data: results and settings that differ, by run, and the whole report of each."""
        runs = dict(zip(self.names, (report.to_dict() for report in self.reports), strict=True))
        return {"names": self.names, "results": self.results(), "settings": self.settings(), "runs": runs}

    def to_html(self) -> str:
        """One page that needs nothing else."""
        colors = Palette(self.names, [1.0] * len(self.names))
        heads = [
            f'<i class="key" style="background:{colors[i]}"></i>{html.escape(name)}'
            for i, name in enumerate(self.names)
        ]
        figures = "".join(figure_of(figure, _CAPTIONS[name]) for name, figure in self.pictures().items())
        parts = [
            f"<h1>{html.escape(' and '.join(self.names) if len(self.names) == 2 else f'{len(self.names)} runs')}</h1>",
            section("Results", _side_by_side(heads, self.results())),
            section("Losses and validation", figures),
            section("Settings that differ", _side_by_side(heads, self.settings()) or "<p>None.</p>"),
        ]
        return page_of(", ".join(self.names), parts, ", ".join(str(report.root) for report in self.reports))

    def save(self, path: str | Path) -> None:
        """Writes the page."""
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def __repr__(self) -> str:
        """The runs."""
        return f"Comparison({', '.join(self.names)})"

    def __str__(self) -> str:
        """The tables of results and of settings that differ."""
        lines = _text_table(["", *self.names], self.results())
        settings = self.settings()
        return "\n".join([*lines, *(["", *_text_table(["settings that differ", ""], settings)] if settings else [])])


def compare_runs(paths: Sequence[str | Path]) -> Comparison:
    """Reads several runs.

    Args:
        paths: of each run a folder of its logs, of its checkpoints, or one above both.

    Raises:
        ConfigError: fewer than two are given, or one of them is no run.
    """
    if len(paths) < 2:
        raise ConfigError(f"paths must name at least two runs to compare, got {len(paths)}")
    reports = [read_run(path) for path in paths]
    names = [report.name for report in reports]
    if len(set(names)) < len(names):
        names = [os.path.basename(os.path.abspath(report.root)) for report in reports]
    if len(set(names)) < len(names):
        names = [f"{report.name} ({path})" for report, path in zip(reports, paths, strict=True)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"paths must name different runs, but {twice} is there {names.count(twice)} times")
    return Comparison(reports, names)


def _facts(report: RunReport) -> dict[str, str]:
    results = report.results
    last = report.sessions[-1] if report.sessions else None
    known: dict[str, Any] = {
        f"best {results.metric}": _number(results.best),
        "at update": None if results.best_update is None else f"{results.best_update:,}",
        f"final {results.metric}": _number(results.final),
        "last train/loss": _number(results.training_loss),
        "updates": f"{report.update:,}",
        "time in fit": None if results.duration_s is None else duration(results.duration_s),
        "samples per second": None if results.samples_per_s is None else f"{results.samples_per_s:,.0f}",
        "ranks": None if last is None else str(last.world_size),
        "commit": None if last is None else last.commit,
        "host": None if last is None else last.host,
        "command": None if last is None else last.command,
    }
    return {name: value for name, value in known.items() if value is not None}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.5g}"


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = (_flat(inner, f"{prefix}.{name}" if prefix else str(name)) for name, inner in value.items())
        return {name: text for part in parts for name, text in part.items()}
    return {prefix: str(value)}


def _side_by_side(heads: Sequence[str], rows: dict[str, list[str]]) -> str:
    if not rows:
        return ""
    cells = [[html.escape(name), *(html.escape(value) for value in values)] for name, values in rows.items()]
    return table(["", *heads], cells, text=range(1, len(heads) + 1), are_html=True)


def _text_table(heads: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    cells = [list(heads), *([name, *values] for name, values in rows.items())]
    widths = [max(len(row[c]) for row in cells if c < len(row)) for c in range(max(map(len, cells)))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in cells]
