"""Which rows a batch of a blend has, and in which batches a row or document comes: by inversion, without a replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtf.config.checks import nearest, whole_number
from mtf.data.blend.rows import NativeRows, Rows, RowSource, is_permuted, num_rows_of
from mtf.data.blend.run import BlendRun, SampleTable
from mtf.data.tracing.row_counts import RowCount
from mtf.data.tracing.samples import BatchTrace, SamplePlace, TokenOrigin, rank_of
from mtf.errors import ConfigError
from mtf.random import Permutation, fold_in

_DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How the samples of a global batch lie on the ranks.

    Attributes:
        world_size: Number of ranks.
        by_source: Whether a batch has one part per source.
    """

    world_size: int
    by_source: bool

    def __post_init__(self) -> None:
        """Checks the number of ranks."""
        whole_number("world_size", self.world_size, 1)

    def part_of(self, place: int, size: int) -> tuple[int, int]:
        """The rank that has a place of a batch of ``size`` samples, and the first place that this rank has."""
        return rank_of(place, size, self.world_size)


def trace_batch(run: BlendRun, step: int, layout: Layout) -> BatchTrace:
    """The samples of batch ``step``. Costs about a microsecond each, at any step."""
    if run.is_over(step):
        raise ConfigError(f"there is no batch {step}: {run.why_over(step)}")
    table = run.samples(run.sizes.start(step), run.sizes.size(step))
    samples, seen = [], [0] * len(table.names)
    part = -1
    rows = zip(table.source.tolist(), table.pass_.tolist(), table.row.tolist(), strict=True)
    for place, (source, pass_, row) in enumerate(rows):
        rank, first = layout.part_of(place, len(table))
        if rank != part:
            part, seen = rank, [0] * len(table.names)
        rank_row = seen[source] if layout.by_source else place - first
        seen[source] += 1
        samples.append(SamplePlace(step, place, rank, rank_row, table.names[source], pass_, row))
    return BatchTrace(step, layout.world_size, samples, lambda place: _tokens_of(run, table, place))


def _tokens_of(run: BlendRun, table: SampleTable, place: int) -> list[TokenOrigin]:
    name = table.names[table.source[place]]
    rows = run.rows[name]
    if not isinstance(rows, NativeRows) or rows.provenance is None:
        return []
    return rows.provenance.trace(int(table.pass_[place]), int(table.place[place]), key=run.source_key(name))


def record_of(rows: Rows) -> dict[str, Any]:
    """How the rows of a source are numbered, as plain data."""
    if isinstance(rows, NativeRows) and rows.provenance is not None:
        return rows.provenance.record()
    # A RowSource numbers its rows by their places; arrays and datasets are shuffled by the blend.
    return {"kind": "rows", "rows": num_rows_of(rows), "shuffle": not isinstance(rows, RowSource)}


def find_samples(
    run: BlendRun,
    source: str,
    row: int | None,
    document: int | None,
    batches: tuple[int, int],
    layout: Layout,
) -> list[SamplePlace]:
    """The samples of batches ``[begin, end)`` that are a row, or hold a token of a document, in their order.

    Raises:
        ConfigError: No such source, row or document, or not exactly one of these.
    """
    names = run.schedule.names
    if source not in names:
        raise ConfigError(f"there is no source {source!r}{nearest(source, names)} (sources: {names})")
    if (row is None) == (document is None):
        raise ConfigError(f"give either row or document, but they are {row!r} and {document!r}")
    index = names.index(source)
    stop = run.num_batches(batches[1])
    begin, end = run.sizes.start(batches[0]), run.sizes.start(stop)
    if begin >= end:
        return []
    if document is not None:
        document = whole_number(f"source {source!r}: document", document, 0)
    else:
        row, most = whole_number(f"source {source!r}: row", row, 0), run.row_counts.most(index)
        if row >= most:
            raise ConfigError(f"source {source!r}: row must be in [0, {most}), but is {row}")
    found = []
    for count in run.row_counts.within(begin, end):
        if not count.has(index):
            continue
        # A source that is at the end of its pass before `begin` gives the next one: the pass before is looked at in
        # vain.
        (first, given), (last, _) = (run.schedule.places(at, 0)[index] for at in (count.begin, count.end))
        passes, places = _places_of(run, index, row, document, np.arange(first, last + 1, dtype=np.int64), count)
        is_left = (passes > first) | (places >= given)  # draws before may be out of reach
        passes, places = passes[is_left], places[is_left]
        positions = _positions(run, index, passes, places, count.begin, count.end)
        at = np.argsort(positions, kind="stable")
        found += [
            _sample_at(run, int(positions[k]), index, int(passes[k]), int(places[k]), layout, count)
            for k in at.tolist()
            if positions[k] >= count.begin
        ]
    return found


def _places_of(
    run: BlendRun, index: int, row: int | None, document: int | None, passes: NDArray[np.int64], count: RowCount
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Passes and places in them at which a row or document comes; a document may come several times in a pass."""
    source = run.schedule.names[index]
    rows, key = run.rows_of(source), run.source_key(source)
    pairs: list[tuple[int, int]] = []
    if document is not None:
        provenance = rows.provenance if isinstance(rows, NativeRows) else None
        if provenance is None:
            raise ConfigError(
                f"source {source!r} has no documents, so that document={document} can't be found; "
                "give row, the row's number in the source"
            )
        try:
            for pass_ in passes.tolist():
                run.require_rows(index, pass_, count)
                pairs += [(pass_, place) for place in provenance.find(document, pass_, key=key)]
        except IndexError as error:
            raise ConfigError(f"source {source!r}: {error}") from None
        return _columns(pairs)
    assert row is not None
    if not is_permuted(rows) and isinstance(rows, NativeRows):
        for pass_ in passes.tolist():
            run.require_rows(index, pass_, count)
    are_whole = [count.of_pass(index, pass_) == (num_rows_of(rows), 0) for pass_ in passes.tolist()]
    if isinstance(rows, NativeRows) and all(are_whole) and row < num_rows_of(rows):
        return passes, rows.core.places_of(key, passes.astype(np.uint64), row)
    for pass_ in passes.tolist():
        num, shift = count.of_pass(index, pass_)
        if row < num:  # else the pass began before there was this row
            place = row if isinstance(rows, RowSource) else Permutation(num, fold_in(key, pass_)).inverse(row)
            pairs.append((pass_, place + shift))
    return _columns(pairs)


def _columns(pairs: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    columns = np.array(pairs, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _positions(
    run: BlendRun, index: int, passes: NDArray[np.int64], places: NDArray[np.int64], begin: int, end: int
) -> NDArray[np.int64]:
    """Where in the samples of the run a source's draws come; below ``begin`` where they don't come in the range."""
    if run.schedule.mixture.order != "RANDOM":
        return run.schedule.steps_of(index, passes.astype(np.uint64), places.astype(np.uint64), end, 0)
    # Independent draws have no inverse: they are made again, once for all that is looked for.
    wanted = {pair: k for k, pair in enumerate(zip(passes.tolist(), places.tolist(), strict=True))}
    positions = np.full(len(passes), -1, np.int64)
    for at in range(begin, end, _DRAWS_AT_ONCE):
        sources, of_pass, of_place = run.draws(at, min(_DRAWS_AT_ONCE, end - at))
        mine = np.flatnonzero(sources == index)
        for k in mine[np.isin(of_place[mine], places)].tolist():
            number = wanted.get((int(of_pass[k]), int(of_place[k])))
            if number is not None:
                positions[number] = at + k
    return positions


def _sample_at(
    run: BlendRun, position: int, index: int, pass_: int, place: int, layout: Layout, count: RowCount
) -> SamplePlace:
    step = run.sizes.batch_of(position)
    begin = run.sizes.start(step)
    rank, first = layout.part_of(position - begin, run.sizes.size(step))
    rank_row = position - begin - first
    if layout.by_source:
        counts: Sequence[NDArray[np.int64]] = [run.schedule.counts(p, 0) for p in (begin + first, position)]
        rank_row = int(counts[1][index] - counts[0][index])
    name = run.schedule.names[index]
    row = int(run.find_rows(index, pass_, np.array([place]), count)[0])
    return SamplePlace(step, position - begin, rank, rank_row, name, pass_, row)
