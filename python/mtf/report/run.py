"""A run, read from the files it wrote: everything that its report says, as plain values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf.checkpoint.format.manifest import MANIFEST_NAME, SCHEDULE_FILE, read_manifest
from mtf.errors import CheckpointError, ConfigError, MtfError
from mtf.report.history import History
from mtf.report.locate import checkpoints_in, locate
from mtf.report.metrics import Metrics, read_events, read_rows, rows_of
from mtf.report.run_log import RunLogContent, Session, read_run_log
from mtf.report.series import Series
from mtf.report.style import Palette
from mtf.report.timeline import Timeline
from mtf.schedule.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINKS = ("latest", "best")
_MUCH_WAITING = 0.3
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
        expected_share: what the weights let expect so far.
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
class RunReport:
    """What is known of a run. ``save`` writes it as one HTML file; a notebook shows the same page.

    Attributes:
        root: the folder that was read.
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
        notes: what a reader should know, warnings included.
    """

    root: Path
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

    def waits(self) -> dict[str, tuple[float, int]]:
        """Seconds waited for the batches of each source, and how many there were."""
        return {s.name: (s.wait_s, s.num_batches or 0) for s in self.sources if s.wait_s is not None}

    def pictures(self) -> dict[str, Figure]:
        """The figures that this run has data for, by name.

        Raises:
            ConfigError: matplotlib isn't installed.
        """
        from mtf.report import pictures

        colors = self.palette
        figures: dict[str, Figure] = {}
        if self.history is not None and self.history.num_steps:
            figures["schedule"] = pictures.schedule_raster(self.history)
            figures["shares"] = pictures.shares(self.history)
            figures["passes"] = pictures.passes(self.history)
        if losses := self.training_losses():
            figures["losses"] = pictures.losses(losses, colors, self.update)
        if validation := self.validation_metrics():
            figures["validation"] = pictures.validation(validation, colors, self.update)
        share, waits = self.metrics.series.get("throughput/data_wait_share"), self.waits()
        if share is not None or waits:
            figures["data_wait"] = pictures.data_wait(share, waits, colors)
        return figures

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

    def to_html(self) -> str:
        """One page that needs nothing else: pictures inside, light and dark, printable."""
        from mtf.report.page import page

        return page(self)

    def save(self, path: str | Path) -> None:
        """Writes the page."""
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        """In a frame, so that the page's style stays inside it."""
        import html

        return (
            f'<iframe srcdoc="{html.escape(self.to_html())}" title="{html.escape(self.name)}" '
            'style="width:100%;height:42em;border:0"></iframe>'
        )

    def __repr__(self) -> str:
        """Name, extent and number of sources."""
        return f"RunReport({self.name!r}, {self.update} updates, {len(self.sources)} sources, {len(self.notes)} notes)"

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


def read_run(path: str | Path) -> RunReport:
    """Reads the run in a folder: rows, journal and checkpoints, wherever in it they are; also one that is going on.

    Args:
        path: folder of the logs, of the checkpoints, or one above both.

    Raises:
        ConfigError: there is no run, or there are several.
    """
    place = locate(Path(path))
    notes: list[str] = []
    journal = read_run_log(place.journal) if place.journal is not None else RunLogContent()
    notes += journal.errors
    if not place.checkpoints and journal.checkpoints is not None:
        place.checkpoints = checkpoints_in(journal.checkpoints)
    entries, states, manifests = _read_checkpoints(place.checkpoints, journal, notes)
    newest = manifests[-1] if manifests else {}
    config = journal.config or newest.get("config", {})
    metrics = _read_metrics(place.metrics, manifests, notes)
    if metrics.num_replaced:
        notes.append(f"{metrics.num_replaced} rows were replaced by those of a resume from an earlier update.")
    places = [*journal.schedules, *states]
    update = max([metrics.last_update, *(u for u, _ in places), *(s.last_update or 0 for s in journal.sessions[-1:])])
    window = int(config.get("performance", {}).get("gradient_accumulation_steps", 1))
    timeline = Timeline([s for _, s in places], config.get("multi")) if places else None
    if timeline is not None and not journal.schedules:  # a journal leaves no gaps
        notes += [
            f"The mixture was edited between steps {a.first_step() + a.step} and {b.first_step() + b.step}: what was "
            "drawn between them is shown as it was planned before."
            for a, b in timeline.gaps()
        ]
    history, position = _draw(timeline, places, update, window, notes)
    report = RunReport(
        root=place.root,
        name=journal.name or str(newest.get("experiment", place.root.resolve().name)),
        strategy=None if timeline is None else _strategy(timeline.last),
        seed=None if timeline is None else timeline.last.seed,
        update=update,
        position=position,
        window=window,
        versions=journal.sessions[-1].versions
        if journal.sessions
        else {name: newest[name] for name in ("mtf", "torch") if name in newest},
        config=config,
        sessions=journal.sessions,
        checkpoints=entries,
        sources=_summaries(timeline, history, metrics),
        metrics=metrics,
        history=history,
        notes=notes,
    )
    if timeline is not None and position is not None:
        _compare_shares(timeline, metrics, window, notes)
    _add_remarks(report)
    return report


def _read_metrics(path: Path | None, manifests: Sequence[dict[str, Any]], notes: list[str]) -> Metrics:
    if path is not None:
        return read_events(path) if path.is_dir() else read_rows(path)
    known = [
        (m["step"], {k: float(v) for k, v in m.get("metrics", {}).items() if type(v) in (int, float)})
        for m in sorted(manifests, key=lambda m: int(m["step"]))
    ]
    notes.append(
        "No rows of metrics were found; values are those that checkpoints keep. "
        "logging.logger_type='jsonl' writes all of them."
    )
    return rows_of(known)


def _read_checkpoints(
    paths: Sequence[Path], journal: RunLogContent, notes: list[str]
) -> tuple[list[CheckpointEntry], list[tuple[int, Schedule]], list[dict[str, Any]]]:
    """Entries and manifests, oldest first, and the states of schedules with their updates."""
    monitor = journal.config.get("checkpoint", {}).get("monitor_metric")
    entries, states, manifests = [], [], []
    for path in paths:
        links = [link for link in _LINKS if _leads_to(path.parent / link, path)]
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            entries.append(CheckpointEntry(path.name, 0, None, 0, links, None, False, str(error)))
            notes.append(f"Checkpoint {path.name} can't be used: {error}.")
            continue
        if journal.name and manifest.get("experiment", journal.name) != journal.name:
            continue  # of another run that saves in the same folder
        replaced = _is_replaced(path, manifest["step"], journal.sessions)
        monitored = manifest.get("metrics", {}).get(monitor) if monitor else None
        size = sum(int(entry["size"]) for entry in manifest["files"].values())
        entries.append(
            CheckpointEntry(path.name, manifest["step"], manifest.get("epoch"), size, links, monitored, replaced, None)
        )
        if replaced:
            continue
        manifests.append(manifest)
        if manifest["files"].get(SCHEDULE_FILE, {}).get("size"):
            try:
                states.append((manifest["step"], Schedule.from_bytes((path / SCHEDULE_FILE).read_bytes())))
            except (MtfError, OSError) as error:
                notes.append(f"The schedule in checkpoint {path.name} can't be read: {error}.")
    order = sorted(range(len(manifests)), key=lambda i: int(manifests[i]["step"]))
    return sorted(entries, key=lambda entry: entry.update), states, [manifests[i] for i in order]


def _is_replaced(path: Path, update: int, sessions: Sequence[Session]) -> bool:
    """Whether a later session went on from an earlier update, so that this checkpoint belongs to no past of it."""
    saved_s = (path / MANIFEST_NAME).stat().st_mtime
    return any(update > session.first_update and saved_s < session.start_s for session in sessions)


def _draw(
    timeline: Timeline | None, places: Sequence[tuple[int, Schedule]], update: int, window: int, notes: list[str]
) -> tuple[History | None, tuple[int, int] | None]:
    if timeline is None:
        notes.append("Neither a journal nor a checkpoint tells of the schedule: what was drawn is not shown.")
        return None, None
    known = {u: schedule.position for u, schedule in places}
    try:
        position = known.get(update) or timeline.place(update, window)
    except ConfigError as error:
        furthest = max(known)
        notes.append(f"What was drawn is shown up to update {furthest} of {update}: {error}.")
        position = known[furthest]
    if timeline.first_epoch > 0:
        notes.append(f"What was drawn before epoch {timeline.first_epoch} is not known: no state of it was kept.")
    history = timeline.history(*position)
    epoch, step = position
    if step and step == timeline.schedule_of(epoch).num_steps(epoch):
        position = (epoch + 1, 0)  # the same place, said as checkpoints say it
    return history, position


def _strategy(schedule: Schedule) -> str:
    mixture = schedule.mixture
    return f"{mixture.strategy}, {mixture.order}" if mixture.strategy == "WEIGHTED" else str(mixture.strategy)


def _summaries(timeline: Timeline | None, history: History | None, metrics: Metrics) -> list[SourceSummary]:
    if timeline is None or history is None:
        named = (key[len("train/") : -len("/loss")] for key in metrics.series if key.startswith("train/"))
        names = [name for name in named if name and f"train/{name}/loss" in metrics.series]
    else:
        names = history.names
    weights = [None] * len(names) if timeline is None else _weights(timeline.last)
    summaries = []
    for i, name in enumerate(names):
        loss = metrics.series.get(f"train/{name}/loss")
        wait = metrics.series.get(f"throughput/{name}/data_wait_s")
        weighted = history is not None and history.is_weighted
        summaries.append(
            SourceSummary(
                name=name,
                weight=weights[i],
                length=None if history is None else history.lengths[i],
                num_batches=None if history is None else int(history.totals[i]),
                passes=None if history is None else history.passes[i],
                share=None if history is None else float(history.shares[i]),
                expected_share=float(history.expected_shares[i]) if history is not None and weighted else None,
                max_deviation=float(history.deviations[i])
                if history is not None and history.deviations[i] == history.deviations[i]
                else None,
                first_loss=None if loss is None else loss.first,
                last_loss=None if loss is None else loss.last,
                wait_s=None if wait is None else wait.total,
            )
        )
    return summaries


def _weights(schedule: Schedule) -> list[float | None]:
    """Weights now, by index; None for sources that were removed, and where no fixed weights decide."""
    mixture, present = schedule.mixture, schedule.present
    if mixture.strategy != "WEIGHTED" or mixture.curve is not None:
        return [None] * len(present)
    weights = [w if here else 0.0 for w, here in zip(mixture.weights or [1.0] * len(present), present, strict=True)]
    return [weight / sum(weights) if here else None for weight, here in zip(weights, present, strict=True)]


def _compare_shares(timeline: Timeline, metrics: Metrics, window: int, notes: list[str]) -> None:
    """The shares that the run logged itself have to be those that its states tell."""
    names = timeline.last.names
    logged = {i: metrics.series.get(f"loader_proportions/{name}_batches") for i, name in enumerate(names)}
    found = {i: series for i, series in logged.items() if series is not None and series.last is not None}
    if not found:
        return
    update = max(series.last_update for series in found.values())
    try:
        epoch, step = timeline.place(update, window)
    except ConfigError:
        return
    counts = timeline.schedule_of(epoch).counts(step, epoch)
    now = {i: series for i, series in found.items() if series.last_update == update and i < len(counts)}
    total = sum(int(counts[i]) for i in now)
    wrong = [names[i] for i, s in now.items() if total and abs(int(counts[i]) / total - (s.last or 0.0)) > 1e-6]
    if wrong:
        notes.append(
            f"The schedule that is shown differs from the shares logged at update {update} ({', '.join(wrong[:5])}): "
            "it was edited after its last state was kept."
        )


def _add_remarks(report: RunReport) -> None:
    """What stands out."""
    notes = report.notes
    for before, after in zip(report.sessions, report.sessions[1:], strict=False):
        if before.last_update is None:
            notes.append(
                f"The session that began at update {before.first_update} broke off; the run went on from update "
                f"{after.first_update}."
            )
        elif before.last_update > after.first_update:
            notes.append(
                f"Updates {after.first_update + 1} to {before.last_update} were done twice: a session had got that "
                f"far, and the run went on from update {after.first_update}."
            )
    bad = [(name, s.num_bad) for name, s in report.metrics.series.items() if s.num_bad]
    if bad:
        listed = ", ".join(f"{name} ({n})" for name, n in bad[:5]) + (", ..." if len(bad) > 5 else "")
        notes.append(f"Values that are not finite were left out: {listed}.")
    starved = [s.name for s in report.sources if s.num_batches == 0]
    if starved and report.update:
        notes.append(f"No batch was drawn from {', '.join(starved[:8])}{', ...' if len(starved) > 8 else ''}.")
    share = report.metrics.series.get("throughput/data_wait_share")
    if share is not None and share.num_values > share.num_bad:
        mean = share.total / (share.num_values - share.num_bad)
        if mean > _MUCH_WAITING:
            waits = report.waits()
            most = max(waits, key=lambda name: waits[name][0]) if waits else None
            longest = f", longest for {most}" if most else ""
            notes.append(f"Training waited for data {mean:.0%} of the time{longest}: see the performance guide.")


def _leads_to(link: Path, path: Path) -> bool:
    return link.is_symlink() and os.path.basename(os.readlink(link)) == path.name


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
