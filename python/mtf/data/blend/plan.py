"""What a blend will draw, counted in rows before a row is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mtf.data.blend.rows import NativeRows
from mtf.data.blend.run import BlendRun
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
    """

    start: int
    num_batches: int
    num_samples: int
    sources: list[BlendSourcePlan]
    warnings: list[str]

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
        return f"batches {self.start} to {last}: {self.num_samples} samples"


_MANY_PASSES = 10
"""A source of fewer passes isn't worth a warning: repeating data up to about four times costs little (Muennighoff et
al., "Scaling Data-Constrained Language Models", NeurIPS 2023), and small sources are often meant to be repeated."""


def make_plan(run: BlendRun, start: int, num_batches: int) -> BlendPlan:
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
        tokens = rows.tokens_per_row if isinstance(rows, NativeRows) else None
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
    return BlendPlan(start, num_batches, end - begin, sources, warnings)


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
