"""Scheduling speed on this machine: what `mtf bench` prints."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from mtf.config.multi import MultiDataLoaderConfig
from mtf.enums import EpochLengthPolicy, SamplingStrategy, WeightedOrder
from mtf.schedule import Schedule

_BULK = 1_000_000
_SINGLE = 20_000


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        work: What was done.
        tool: Who did it.
        num_sources: Sources in the mixture.
        ns_per_step: Nanoseconds per step, the best of several runs.
    """

    work: str
    tool: str
    num_sources: int
    ns_per_step: float

    def to_dict(self) -> dict[str, str | int | float]:
        """As plain values, for JSON."""
        return asdict(self)


def measure(num_sources: Sequence[int] = (4, 64, 1024), num_steps: int = _BULK) -> list[Row]:
    """Time weighted schedules in bulk and step by step.

    Args:
        num_sources: Sizes of mixture to try.
        num_steps: Steps drawn per bulk measurement.

    Returns:
        Rows in the order in which `table` prints them.
    """
    rows = []
    for n in num_sources:
        weights = [1.0 / (rank + 1) for rank in range(n)]
        probabilities = np.asarray(weights) / sum(weights)
        for order in WeightedOrder:
            schedule = _schedule(weights, order, num_steps)
            rows.append(_time(f"array, {order.name}", "mtf", n, num_steps, partial(schedule.sources, 0, 0, num_steps)))
        choice = partial(np.random.default_rng(0).choice, n, size=num_steps, p=probabilities)
        rows.append(_time("array, RANDOM", "numpy", n, num_steps, choice))
        choices = partial(random.Random(0).choices, range(n), weights=weights, k=num_steps // 10)
        rows.append(_time("array, RANDOM", "random.choices", n, num_steps // 10, choices))
        schedule = _schedule(weights, WeightedOrder.EVEN, num_steps)
        steps = np.random.default_rng(1).integers(0, num_steps, size=_SINGLE).tolist()
        rows.append(_time("at(step), EVEN", "mtf", n, _SINGLE, partial(_look_up, schedule, steps)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Format rows for a terminal."""
    lines = [f"{'work':<18}{'tool':<16}{'sources':>8}{'ns per step':>14}"]
    lines += [f"{row.work:<18}{row.tool:<16}{row.num_sources:>8}{row.ns_per_step:>14.1f}" for row in rows]
    return "\n".join(lines)


def _schedule(weights: list[float], order: WeightedOrder, num_steps: int) -> Schedule:
    config = MultiDataLoaderConfig(
        sampling_strategy=SamplingStrategy.WEIGHTED,
        dataloader_weights=weights,
        weighted_order=order,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=num_steps,
    )
    return Schedule(config, lengths=[1000] * len(weights))


def _look_up(schedule: Schedule, steps: list[int]) -> None:
    for step in steps:
        schedule.at(step)


def _time(work: str, tool: str, num_sources: int, num_steps: int, run: Callable[[], object], repeat: int = 3) -> Row:
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return Row(work, tool, num_sources, best / num_steps * 1e9)
