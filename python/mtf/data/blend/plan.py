"""What a blend will draw, counted in rows before a row is read."""

from __future__ import annotations

import bisect
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
    """

    name: str
    num_rows: int
    num_drawn: int
    share: float
    expected_share: float
    rows_per_batch: float
    passes: float
    num_tokens: int | None


@dataclass(frozen=True)
class BlendPlan:
    """Batches of a blend. ``print(plan)`` shows a table; a notebook shows it as HTML.

    Attributes:
        start: The first batch.
        num_batches: How many.
        num_samples: Their samples, on all ranks together.
        sources: One entry per source that is present.
        warnings: Sources that give nothing, or whose rows are repeated often.
        num_updates: Updates that they make.
        num_tokens: Real tokens in the rows drawn, on average; None where a source doesn't say.
    """

    start: int
    num_batches: int
    num_samples: int
    sources: list[BlendSourcePlan]
    warnings: list[str]
    num_updates: int
    num_tokens: int | None

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
        tokens = "" if self.num_tokens is None else f", {self.num_tokens:,} tokens"
        updates = "" if self.num_updates == self.num_batches else f" in {self.num_updates} updates"
        return f"batches {self.start} to {last}{updates}: {self.num_samples} samples{tokens}"


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
    while drawn(most) < num_tokens:
        most *= 2
    return bisect.bisect_left(range(1, most), num_tokens, key=drawn) + 1


def make_plan(run: BlendRun, start: int, num_batches: int, batches_per_update: int = 1) -> BlendPlan:
    """Counts batches ``[start, start + num_batches)``; costs nothing per batch unless the order is RANDOM."""
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
            )
        )
        if drawn == 0:
            warnings.append(f"{name!r} is starved: it gives no row")
        elif passes > _MANY_PASSES:
            warnings.append(f"each of the {length} rows of {name!r} is drawn {passes:.1f} times")
    every_tokens = [source.num_tokens for source in sources]
    num_tokens = None if None in every_tokens else sum(tokens or 0 for tokens in every_tokens)
    num_updates = -(-num_batches // batches_per_update)
    return BlendPlan(start, num_batches, end - begin, sources, warnings, num_updates, num_tokens)


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
