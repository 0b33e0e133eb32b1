"""Speed on this machine: draws of schedules, and batches of arrays delivered by them. What `mtf bench` prints."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.enums import EpochLengthPolicy, SamplingStrategy, WeightedOrder
from mtf.schedule.schedule import Schedule

_ARRAY_BYTES = 1 << 26  # of rows, shared by all sources of a delivery: more than the caches of most machines hold


@dataclass(frozen=True)
class Mixture:
    """What is measured.

    Attributes:
        name: In words, e.g. "weighted, EVEN".
        config: The mixture's configuration.
        lengths: Batches per pass of each source, by place or by name; None where unknown.
        seed: Seed of the schedule.
    """

    name: str
    config: MultiDataLoaderConfig
    lengths: Sequence[int | None] | Mapping[str, int | None]
    seed: int = 0


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        num_steps: Steps drawn per round.
        num_looks: Steps looked up one by one per round.
        delivery_s: Seconds of a round of delivery.
        rounds: Rounds, of which the median counts.
    """

    num_steps: int = 1_000_000
    num_looks: int = 2_000
    delivery_s: float = 0.15
    rounds: int = 5


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        work: What was done.
        tool: Who did it.
        num_sources: Sources in the mixture.
        ns_per_step: Nanoseconds per step (a draw, or a batch delivered), the median of several rounds.
    """

    work: str
    tool: str
    num_sources: int
    ns_per_step: float

    @property
    def per_second(self) -> float:
        """Draws or batches per second."""
        return 1e9 / self.ns_per_step

    def to_dict(self) -> dict[str, str | int | float]:
        """As plain values, for JSON."""
        return {**asdict(self), "per_second": self.per_second}


def mixture_of(
    num_sources: int,
    strategy: SamplingStrategy = SamplingStrategy.WEIGHTED,
    order: WeightedOrder = WeightedOrder.RANDOM,
    weights: list[float] | None = None,
) -> Mixture:
    """A mixture of sources of 1,000 batches each.

    Args:
        num_sources: How many sources.
        strategy: How they take turns; ALTERNATING takes one of each, and the first once more.
        order: For weighted strategies.
        weights: One per source, for weighted strategies; 1, 1/2, 1/3 ... when left out.
    """
    weighted = strategy is SamplingStrategy.WEIGHTED
    config = MultiDataLoaderConfig(
        sampling_strategy=strategy,
        weighted_order=order,
        dataloader_weights=[1 / (i + 1) for i in range(num_sources)] if weighted and weights is None else weights,
        alternating_pattern=[*range(num_sources), 0] if strategy is SamplingStrategy.ALTERNATING else None,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=2**40,
    )
    name = f"{strategy.value}, {order.name}" if weighted else strategy.value
    return Mixture(name, config, [1000] * num_sources)


def measure_schedule(mixture: Mixture, effort: Effort = Effort()) -> list[Row]:
    """Time draws in bulk, one by one, and at random steps; weighted random draws beside numpy and pure Python.

    Args:
        mixture: What to draw from.
        effort: How long to measure.
    """
    schedule = Schedule(mixture.config, lengths=mixture.lengths, seed=mixture.seed)
    n = len(schedule.names)
    num_steps = schedule.num_steps(0)
    in_epoch = effort.num_steps if num_steps is None else min(effort.num_steps, num_steps)
    time_it = partial(_time, num_sources=n, rounds=effort.rounds)
    rows = [
        time_it(f"array ({mixture.name})", "mtf", partial(schedule.sources, 0, 0, in_epoch), in_epoch),
        time_it(f"one by one ({mixture.name})", "mtf", partial(_go_through, schedule, in_epoch), in_epoch),
    ]
    steps = np.random.default_rng(1).integers(0, in_epoch, size=min(effort.num_looks, in_epoch)).tolist()
    rows.append(time_it(f"at(step) ({mixture.name})", "mtf", partial(_look_up, schedule, steps), len(steps)))
    config = mixture.config
    if config.weighted_order is WeightedOrder.RANDOM and config.dataloader_weights is not None:
        weights = np.asarray(config.dataloader_weights, dtype=np.float64)
        choice = partial(np.random.default_rng(0).choice, n, size=effort.num_steps, p=weights / weights.sum())
        rows.append(time_it(f"array ({mixture.name})", "numpy", choice, effort.num_steps))
        few = max(1, effort.num_steps // 10)
        choices = partial(random.Random(0).choices, range(n), weights=weights.tolist(), k=few)
        rows.append(time_it(f"array ({mixture.name})", "random.choices", choices, few))
    return rows


def measure_delivery(
    mixture: Mixture,
    num_threads: Sequence[int] = (0, 1),
    row_bytes: int = 1024,
    batch_size: int = 256,
    effort: Effort = Effort(),
) -> list[Row]:
    """Time batches of rows in memory, taken from a `MultiLoader` by a loop that does nothing else.

    The sources share one array of 64 MiB; each is shuffled by itself.

    Args:
        mixture: How the sources take turns; its lengths only say how many sources there are, and their names.
        num_threads: Numbers of prefetch threads to try; 0 fetches in the loop.
        row_bytes: Bytes of a row, a multiple of 4.
        batch_size: Rows of a batch.
        effort: How long to measure.

    Raises:
        ImportError: torch isn't installed.
        ConfigError: The configuration fits no such mixture.
    """
    import torch

    from mtf.data.multi_loader import MultiLoader
    from mtf.data.sources.array import ArrayLoader

    width = max(1, row_bytes // 4)
    num_rows = max(2 * batch_size, _ARRAY_BYTES // (4 * width))
    array = torch.zeros(num_rows, width)
    work = f"batches of {batch_size} rows of {4 * width} bytes ({mixture.name})"
    time_it = partial(_time_stream, work, num_sources=len(mixture.lengths), effort=effort)
    rows = []
    for threads in num_threads:
        config = replace(mixture.config, prefetch_workers=threads)
        made = [ArrayLoader(array, batch_size, shuffle=True, drop_last=True) for _ in mixture.lengths]
        loaders = dict(zip(mixture.lengths, made, strict=True)) if isinstance(mixture.lengths, Mapping) else made
        with MultiLoader(loaders, config, seed=mixture.seed) as batches:
            rows.append(time_it(f"mtf, {threads} thread{'' if threads == 1 else 's'}", _epochs(batches)))
    orders = torch.randperm(num_rows).split(batch_size)[:-1]
    rows.append(time_it("torch.index_select", _gathered(torch, array, orders)))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Format rows for a terminal."""
    width = max((len(row.work) for row in rows), default=0) + 2
    lines = [f"{'work':<{width}}{'tool':<20}{'sources':>8}{'ns per step':>14}{'per second':>16}"]
    lines += [
        f"{row.work:<{width}}{row.tool:<20}{row.num_sources:>8}{row.ns_per_step:>14,.2f}{row.per_second:>16,.0f}"
        for row in rows
    ]
    return "\n".join(lines)


def _go_through(schedule: Schedule, num_steps: int) -> None:
    schedule.seek(0, 0)
    for _ in islice(iter(schedule), num_steps):
        pass


def _look_up(schedule: Schedule, steps: list[int]) -> None:
    for step in steps:
        schedule.at(step)


def _epochs(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


def _gathered(torch: Any, array: Any, orders: Sequence[Any]) -> Iterator[Any]:
    while True:
        for order in orders:
            yield torch.index_select(array, 0, order)


def _time(work: str, tool: str, run: Callable[[], object], items: int, *, num_sources: int, rounds: int) -> Row:
    """The median of several calls, in each of which `items` steps are made."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return Row(work, tool, num_sources, float(np.median(times)) / items * 1e9)


def _time_stream(work: str, tool: str, stream: Iterator[Any], *, num_sources: int, effort: Effort) -> Row:
    """The median of several rounds, each as long as `Effort.delivery_s` says."""
    times = []
    for _ in range(effort.rounds + 1):
        count, started, needed = 0, time.perf_counter(), 0.0
        while needed < effort.delivery_s:
            for _ in islice(stream, 64):
                count += 1
            needed = time.perf_counter() - started
        times.append(needed / count)
    return Row(work, tool, num_sources, float(np.median(times[1:])) * 1e9)
