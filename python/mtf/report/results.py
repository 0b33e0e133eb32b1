"""What came out of a run: the figures at the head of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtf.report.metrics import Metrics
from mtf.report.run_log import Session
from mtf.report.series import Series


@dataclass(frozen=True)
class Results:
    """The outcome of a run; None where a value isn't known.

    Attributes:
        metric: the validation metric that counts: ``checkpoint.monitor_metric``, else ``val/loss``, else the first.
        is_better_high: whether larger values of it are better.
        best: its best value.
        best_update: updates done when it was measured.
        final: its last value.
        training_loss: the last mean over all sources.
        duration_s: seconds inside ``fit``, over all sessions that ended.
        samples_per_s: mean over the rows.
    """

    metric: str | None = None
    is_better_high: bool = False
    best: float | None = None
    best_update: int | None = None
    final: float | None = None
    training_loss: float | None = None
    duration_s: float | None = None
    samples_per_s: float | None = None


def results_of(
    metrics: Metrics, config: Mapping[str, Any], sessions: Sequence[Session], last_time_s: float | None
) -> Results:
    """Reads them from the rows and the sessions.

    Args:
        metrics: everything that was logged.
        config: of the run, as plain data.
        sessions: in order.
        last_time_s: of the last sign of life, for a session that hasn't ended; None where it isn't known.
    """
    checkpoint = config.get("checkpoint", {})
    metric = _metric(metrics.series, checkpoint.get("monitor_metric"))
    series = metrics.series.get(metric) if metric else None
    high = checkpoint.get("monitor_mode") == "max" and metric == checkpoint.get("monitor_metric")
    best = None if series is None else series.highest if high else series.lowest
    loss, rate = metrics.series.get("train/loss"), metrics.series.get("throughput/samples_per_s")
    ends = [(s.start_s, s.end_s if s.end_s is not None else last_time_s) for s in sessions]
    spans = [end - start for start, end in ends if end is not None and end >= start]
    return Results(
        metric=metric,
        is_better_high=high,
        best=None if best is None else best[1],
        best_update=None if best is None else best[0],
        final=None if series is None else series.last,
        training_loss=None if loss is None else loss.last,
        duration_s=sum(spans) if spans else None,
        samples_per_s=rate.total / (rate.num_values - rate.num_bad)
        if rate and rate.num_values > rate.num_bad
        else None,
    )


def _metric(series: Mapping[str, Series], monitored: str | None) -> str | None:
    known = [name for name, values in series.items() if name.startswith("val/") and values.last is not None]
    for name in (monitored, "val/loss"):
        if name in known:
            return name
    overall = [name for name in known if name.count("/") == 1]
    return next(iter(overall or known), None)
