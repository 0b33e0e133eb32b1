"""Row A: which source comes next, as arrays, one at random, and one after the other."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from conftest import Measure
from mixtures import SIZES, unweighted, weighted, zipf
from native_bounds import native
from tables import Measurement

from mtf import SamplingStrategy, WeightedOrder, _core

RANDOM_ARRAY = "weighted random, array of 10^6"
EVEN_ARRAY = "weighted even, array of 10^5"


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("tool", ["mtf", "numpy", "torch", "random.choices"])
def test_weighted_random_array(measure: Measure, tool: str, n: int) -> None:
    items = 10**6
    if tool == "mtf":
        schedule = weighted(n, WeightedOrder.RANDOM, items)
        run = lambda: schedule.sources(0, 0, items)  # noqa: E731
    elif tool == "numpy":
        generator, p = np.random.default_rng(0), np.asarray(zipf(n))
        run = lambda: generator.choice(n, size=items, p=p)  # noqa: E731
    elif tool == "torch":
        import torch

        w = torch.tensor(zipf(n), dtype=torch.float64)
        run = lambda: torch.multinomial(w, items, replacement=True)  # noqa: E731
    else:
        items = 10**5
        python, weights = random.Random(0), zipf(n)
        run = lambda: python.choices(range(n), weights=weights, k=items)  # noqa: E731
    measure(run, row="A", work=RANDOM_ARRAY, size=f"n={n}", tool=tool, items=items, bound=f"alias draw n={n}")


@pytest.mark.parametrize("n", SIZES[:2])
def test_weighted_random_array_datasets(measure: Measure, n: int) -> None:
    datasets = pytest.importorskip("datasets")
    parts = [datasets.Dataset.from_dict({"x": list(range(1000))}) for _ in range(n)]
    options = {"probabilities": zipf(n), "seed": 0, "stopping_strategy": "all_exhausted"}
    items = len(datasets.interleave_datasets(parts, **options))
    run = lambda: datasets.interleave_datasets(parts, **options)  # noqa: E731
    measure(run, row="A", work=RANDOM_ARRAY, size=f"n={n}", tool="datasets", items=items, rounds=2, warmup=0)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("tool", ["mtf", "mtf SHUFFLED"])
def test_weighted_even_array(measure: Measure, tool: str, n: int) -> None:
    items = 10**5
    schedule = weighted(n, WeightedOrder.SHUFFLED if "SHUFFLED" in tool else WeightedOrder.EVEN, items)
    run = lambda: schedule.sources(0, 0, items)  # noqa: E731
    measure(run, row="A", work=EVEN_ARRAY, size=f"n={n}", tool=tool, items=items, rounds=20, bound=f"even n={n} array")


@pytest.mark.parametrize("n", SIZES)
def test_weighted_even_array_greedy(hand_on: Callable[[Measurement], None], n: int) -> None:
    """The greedy order of large-scale trainers, compiled: its own program times it."""
    ns = native(f"greedy n={n}")
    if ns is None:
        pytest.skip("benchmarks/native isn't built")
    hand_on(Measurement(row="A", work=EVEN_ARRAY, size=f"n={n}", tool="greedy (C++)", ns=ns))


@pytest.mark.parametrize("strategy", [s for s in SamplingStrategy if s is not SamplingStrategy.WEIGHTED])
def test_fixed_order_array(measure: Measure, strategy: SamplingStrategy) -> None:
    items = 10**6
    schedule = unweighted(64, strategy, items)
    run = lambda: schedule.sources(0, 0, items)  # noqa: E731
    work = f"{strategy.value}, array of 10^6"
    measure(run, row="A", work=work, size="n=64", tool="mtf", items=items, rounds=20, bound="memory write int32")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED", "RANDOM", "ROUND_ROBIN"])
def test_random_access(measure: Measure, order: str, n: int) -> None:
    horizon = 10**6
    if order == "ROUND_ROBIN":
        schedule = unweighted(n, SamplingStrategy.ROUND_ROBIN, horizon)
    else:
        schedule = weighted(n, WeightedOrder[order], horizon)
    steps = random.Random(0).sample(range(horizon), 200 if order == "RANDOM" else 2000)

    def run() -> None:
        for step in steps:
            schedule.at(step)

    measure(run, row="A", work="one random access", size=f"n={n}", tool=f"mtf {order}", items=len(steps))


@pytest.mark.parametrize("n", SIZES)
def test_random_access_grain(measure: Measure, n: int) -> None:
    grain = pytest.importorskip("grain")
    mixed = grain.MapDataset.mix([grain.MapDataset.range(10**6) for _ in range(n)], weights=zipf(n))
    steps = random.Random(0).sample(range(10**5), 200)

    def run() -> None:
        for step in steps:
            mixed[step]

    measure(run, row="A", work="one random access", size=f"n={n}", tool="grain", items=len(steps))


@cache
def small_binding_ns() -> float:
    """What it costs to call into the compiled module at all, by its smallest function, in nanoseconds."""
    calls = 20_000
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(calls):
            _core.fold_in(0, 0)
        best = min(best, time.perf_counter() - started)
    return best / calls * 1e9


@pytest.mark.parametrize("n", SIZES[:2])
@pytest.mark.parametrize("tool", ["mtf", "mtf, blocks", "torchdata", "lightning", "datasets", "grain"])
def test_next(measure: Measure, tool: str, n: int) -> None:
    items = 64 * 150
    if tool.startswith("mtf"):
        schedule = weighted(n, WeightedOrder.RANDOM, 10**9)
        steps = iter(schedule)
    elif tool == "torchdata":
        nodes = pytest.importorskip("torchdata.nodes")
        sources = {str(i): nodes.IterableWrapper(range(10**6)) for i in range(n)}
        weights = {str(i): weight for i, weight in enumerate(zipf(n))}
        steps = nodes.MultiNodeWeightedSampler(sources, weights, stop_criteria=nodes.StopCriteria.CYCLE_FOREVER)
        steps.reset()
    elif tool == "lightning":
        utilities = pytest.importorskip("lightning.pytorch.utilities")
        steps = iter(utilities.CombinedLoader([range(10**6) for _ in range(n)], "sequential"))
    elif tool == "datasets":
        datasets = pytest.importorskip("datasets")
        items = 200
        parts = [datasets.Dataset.from_dict({"x": list(range(1000))}).to_iterable_dataset() for _ in range(n)]
        mixed = datasets.interleave_datasets(parts, probabilities=zipf(n), seed=0, stopping_strategy="all_exhausted")
        steps = itertools.chain.from_iterable(mixed for _ in itertools.count())
    else:
        grain = pytest.importorskip("grain")
        items = 200
        steps = iter(grain.MapDataset.mix([grain.MapDataset.range(10**6) for _ in range(n)], weights=zipf(n)))

    def one_by_one() -> None:
        for _ in itertools.islice(steps, items):
            pass

    def in_blocks() -> None:
        for _ in range(items // 64):
            sources, passes, batches = schedule.draws(64)
            for _ in zip(sources.tolist(), passes.tolist(), batches.tolist(), strict=True):
                pass
            schedule.advance(64)

    run = in_blocks if tool == "mtf, blocks" else one_by_one
    measure(run, row="A", work="one next()", size=f"n={n}", tool=tool, items=items, bound=small_binding_ns())
