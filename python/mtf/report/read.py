"""Reading a run from the files it wrote: rows, run log and checkpoints, wherever they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtf.checkpoint.format.hashing import bounded, read_verified
from mtf.checkpoint.format.json_io import MAX_JSON_BYTES
from mtf.checkpoint.format.manifest import SCHEDULE_FILE, read_manifest
from mtf.checkpoint.storage.registry import is_url
from mtf.errors import CheckpointError, ConfigError, MtfError
from mtf.report.history import History
from mtf.report.kept import KeptCheckpoint
from mtf.report.locate import Place, checkpoints_in, locate, locate_url
from mtf.report.metrics import Metrics, read_events, read_rows, rows_of
from mtf.report.report import RunReport
from mtf.report.results import results_of
from mtf.report.run import CheckpointEntry, SourceSummary
from mtf.report.run_log import RunLogContent, Session, read_run_log
from mtf.report.timeline import Timeline
from mtf.schedule.accumulation import AccumulationSchedule
from mtf.schedule.schedule import Schedule

_MUCH_WAITING = 0.3


def read_run(path: str | Path) -> RunReport:
    """Reads the run in a folder: rows, run log and checkpoints, wherever in it they are; also one that is going on.

    Args:
        path: folder of the logs, of the checkpoints, or one above both; or the URL of checkpoints, such as
            ``s3://bucket/run``, which have the schedule and the metrics of their updates.

    Raises:
        ConfigError: there is no run, or there are several.
        CheckpointIOError: an object store can't be read.
    """
    place = locate_url(str(path)) if is_url(path) else locate(Path(path))
    notes: list[str] = []
    run_log = read_run_log(place.run_log) if place.run_log is not None else RunLogContent()
    notes += run_log.errors
    if not place.checkpoints and run_log.checkpoints is not None:
        place.checkpoints = checkpoints_in(run_log.checkpoints)
    entries, states, manifests = _read_checkpoints(place.checkpoints, run_log, notes)
    newest = manifests[-1] if manifests else {}
    config = run_log.config or newest.get("config", {})
    metrics = _read_metrics(place.metrics, manifests, notes)
    if metrics.num_replaced:
        notes.append(f"{metrics.num_replaced} rows were replaced by those of a resume from an earlier update.")
    places = [*run_log.schedules, *states]
    update = max([metrics.last_update, *(u for u, _ in places), *(s.last_update or 0 for s in run_log.sessions[-1:])])
    windows = AccumulationSchedule.of(config.get("performance", {}))
    timeline = Timeline([s for _, s in places], config.get("multi")) if places else None
    if timeline is not None and not run_log.schedules:  # a run log leaves no gaps
        notes += [
            f"The mixture was edited between steps {a.first_step() + a.step} and {b.first_step() + b.step}: what was "
            "drawn between them is shown as it was planned before."
            for a, b in timeline.gaps()
        ]
    history, position = _draw(timeline, places, update, windows, notes)
    report = RunReport(
        root=place.root,
        name=run_log.name or str(newest.get("experiment", os.path.basename(os.path.abspath(place.root)))),
        strategy=None if timeline is None else _strategy(timeline.last),
        seed=None if timeline is None else timeline.last.seed,
        update=update,
        position=position,
        window=windows.at(0, 0),
        versions=run_log.sessions[-1].versions
        if run_log.sessions
        else {name: newest[name] for name in ("mtf", "torch") if name in newest},
        config=config,
        sessions=run_log.sessions,
        checkpoints=entries,
        sources=_summaries(timeline, history, metrics),
        metrics=metrics,
        history=history,
        results=results_of(metrics, config, run_log.sessions, _last_time_s(place)),
        notes=notes,
    )
    if timeline is not None and position is not None:
        _compare_shares(timeline, metrics, windows, notes)
    _add_remarks(report)
    return report


def _last_time_s(place: Place) -> float | None:
    """When the files of a run were last written; None where there is none."""
    files = [path for path in (place.metrics, place.run_log) if path is not None]
    return max((path.stat().st_mtime for path in files), default=None)


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
    kept: Sequence[KeptCheckpoint], run_log: RunLogContent, notes: list[str]
) -> tuple[list[CheckpointEntry], list[tuple[int, Schedule]], list[dict[str, Any]]]:
    """Entries and manifests, oldest first, and the states of schedules with their updates."""
    monitor = run_log.config.get("checkpoint", {}).get("monitor_metric")
    entries, states, manifests = [], [], []
    for checkpoint in kept:
        name, folder = checkpoint.name, checkpoint.folder
        try:
            manifest = read_manifest(folder)
        except CheckpointError as error:
            entries.append(CheckpointEntry(name, 0, None, 0, checkpoint.links, None, False, str(error)))
            notes.append(f"Checkpoint {name} can't be used: {error}.")
            continue
        if run_log.name and manifest.get("experiment", run_log.name) != run_log.name:
            continue  # of another run that saves in the same folder
        replaced = _is_replaced(checkpoint, manifest["step"], run_log.sessions)
        monitored = manifest.get("metrics", {}).get(monitor) if monitor else None
        size = sum(int(entry["size"]) for entry in manifest["files"].values())
        entries.append(
            CheckpointEntry(
                name, manifest["step"], manifest.get("epoch"), size, checkpoint.links, monitored, replaced, None
            )
        )
        if replaced:
            continue
        manifests.append(manifest)
        expected = manifest["files"].get(SCHEDULE_FILE, {})
        if expected.get("size"):
            try:
                state = read_verified(folder, SCHEDULE_FILE, expected, bounded(MAX_JSON_BYTES))
                states.append((manifest["step"], Schedule.from_bytes(state)))
            except (MtfError, OSError) as error:
                notes.append(f"The schedule in checkpoint {name} can't be read: {error}.")
    order = sorted(range(len(manifests)), key=lambda i: int(manifests[i]["step"]))
    return sorted(entries, key=lambda entry: entry.update), states, [manifests[i] for i in order]


def _is_replaced(checkpoint: KeptCheckpoint, update: int, sessions: Sequence[Session]) -> bool:
    """Whether a later session continued from an earlier update, so that this checkpoint belongs to no past of it."""
    saved_s = checkpoint.saved_s
    return saved_s is not None and any(
        update > session.first_update and saved_s < session.start_s for session in sessions
    )


def _draw(
    timeline: Timeline | None,
    places: Sequence[tuple[int, Schedule]],
    update: int,
    windows: AccumulationSchedule,
    notes: list[str],
) -> tuple[History | None, tuple[int, int] | None]:
    if timeline is None:
        notes.append("Neither a run log nor a checkpoint tells of the schedule: what was drawn is not shown.")
        return None, None
    known = {u: schedule.position for u, schedule in places}
    try:
        position = known.get(update) or timeline.place(update, windows)
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


def _compare_shares(timeline: Timeline, metrics: Metrics, windows: AccumulationSchedule, notes: list[str]) -> None:
    """The shares that the run logged itself have to be those that its states tell."""
    names = timeline.last.names
    logged = {i: metrics.series.get(f"loader_proportions/{name}_batches") for i, name in enumerate(names)}
    found = {i: series for i, series in logged.items() if series is not None and series.last is not None}
    if not found:
        return
    update = max(series.last_update for series in found.values())
    try:
        epoch, step = timeline.place(update, windows)
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
