"""A run, as its report shows it: plain values, and the series by what they are of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtf.report.history import History
from mtf.report.metrics import Metrics
from mtf.report.pictures.style import Palette
from mtf.report.results import Results
from mtf.report.run_log import Session
from mtf.report.series import Series

_SHOWN_ELSEWHERE = ("val/", "lr/", "loader_proportions/", "throughput/")
_JSON_POINTS = 256


@dataclass(frozen=True)
class CheckpointEntry:
    """One checkpoint of a run.

    Attributes:
        name: of its folder.
        update: updates done.
        epoch: the epoch that was under way, or the next one.
        num_bytes: of all its files.
        links: which of ``latest`` and ``best`` lead to it.
        monitored: value of ``checkpoint.monitor_metric``; None without one.
        replaced: whether it is of a part of the run that a resume from an earlier update has replaced.
        error: why it can't be used; None if its manifest is whole.
    """

    name: str
    update: int
    epoch: int | None
    num_bytes: int
    links: list[str]
    monitored: float | None
    replaced: bool
    error: str | None


@dataclass(frozen=True)
class SourceSummary:
    """One row of the table of sources; None where a value isn't known.

    Attributes:
        name: of the source.
        weight: now, in a weighted mixture; all of them sum to 1.
        length: batches in a pass.
        num_batches: drawn so far.
        passes: runs through the source, in parts too.
        share: of all steps so far.
        expected_share: what the weights promise so far.
        max_deviation: largest distance from the expected draws at any step of an epoch, in batches.
        first_loss: in the first row that has one.
        last_loss: in the last.
        wait_s: seconds that training waited for its batches.
    """

    name: str
    weight: float | None
    length: int | None
    num_batches: int | None
    passes: float | None
    share: float | None
    expected_share: float | None
    max_deviation: float | None
    first_loss: float | None
    last_loss: float | None
    wait_s: float | None


@dataclass(repr=False)
class RunData:
    """What is known of a run, as plain values.

    Attributes:
        root: the folder that was read, or the URL of the checkpoints.
        name: of the experiment.
        strategy: how sources were mixed last; None where no schedule was kept.
        seed: of the data.
        update: updates done.
        position: epoch and step after them; None where it can't be known.
        window: steps in an update.
        versions: of mtf, torch and Python, as far as they were kept.
        config: plain data; empty where it wasn't kept.
        sessions: processes of the run, in order; empty where nothing tells of them.
        checkpoints: oldest first.
        sources: a summary for each.
        metrics: everything that was logged.
        history: what was drawn; None where no schedule was kept.
        results: what came out.
        notes: what a reader should know, warnings included.
    """

    root: Path | str
    name: str
    strategy: str | None
    seed: int | None
    update: int
    position: tuple[int, int] | None
    window: int
    versions: dict[str, str]
    config: dict[str, Any]
    sessions: list[Session]
    checkpoints: list[CheckpointEntry]
    sources: list[SourceSummary]
    metrics: Metrics
    history: History | None
    results: Results = field(default_factory=Results)
    notes: list[str] = field(default_factory=list)

    @property
    def palette(self) -> Palette:
        """Colours of the sources, the same in all pictures."""
        if self.history is not None:
            return Palette(self.history.names, self.history.totals.tolist())
        return Palette([source.name for source in self.sources], [1.0] * len(self.sources))

    def training_losses(self) -> dict[str, Series]:
        """Training loss by source; ``""``: over all of them."""
        found = {s.name: self.metrics.series.get(f"train/{s.name}/loss") for s in self.sources}
        found[""] = self.metrics.series.get("train/loss")
        return {name: series for name, series in found.items() if series is not None and series.last is not None}

    def validation_metrics(self) -> dict[str, dict[str, Series]]:
        """Metric -> series by loader; ``""``: over all of them. The loss comes first."""
        table: dict[str, dict[str, Series]] = {}
        for key, series in self.metrics.series.items():
            if key.startswith("val/") and series.last is not None:
                loader, _, metric = key[len("val/") :].rpartition("/")
                table.setdefault(metric, {})[loader] = series
        return {metric: table[metric] for metric in sorted(table, key=lambda metric: (metric != "loss", metric))}

    def learning_rates(self) -> dict[str, Series]:
        """Learning rate by optimizer, and by group where one has several."""
        return {key[len("lr/") :]: series for key, series in self.metrics.series.items() if key.startswith("lr/")}

    def other_metrics(self) -> dict[str, dict[str, Series]]:
        """Metric -> series by source, of all that no other figure shows; ``""``: over all of them."""
        names = {source.name for source in self.sources}
        table: dict[str, dict[str, Series]] = {}
        for key, series in self.metrics.series.items():
            if series.last is None or key.startswith(_SHOWN_ELSEWHERE) or key == "train/loss":
                continue
            inner = key.removeprefix("train/")
            source, _, metric = inner.partition("/")
            if source in names and metric:
                if metric != "loss":
                    table.setdefault(metric, {})[source] = series
            else:
                table.setdefault(inner, {})[""] = series
        return table

    def waits(self) -> dict[str, tuple[float, int]]:
        """Seconds waited for the batches of each source, and how many there were."""
        return {s.name: (s.wait_s, s.num_batches or 0) for s in self.sources if s.wait_s is not None}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON-able data; long series thinned out to means."""
        history = self.history
        return {
            "name": self.name,
            "root": str(self.root),
            "strategy": self.strategy,
            "seed": self.seed,
            "update": self.update,
            "epoch": None if self.position is None else self.position[0],
            "step": None if self.position is None else self.position[1],
            "num_batches": None if history is None else history.num_steps,
            "window": self.window,
            "versions": self.versions,
            "sessions": [session.to_dict() for session in self.sessions],
            "sources": [asdict(source) for source in self.sources],
            "checkpoints": [asdict(entry) for entry in self.checkpoints],
            "results": asdict(self.results),
            "notes": self.notes,
            "config": self.config,
            "schedule": None
            if history is None
            else {
                "names": history.names,
                "edges": history.edges.tolist(),
                "counts": history.counts.tolist(),
                "expected": history.expected.tolist() if history.is_weighted else None,
                "epoch_starts": history.epoch_starts.tolist(),
            },
            "metrics": {
                name: dict(zip(("updates", "values"), (v.tolist() for v in s.points(_JSON_POINTS)), strict=True))
                | {"first": s.first, "last": s.last, "num_values": s.num_values, "num_bad": s.num_bad}
                for name, s in self.metrics.series.items()
            },
        }

    def __repr__(self) -> str:
        """Name, extent and number of sources."""
        counts = f"{self.update} updates, {len(self.sources)} sources, {len(self.notes)} notes"
        return f"{type(self).__name__}({self.name!r}, {counts})"

    def __str__(self) -> str:
        """The table of sources, and the notes."""
        place = "" if self.position is None else f", epoch {self.position[0]}, step {self.position[1]}"
        lines = [f"{self.name}: {self.update} updates{place}"]
        columns = ("source", "batches", "share", "by weight", "passes", "loss", "waited")
        rows = [columns, *(_cells(source) for source in self.sources)]
        widths = [max(len(row[c]) for row in rows) for c in range(len(columns))]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join([*lines, *(f"  ! {note}" for note in self.notes)])


def _cells(source: SourceSummary) -> tuple[str, ...]:
    def show(value: float | None, text: str) -> str:
        return "-" if value is None else text.format(value)

    losses = "-" if source.last_loss is None else f"{source.first_loss:.4g} -> {source.last_loss:.4g}"
    return (
        source.name,
        show(source.num_batches, "{:,}"),
        show(source.share, "{:.2%}"),
        show(source.expected_share, "{:.2%}"),
        show(source.passes, "{:.2f}"),
        losses,
        show(source.wait_s, "{:.3g} s"),
    )
