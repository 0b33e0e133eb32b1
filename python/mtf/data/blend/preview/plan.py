"""What a blend will draw, counted in rows before a row is read."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any

from mtf.data.blend.run import BlendRun
from mtf.errors import ConfigError
from mtf.formatting import html_table

_COLUMNS = ("source", "rows of a pass", "rows drawn", "share", "weight", "rows per batch", "passes", "tokens")


@dataclass(frozen=True)
class BlendSourcePlan:
    """What a range of batches takes from one source.

    Attributes:
        name: Of the source.
        num_rows: Rows in one pass.
        num_drawn: Rows that the batches take.
        share: ``num_drawn`` over the rows of all sources.
        expected_share: The share that the weights promise, averaged over the batches.
        rows_per_batch: ``num_drawn`` over the batches.
        passes: Runs through the source since the beginning of the run, up to the last batch.
        num_tokens: Real tokens in the rows drawn, on average; None where the source doesn't say.
        max_passes: Passes after which it is spent; None: any number.
        spent_in: The batch with the last row that it may give; None where that is behind the plan's last batch.
    """

    name: str
    num_rows: int
    num_drawn: int
    share: float
    expected_share: float
    rows_per_batch: float
    passes: float
    num_tokens: int | None
    max_passes: int | None = None
    spent_in: int | None = None


@dataclass(frozen=True)
class BlendPlan:
    """Batches of a blend. ``print(plan)`` shows a table; a notebook shows it as HTML.

    Attributes:
        start: The first batch.
        num_batches: How many.
        num_samples: Their samples, on all ranks together.
        sources: One entry per source that is present.
        warnings: Sources that give nothing or are spent on the way, or whose rows are repeated often.
        ends_because: Why the run ends with the last of these batches, in words; None where it doesn't, or isn't known
            to.
        num_updates: Updates that they make.
        num_tokens: Real tokens in the rows drawn, on average; None where a source doesn't say.
    """

    start: int
    num_batches: int
    num_samples: int
    sources: list[BlendSourcePlan]
    warnings: list[str]
    ends_because: str | None = None
    num_updates: int = 0
    num_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        """A table, then the warnings."""
        rows = [_COLUMNS, *map(_row, self.sources)]
        widths = [max(len(row[c]) for row in rows) for c in range(len(_COLUMNS))]
        lines = [self._headline()]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join([*lines, *(f"  ! {warning}" for warning in self.warnings)])

    def _repr_html_(self) -> str:
        return html_table(self._headline(), _COLUMNS, map(_row, self.sources))

    def _headline(self) -> str:
        last = self.start + self.num_batches - 1
        if not self.num_batches:
            return f"no batch from {self.start} on; {self.ends_because}"
        ends = "" if self.ends_because is None else f"; then the run ends: {self.ends_because}"
        tokens = "" if self.num_tokens is None else f", {self.num_tokens:,} tokens"
        updates = "" if self.num_updates == self.num_batches else f" in {self.num_updates} updates"
        return f"batches {self.start} to {last}{updates}: {self.num_samples} samples{tokens}{ends}"


_MANY_PASSES = 10
"""A source of fewer passes isn't worth a warning: repeating data up to about four times costs little (Muennighoff et
al., "Scaling Data-Constrained Language Models", NeurIPS 2023), and small sources are often meant to be repeated."""


def batches_of_tokens(run: BlendRun, start: int, num_tokens: int) -> int:
    """The fewest batches from ``start`` on that draw ``num_tokens`` tokens, on average.

    Raises:
        ConfigError: A source doesn't say how many tokens a row has.
    """
    per_row: list[float] = []
    for name, _, present in run.schedule.source_table:
        tokens = getattr(run.rows[name], "tokens_per_row", None) if present else 0.0
        if tokens is None:
            raise ConfigError(
                f"tokens can't be planned: source {name!r} doesn't say how many a row holds; give its object an "
                "attribute tokens_per_row, or plan batches"
            )
        per_row.append(tokens)

    def drawn(batches: int) -> int:
        before, after = (run.schedule.counts(run.sizes.start(at), 0) for at in (start, start + batches))
        return int(((after - before) * per_row).sum())

    most = 1
    while (last := run.num_batches(start + most) - start) == most and drawn(most) < num_tokens:
        most *= 2
    if last < most and (last < 1 or drawn(last) < num_tokens):
        return most  # the run ends before: the plan says so
    return bisect_left(range(1, min(last, most)), num_tokens, key=drawn) + 1


def make_plan(run: BlendRun, start: int, num_batches: int, batches_per_update: int = 1) -> BlendPlan:
    """Counts batches ``[start, start + num_batches)``; costs nothing per batch unless the order is RANDOM."""
    planned = max(start, run.num_batches(start + num_batches)) - start
    ends_because = run.why_over(start + planned) if planned < num_batches else None
    if planned == 0:
        return BlendPlan(start, 0, 0, [], [], ends_because)
    num_batches = planned
    begin, end = run.sizes.start(start), run.sizes.start(start + num_batches)
    schedule = run.schedule
    counts, before = schedule.counts(end, 0), schedule.counts(begin, 0)
    promised, promised_before = schedule.expected_counts(end, 0), schedule.expected_counts(begin, 0)
    sources, warnings = [], []
    for index, (name, length, present) in enumerate(schedule.source_table):
        assert length is not None
        drawn = int(counts[index] - before[index])
        if not present and not drawn:
            continue
        rows = run.rows[name]
        tokens = getattr(rows, "tokens_per_row", None)
        passes = int(counts[index]) / length
        max_passes, spent_in = _spent_in(run, index, name, start + num_batches)
        sources.append(
            BlendSourcePlan(
                name=name,
                num_rows=length,
                num_drawn=drawn,
                share=drawn / (end - begin),
                expected_share=(promised[index] - promised_before[index]) / (end - begin),
                rows_per_batch=drawn / num_batches,
                passes=passes,
                num_tokens=None if tokens is None else round(tokens * drawn),
                max_passes=max_passes,
                spent_in=spent_in,
            )
        )
        if spent_in is not None and run.caps is not None:
            passes_made = f"{max_passes} pass{'es' * (max_passes != 1)}"
            warnings.append(f"{name!r} is spent after {passes_made}, in batch {spent_in}: {run.caps.then(name)}")
        elif drawn == 0:
            warnings.append(f"{name!r} is starved: it gives no row")
        elif passes > _MANY_PASSES:
            warnings.append(f"each of the {length} rows of {name!r} is drawn {passes:.1f} times")
    every_tokens = [source.num_tokens for source in sources]
    num_tokens = None if None in every_tokens else sum(tokens or 0 for tokens in every_tokens)
    num_updates = -(-num_batches // batches_per_update)
    return BlendPlan(start, num_batches, end - begin, sources, warnings, ends_because, num_updates, num_tokens)


def _spent_in(run: BlendRun, index: int, name: str, stop: int) -> tuple[int | None, int | None]:
    """A source's largest number of passes, and the batch before ``stop`` in which it gives its last row."""
    most = None if run.caps is None else run.caps.max_passes.get(name)
    if most is None or name not in run.spent(stop):
        return most, None
    schedule, sizes = run.schedule, run.sizes
    total = int(schedule.counts(sizes.start(stop), 0)[index])
    low = sizes.batch_of(schedule.known_from(0))
    begin = bisect_left(
        range(low, stop), total, key=lambda batch: int(schedule.counts(sizes.start(batch + 1), 0)[index])
    )
    return most, low + begin if total else None


def _row(source: BlendSourcePlan) -> tuple[str, ...]:
    return (
        source.name,
        str(source.num_rows),
        str(source.num_drawn),
        f"{100 * source.share:.2f} %",
        f"{100 * source.expected_share:.2f} %",
        f"{source.rows_per_batch:.2f}",
        f"{source.passes:.2f}",
        "-" if source.num_tokens is None else str(source.num_tokens),
    )
