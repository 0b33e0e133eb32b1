"""What a schedule will draw: counted before a single batch is read, as a table, data or a plot."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtf.errors import ConfigError
from mtf.formatting import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mtf._core import Schedule  # the native part, which is all that a plan asks

_COLUMNS = ("source", "length", "steps", "share", "weight", "deviation", "passes", "unused tail")


@dataclass(frozen=True)
class SourcePlan:
    """What one epoch takes from one source.

    Attributes:
        name: of the source.
        length: batches in one pass; None if unknown.
        num_steps: draws in the epoch.
        share: ``num_steps`` over the epoch's steps.
        expected_share: WEIGHTED: the share that the weights promise, averaged over the epoch; else None.
        max_deviation: WEIGHTED: largest distance, at any step, from the draws that the weights promise; else None.
        first_pass: the pass in which the source stands when the epoch begins.
        passes: runs through the source, in parts too; None where the length is unknown.
        unused_tail: batches of the last pass that are never read, because the next epoch opens the source afresh.
    """

    name: str
    length: int | None
    num_steps: int
    share: float
    expected_share: float | None
    max_deviation: float | None
    first_pass: int
    passes: float | None
    unused_tail: int


@dataclass(frozen=True)
class EpochPlan:
    """One epoch.

    Attributes:
        epoch: its number.
        num_steps: its batches; None if that shows only when its sources end (then nothing else is known).
        deviation_bound: EVEN, as long as no source leaves: the certificate that no deviation exceeds; else
            None.
        sources: one entry per source that is present.
        warnings: sources that are starved or never finished.
    """

    epoch: int
    num_steps: int | None
    deviation_bound: float | None
    sources: list[SourcePlan]
    warnings: list[str]


@dataclass(frozen=True, repr=False)
class Plan:
    """Epochs to come. ``print(plan)`` shows a table; a notebook shows it as HTML."""

    strategy: str
    epochs: list[EpochPlan]
    _schedule: Schedule = field(repr=False, compare=False)

    @property
    def warnings(self) -> list[str]:
        """All warnings, each with its epoch."""
        return [f"epoch {e.epoch}: {w}" for e in self.epochs for w in e.warnings]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {"strategy": self.strategy, "epochs": [asdict(epoch) for epoch in self.epochs]}

    def __str__(self) -> str:
        """A table per epoch, then the warnings."""
        parts = []
        for epoch in self.epochs:
            parts.append(_headline(epoch, self.strategy))
            if epoch.num_steps is not None:
                rows = [_COLUMNS, *(_row(source) for source in epoch.sources)]
                widths = [max(len(row[c]) for row in rows) for c in range(len(_COLUMNS))]
                for row in rows:
                    cells = [
                        row[0].ljust(widths[0]),
                        *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
                    ]
                    parts.append("  " + "  ".join(cells).rstrip())
            parts.extend(f"  ! {warning}" for warning in epoch.warnings)
        return "\n".join(parts)

    def __repr__(self) -> str:
        """Epochs, steps and warnings, counted."""
        steps = [epoch.num_steps for epoch in self.epochs]
        total = "an unknown number of" if None in steps else sum(n or 0 for n in steps)
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return f"Plan({self.strategy}, {len(steps)} epochs, {total} steps{warned}; print it for the table)"

    def _repr_html_(self) -> str:
        parts = []
        for epoch in self.epochs:
            headline = _headline(epoch, self.strategy)
            if epoch.num_steps is not None:
                parts.append(html_table(headline, _COLUMNS, map(_row, epoch.sources)))
            else:
                parts.append(f"<p><b>{html.escape(headline)}</b></p>")
            if epoch.warnings:
                parts.append("<ul>" + "".join(f"<li>{html.escape(w)}</li>" for w in epoch.warnings) + "</ul>")
        return "".join(parts)

    @property
    def schedule(self) -> Schedule:
        """The schedule that was planned."""
        return self._schedule

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draws which source gives when, realised against expected shares, and passes.

        ``mtf.report`` has the same pictures one by one.

        Args:
            path: of an image file; its ending chooses the format. None: only the figure, which a notebook shows.

        Returns:
            The matplotlib figure. Needs matplotlib (``pip install 'mtf-torch[plot]'``).

        Raises:
            ConfigError: matplotlib doesn't know the format.
        """
        from mtf.report import plan_overview

        figure: Figure = plan_overview(self)
        if path is None:
            return figure
        try:
            figure.savefig(path)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
        return figure


def make_plan(schedule: Schedule, epochs: int = 1) -> Plan:
    """Counts ``epochs`` epochs from the cursor's on, in about 5 ns per step.

    Args:
        schedule: isn't moved.
        epochs: how many, at least 1. The plan stops early at the first epoch whose end isn't known yet.
    """
    if epochs < 1:
        raise ConfigError(f"epochs must be at least 1, got {epochs}")
    plans: list[EpochPlan] = []
    for epoch in range(schedule.epoch, schedule.epoch + epochs):
        num_steps = schedule.num_steps(epoch)
        if num_steps is None:
            reason = "how many steps it has shows when its sources end"
            plans.append(EpochPlan(epoch, None, None, [], [reason]))
            break
        plans.append(_plan_epoch(schedule, epoch, num_steps))
    return Plan(schedule.mixture.strategy, plans, schedule)


def _plan_epoch(schedule: Schedule, epoch: int, num_steps: int) -> EpochPlan:
    report = schedule.report(epoch)
    mixture = schedule.mixture
    is_weighted = mixture.strategy == "WEIGHTED"
    continues = mixture.continue_across_epochs
    if continues is None:
        continues = mixture.policy == "FIXED_NUM_STEPS"
    sources, warnings = [], []
    for (name, length, present), counted in zip(schedule.source_table, report["sources"], strict=False):
        drawn, expected, deviation, (first_pass, _), (_, end_batch) = counted
        if not present and not drawn:
            continue
        tail = 0 if length is None or continues or not drawn else length - end_batch
        share = drawn / num_steps if num_steps else 0.0
        sources.append(
            SourcePlan(
                name=name,
                length=length,
                num_steps=drawn,
                share=share,
                expected_share=expected / num_steps if is_weighted and num_steps else None,
                max_deviation=deviation if is_weighted else None,
                first_pass=first_pass,
                passes=None if length is None else drawn / length,
                unused_tail=tail,
            )
        )
        if drawn == 0:
            warnings.append(f"{name!r} is starved: it gives no batch")
        elif length is not None and drawn < length and not continues:
            warnings.append(f"{name!r} is never finished: {length - drawn} of its {length} batches stay unread")
    # The certificate holds as long as no source leaves.
    bound = (report["deviation_bound"] or None) if mixture.cycle or mixture.policy == "MIN_LENGTH" else None
    return EpochPlan(epoch, num_steps, bound, sources, warnings)


def _headline(epoch: EpochPlan, strategy: str) -> str:
    steps = "unknown length" if epoch.num_steps is None else f"{epoch.num_steps} steps"
    bound = "" if epoch.deviation_bound is None else f", deviation at most {epoch.deviation_bound:.2f}"
    return f"epoch {epoch.epoch}: {strategy}, {steps}{bound}"


def _row(source: SourcePlan) -> tuple[str, ...]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f} %"

    return (
        source.name,
        "-" if source.length is None else str(source.length),
        str(source.num_steps),
        percent(source.share),
        percent(source.expected_share),
        "-" if source.max_deviation is None else f"{source.max_deviation:.2f}",
        "-" if source.passes is None else f"{source.passes:.2f}",
        str(source.unused_tail),
    )
