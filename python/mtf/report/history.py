"""What a schedule draws between two places, counted at a bounded number of steps: what the pictures are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtf.errors import ConfigError
from mtf.schedule.plan import Plan

if TYPE_CHECKING:
    from mtf._core import Schedule

MAX_BINS = 600
_MAX_COUNTED = 50_000_000  # steps up to which every one of them is looked at for the largest deviation


@dataclass(frozen=True, repr=False)
class History:
    """Draws of each source from the first step of ``first_epoch`` on.

    Attributes:
        names: of all sources, by index.
        lengths: batches per pass of each source; None where unknown.
        first_epoch: the epoch of step 0.
        edges: [B + 1]: the steps at which was counted, from 0 to the last.
        counts: [S, B + 1]: draws of each source before each edge.
        expected: [S, B + 1]: draws that the weights promise; equal to ``counts`` in epochs without weights.
        is_weighted: whether weights decide in any epoch.
        epoch_starts: [E + 1]: the first step of every epoch, then the end of the last.
        bounds: [E]: how far a source can be from its expected draws since its epoch's start, where EVEN certifies
            it; NaN elsewhere.
        deviations: [S]: the largest distance from the expected draws since an epoch's start at any step of any whole
            epoch; NaN where no weights decide or there are too many steps to look at each.
    """

    names: list[str]
    lengths: list[int | None]
    first_epoch: int
    edges: NDArray[np.int64]
    counts: NDArray[np.int64]
    expected: NDArray[np.float64]
    is_weighted: bool
    epoch_starts: NDArray[np.int64]
    bounds: NDArray[np.float64]
    deviations: NDArray[np.float64]

    def __repr__(self) -> str:
        """Sources, steps and epochs."""
        steps = f"{self.num_steps} steps counted at {len(self.edges)} places"
        return f"History([{', '.join(self.names)}], {steps}, epochs {self.first_epoch} and later)"

    @property
    def num_steps(self) -> int:
        """Steps counted."""
        return int(self.edges[-1])

    @property
    def totals(self) -> NDArray[np.int64]:
        """[S]: draws of each source."""
        return self.counts[:, -1]

    @property
    def shares(self) -> NDArray[np.float64]:
        """[S]: share of each source in all steps."""
        return self.totals / max(self.num_steps, 1)

    @property
    def expected_shares(self) -> NDArray[np.float64]:
        """[S]: the share that the weights promise."""
        return self.expected[:, -1] / max(self.num_steps, 1)

    @property
    def passes(self) -> list[float | None]:
        """Runs through each source, in parts too; None where the length is unknown."""
        return [n / length if length else None for n, length in zip(self.totals.tolist(), self.lengths, strict=True)]


def plan_history(plan: Plan, max_bins: int = MAX_BINS) -> History:
    """The epochs of a plan.

    Raises:
        ConfigError: none of them has a known number of steps.
    """
    known = [epoch for epoch in plan.epochs if epoch.num_steps]
    if not known:
        raise ConfigError("there is nothing to plot: how many steps these epochs have is not known yet")
    last = known[-1]
    return make_history(lambda _: plan.schedule, known[0].epoch, last.epoch, last.num_steps or 0, max_bins)


def make_history(
    schedule_of: Callable[[int], Schedule],
    first_epoch: int,
    last_epoch: int,
    last_step: int,
    max_bins: int = MAX_BINS,
    states_of: Callable[[int], Sequence[Schedule]] | None = None,
) -> History:
    """Counts from the start of one epoch to a step of another.

    Args:
        schedule_of: the schedule that knows an epoch; asked for each in turn.
        first_epoch: where to begin.
        last_epoch: where to end.
        last_step: the last epoch's steps to count; more than it has means all.
        max_bins: how many edges to count at, at most; every step where there are fewer.
        states_of: all schedules that tell of an epoch, oldest first, for epochs with more edits than the last of them
            keeps; None: the one of ``schedule_of``.
    """
    epochs = range(first_epoch, last_epoch + 1)
    starts = _starts(schedule_of, epochs, last_step)
    total = starts[-1]
    edges = np.unique(np.linspace(0, total, min(max_bins, total) + 1).round().astype(np.int64))
    last = schedule_of(last_epoch)
    table = last.source_table
    names = [name for name, _, _ in table]
    counts = np.zeros((len(names), len(edges)), np.int64)
    expected = np.zeros((len(names), len(edges)))
    bounds = np.full(len(epochs), np.nan)
    deviations = np.full(len(names), np.nan)
    before, expected_before = np.zeros(len(names), np.int64), np.zeros(len(names))
    is_weighted = False
    for number, epoch in enumerate(epochs):
        schedule, begin, end = schedule_of(epoch), starts[number], starts[number + 1]
        told = [schedule] if states_of is None else states_of(epoch)
        lo, hi = np.searchsorted(edges, [begin, end], side="right")
        for column in range(lo if number else 0, hi):
            step = int(edges[column]) - begin
            drawn, promised = _counts_at(told, step, epoch, len(names))
            counts[:, column], expected[:, column] = before + drawn, expected_before + promised
        drawn, promised = _counts_at(told, end - begin, epoch, len(names))
        before, expected_before = before + drawn, expected_before + promised
        if schedule.mixture.strategy == "WEIGHTED":
            is_weighted = True
            if total <= _MAX_COUNTED and schedule.num_steps(epoch):
                bounds[number], largest = _deviations(schedule, epoch)
                deviations = np.fmax(deviations, _padded(largest, len(names)))
    return History(
        names=names,
        lengths=[length for _, length, _ in table],
        first_epoch=first_epoch,
        edges=edges,
        counts=counts,
        expected=expected,
        is_weighted=is_weighted,
        epoch_starts=np.array(starts, np.int64),
        bounds=bounds,
        deviations=deviations,
    )


def _starts(schedule_of: Callable[[int], Schedule], epochs: range, last_step: int) -> list[int]:
    """The first step of each epoch, and the end of the last.

    Raises:
        ConfigError: an epoch before the last has no known number of steps.
    """
    starts = [0]
    for epoch in epochs:
        whole = schedule_of(epoch).num_steps(epoch)
        if whole is None and epoch < epochs[-1]:
            raise ConfigError(f"epoch {epoch}: its number of steps isn't known")
        steps = last_step if whole is None else min(whole, last_step) if epoch == epochs[-1] else whole
        starts.append(starts[-1] + steps)
    return starts


def _counts_at(
    told: Sequence[Schedule], step: int, epoch: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draws of each source before a step of an epoch, and those that the weights promise.

    Of several schedules, oldest first, each knows its steps from `known_from` on up to the next edit. Where edits lie
    between two of them that neither tells of, both numbers are interpolated.
    """

    def look(schedule: Schedule, at: int) -> tuple[NDArray[Any], NDArray[Any]]:
        drawn, promised = schedule.counts(at, epoch), np.asarray(schedule.expected_counts(at, epoch))
        return _padded(drawn, size), _padded(promised, size)

    later: tuple[int, NDArray[Any], NDArray[Any]] | None = None
    begin, first = 0, (np.zeros(size, np.int64), np.zeros(size))
    for schedule in reversed(told):
        known_from = schedule.known_from(epoch)
        if known_from > step:
            later = (known_from, *look(schedule, known_from))
            continue
        if later is None or known_from == step or _tells(schedule, epoch, later[0], later[1]):
            return look(schedule, step)
        begin, first = known_from, look(schedule, known_from)
        break
    assert later is not None
    edge, drawn, promised = later
    part = (step - begin) / (edge - begin)
    return first[0] + np.floor((drawn - first[0]) * part).astype(np.int64), first[1] + (promised - first[1]) * part


def _tells(schedule: Schedule, epoch: int, step: int, drawn: NDArray[Any]) -> bool:
    """Whether a schedule's own draws before a step are those that were made: no edit lies in between."""
    try:
        return np.array_equal(_padded(schedule.counts(step, epoch), len(drawn)), drawn)
    except ConfigError:  # it tells of an epoch that ends before
        return False


def _deviations(schedule: Schedule, epoch: int) -> tuple[float, list[float]]:
    """The certificate of an epoch (NaN: none), and the largest deviation of each source in it."""
    report, mixture = schedule.report(epoch), schedule.mixture
    # The certificate holds as long as no source leaves.
    holds = mixture.cycle or mixture.policy == "MIN_LENGTH"
    return (report["deviation_bound"] or np.nan) if holds else np.nan, [entry[2] for entry in report["sources"]]


def _padded(values: Sequence[float] | NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """``values`` by index, 0 for sources that were added later."""
    array = np.asarray(values)
    return np.pad(array, (0, size - len(array)))
