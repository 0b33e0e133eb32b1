"""What a plan of batches doesn't show: batches of unequal numbers of rows, and a last window that is short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mtf.schedule.plan import EpochPlan, Plan
from mtf.schedule.schedule import Schedule

_LEAST_DIFFERENCE = 0.1
"""A source whose share of the rows is this much smaller than that of the batches is worth a warning."""


def with_row_shares(plan: Plan, rows: Mapping[str, float | None]) -> Plan:
    """The plan with a warning for each source whose share of the rows is smaller than that of the batches.

    Args:
        plan: Counts batches.
        rows: Rows of a batch by source; None where that isn't known.
    """
    return replace(plan, epochs=[_with_row_shares(epoch, rows) for epoch in plan.epochs])


def _with_row_shares(epoch: EpochPlan, rows: Mapping[str, float | None]) -> EpochPlan:
    drawn = {source.name: source.num_steps for source in epoch.sources if source.num_steps}
    known = {name: size for name in drawn if (size := rows.get(name)) is not None}
    if len(known) < 2 or len(known) < len(drawn):
        return epoch
    num_rows = sum(drawn[name] * size for name, size in known.items())
    num_batches = sum(drawn.values())
    longest = max(known, key=lambda name: known[name])
    warnings = []
    for name, size in known.items():
        share, of_batches = drawn[name] * size / num_rows, drawn[name] / num_batches
        if share < (1 - _LEAST_DIFFERENCE) * of_batches:
            warnings.append(
                f"{name!r} gives {100 * of_batches:.1f} % of the batches and {100 * share:.1f} % of the rows: its "
                f"batches have {size:,.1f} rows on average, those of {longest!r} {known[longest]:,.1f}; mtf.Blend "
                "mixes rows, or give it batches of the same size"
            )
    return replace(epoch, warnings=[*epoch.warnings, *warnings])


def short_window(schedule: Schedule, epoch: int, length: int, loss_weights: Mapping[str, float]) -> str | None:
    """What a last accumulation window of fewer batches does to loss weights, in words; None where nothing.

    Args:
        schedule: Isn't moved.
        epoch: Which one.
        length: Batches of a full window.
        loss_weights: By name of the loader.
    """
    num_steps = schedule.num_steps(epoch)
    rest = 0 if num_steps is None or length < 2 else num_steps % length
    if not loss_weights or num_steps is None or rest == 0 or num_steps < length:
        return None
    names = schedule.names
    last = dict.fromkeys(names[source] for source in schedule.sources(epoch, num_steps - rest, num_steps).tolist())
    listed = ", ".join(f"{name!r}" for name in last)
    return (
        f"the last accumulation window has {rest} of {length} batches ({listed}): losses are divided by the batches of "
        f"their window, so each of these counts {length / rest:.3g} times as much, and loss_weights_per_loader doesn't "
        "hold there; make the epoch a multiple of the window, or give one batch of every loader with mtf.Together"
    )


def with_windows(plan: Plan, schedule: Schedule, length: int, loss_weights: Mapping[str, float]) -> Plan:
    """The plan with a warning for each epoch whose last accumulation window is short under loss weights."""
    epochs = []
    for epoch in plan.epochs:
        found = short_window(schedule, epoch.epoch, length, loss_weights)
        epochs.append(epoch if found is None else replace(epoch, warnings=[*epoch.warnings, found]))
    return replace(plan, epochs=epochs)
