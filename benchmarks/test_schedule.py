"""Row A: which source comes next, as arrays, one at random, and one after the other."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import Form, HandOn, Measure
from mixtures import SIZES, power, unweighted, weighted, zipf
from tables import Measurement

from mtf import MultiDataLoaderConfig, SamplingStrategy, Schedule, WeightedOrder, _core

ALL_SIZES = (4, 16, 64, 256, 1024)
BLOCK, USED = 1024, 896  # draws that a MultiLoader looks at, and continues by, at a time
RANDOM_ARRAY = "weighted random, array of 10^6"
EVEN_ARRAY = "weighted even, array of 10^5"
DRIFT = "largest distance from the weights over changes before every draw, in batches"
EDIT = "one change of weights and its draw"
DISTANCE = "largest distance from the weights in 10^5 draws, in batches"


def random_array(tool: str, n: int, items: int) -> Callable[[], Any]:
    """Draws `items` weighted sources of `n` at once."""
    if tool == "mtf":
        schedule = weighted(n, WeightedOrder.RANDOM, items)
        return lambda: schedule.sources(0, 0, items)
    if tool == "numpy":
        generator, p = np.random.default_rng(0), np.asarray(zipf(n))
        return lambda: generator.choice(n, size=items, p=p)
    if tool == "torch":
        import torch

        w = torch.tensor(zipf(n), dtype=torch.float64)
        return lambda: torch.multinomial(w, items, replacement=True)
    python, weights = random.Random(0), zipf(n)
    return lambda: python.choices(range(n), weights=weights, k=items)


@pytest.mark.parametrize("n", ALL_SIZES)
@pytest.mark.parametrize("tool", ["mtf", "numpy", "torch", "random.choices"])
def test_weighted_random_array(measure: Measure, pick: Any, tool: str, n: int) -> None:
    if n not in pick(ALL_SIZES, SIZES, SIZES[:1]):
        pytest.skip("only in the full form")
    items = pick(10**6, 10**6, 10**4) if tool != "random.choices" else 10**4
    run = random_array(tool, n, items)
    measure(run, row="A", work=RANDOM_ARRAY, size=f"n={n}", tool=tool, items=items, bound=f"alias draw n={n}")


@pytest.mark.parametrize("n", SIZES)
def test_weighted_random_array_portable(hand_on: HandOn, native_ns: Any, n: int) -> None:
    """Without the instructions of this CPU, as on any other: a program of the core times it."""
    ns = native_ns(f"alias draw n={n} portable")
    if ns is None:
        pytest.skip("benchmarks/native isn't built")
    hand_on(Measurement("A", RANDOM_ARRAY, f"n={n}", "mtf, portable (C++)", ns))


@pytest.mark.parametrize("n", SIZES)
def test_weighted_random_array_datasets(measure: Measure, pick: Any, n: int) -> None:
    if n not in pick(SIZES, SIZES[:2], SIZES[:1]):
        pytest.skip("only in the full form")
    datasets = pytest.importorskip("datasets")
    parts = [datasets.Dataset.from_dict({"x": list(range(1000))}) for _ in range(n)]
    options = {"probabilities": zipf(n), "seed": 0, "stopping_strategy": "all_exhausted"}
    if n > 64:
        options["stopping_strategy"] = "first_exhausted"
    items = len(datasets.interleave_datasets(parts, **options))
    run = lambda: datasets.interleave_datasets(parts, **options)  # noqa: E731
    measure(run, row="A", work=RANDOM_ARRAY, size=f"n={n}", tool="datasets", items=items, rounds=2, warmup=0)


@pytest.mark.parametrize("count", [10**k for k in range(2, 9)], ids=power)
@pytest.mark.parametrize("tool", ["mtf", "numpy", "torch"])
def test_against_steps(measure: Measure, pick: Any, tool: str, count: int) -> None:
    if count > pick(10**8, 10**6, 10**2):
        pytest.skip("only in the full form")
    run = random_array(tool, 64, count)
    rounds = 1 if count > 10**7 else 5
    work = "weighted random, 64 sources, array"
    measure(
        run, row="A", work=work, size=f"of {power(count)}", tool=tool, items=count, rounds=rounds, warmup=rounds - 1
    )


@pytest.mark.parametrize("n", ALL_SIZES)
@pytest.mark.parametrize("tool", ["mtf", "mtf SHUFFLED", "greedy (Python)"])
def test_weighted_even_array(measure: Measure, pick: Any, tool: str, n: int) -> None:
    if n not in pick(ALL_SIZES, SIZES, SIZES[:1]):
        pytest.skip("only in the full form")
    items, rounds = pick(10**5, 10**5, 10**4), 20
    if tool == "greedy (Python)":
        items, rounds = pick(10**6, 10**5, 10**3) // n, 3
        weights = zipf(n)
        run: Callable[[], Any] = lambda: greedy(weights, items)  # noqa: E731
    else:
        schedule = weighted(n, WeightedOrder.SHUFFLED if "SHUFFLED" in tool else WeightedOrder.EVEN, items)
        run = lambda: schedule.sources(0, 0, items)  # noqa: E731
    bound = f"even n={n} array"
    measure(run, row="A", work=EVEN_ARRAY, size=f"n={n}", tool=tool, items=items, rounds=rounds, bound=bound)


def greedy(weights: list[float], num_steps: int) -> list[int]:
    """Each step from the source that is furthest behind its share, as large-scale trainers blend their sources."""
    drawn = [0] * len(weights)
    order = []
    for step in range(1, num_steps + 1):
        furthest = max(range(len(weights)), key=lambda source: weights[source] * step - drawn[source])
        drawn[furthest] += 1
        order.append(furthest)
    return order


@pytest.mark.parametrize("n", SIZES)
def test_weighted_even_array_greedy(hand_on: HandOn, native_ns: Any, n: int) -> None:
    """The same loop compiled: its own program times it."""
    ns = native_ns(f"greedy n={n}")
    if ns is None:
        pytest.skip("benchmarks/native isn't built")
    hand_on(Measurement("A", EVEN_ARRAY, f"n={n}", "greedy (C++)", ns))


@pytest.mark.parametrize("n", SIZES)
def test_distance_from_the_weights(hand_on: HandOn, pick: Any, n: int) -> None:
    items, weights = 10**5, np.asarray(zipf(n))
    schedule = weighted(n, WeightedOrder.EVEN, items)
    orders = {
        "mtf": (schedule.sources(0, 0, items), schedule.plan().epochs[0].deviation_bound),
        "numpy": (np.random.default_rng(0).choice(n, size=items, p=weights), None),
    }
    for tool, (sources, bound) in orders.items():
        steps = np.arange(1, items + 1)
        distance = max(
            float(np.abs(np.cumsum(sources == source) - steps * weights[source]).max())
            for source in range(pick(n, min(n, 64), 4))
        )
        hand_on(Measurement("A", DISTANCE, f"n={n}", tool, distance, bound, "count"))


@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED"])
@pytest.mark.parametrize("path", ["jitter of 0.1 %", "random walk", "curve"])
def test_distance_under_changing_weights(hand_on: HandOn, pick: Any, path: str, order: str) -> None:
    """Weights are changed before every draw, a million times; the quick form changes them 20,000 times.

    SHUFFLED keeps its shares at the ends of its blocks of 64: the distance is looked at there.
    """
    num_changes = pick(10**6, 20_000, 2_000)
    base, end = np.array([0.5, 0.2, 0.15, 0.1, 0.05]), np.array([0.2, 0.1, 0.2, 0.35, 0.15])
    rng, logs = np.random.default_rng(0), np.zeros(5)
    config = MultiDataLoaderConfig(
        sampling_strategy="WEIGHTED",
        weighted_order=order,
        dataloader_weights=base.tolist(),
        epoch_length_policy="FIXED_NUM_STEPS",
        steps_per_epoch=num_changes,
    )
    schedule = Schedule(config, [10**9] * 5, seed=0)
    deficits, largest, spent_s = np.zeros(5), 0.0, 0.0
    for step in range(num_changes):
        if path == "random walk":
            logs += 0.015 * rng.standard_normal(5)
            weights = base * np.exp(logs - logs.mean())
        elif path == "curve":
            weights = base + (end - base) * step / num_changes
        else:
            weights = base * (1 + 1e-3 * rng.standard_normal(5))
        given = weights.tolist()
        begin = time.perf_counter()
        schedule.update_weights(given)
        source = schedule.at(step).source
        schedule.advance(1)
        spent_s += time.perf_counter() - begin
        deficits += weights / weights.sum()
        deficits[source] -= 1
        if order == "EVEN" or step % 64 == 63:
            largest = max(largest, float(np.abs(deficits).max()))
    tool = "mtf" if order == "EVEN" else "mtf SHUFFLED, at the ends of blocks"
    hand_on(Measurement("A", DRIFT, path, tool, largest, 2.0, "count"))
    hand_on(Measurement("A", EDIT, path, tool, spent_s / num_changes * 1e9))
    assert len(schedule.to_bytes()) < 2_500, "a state doesn't grow with edits"


@pytest.mark.parametrize("strategy", [s for s in SamplingStrategy if s is not SamplingStrategy.WEIGHTED])
def test_fixed_order_array(measure: Measure, pick: Any, strategy: SamplingStrategy) -> None:
    items = pick(10**6, 10**6, 10**4)
    schedule = unweighted(64, strategy, items)
    run = lambda: schedule.sources(0, 0, items)  # noqa: E731
    work = f"{strategy.value}, array of 10^6"
    measure(run, row="A", work=work, size="n=64", tool="mtf", items=items, rounds=20, bound="memory write int32")


@pytest.mark.parametrize("n", ALL_SIZES)
@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED", "RANDOM", "ROUND_ROBIN"])
def test_random_access(measure: Measure, pick: Any, order: str, n: int) -> None:
    if n not in pick(ALL_SIZES, SIZES, SIZES[:1]):
        pytest.skip("only in the full form")
    horizon = 10**6
    if order == "ROUND_ROBIN":
        schedule = unweighted(n, SamplingStrategy.ROUND_ROBIN, horizon)
    else:
        schedule = weighted(n, WeightedOrder[order], horizon)
    steps = random.Random(0).sample(range(horizon), pick(200, 200, 20) if order == "RANDOM" else pick(5000, 2000, 20))

    def run() -> None:
        for step in steps:
            schedule.at(step)

    bound = f"even n={n} at" if order == "EVEN" else None
    measure(run, row="A", work="one random access", size=f"n={n}", tool=f"mtf {order}", items=len(steps), bound=bound)


@pytest.mark.parametrize("n", SIZES)
def test_random_access_grain(measure: Measure, pick: Any, n: int) -> None:
    if n not in pick(SIZES, SIZES, SIZES[:1]):
        pytest.skip("only in the full form")
    grain = pytest.importorskip("grain")
    mixed = grain.MapDataset.mix([grain.MapDataset.range(10**6) for _ in range(n)], weights=zipf(n))
    steps = random.Random(0).sample(range(10**5), pick(200, 100, 5))

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


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("tool", ["mtf", "mtf, blocks", "torchdata", "lightning", "datasets", "grain"])
def test_next(measure: Measure, form: Form, pick: Any, tool: str, n: int) -> None:
    if n not in pick(SIZES, SIZES[:2], SIZES[:1]) or (n > 64 and tool in ("datasets", "grain")):
        pytest.skip("only in the full form")
    items = pick(USED * 250, USED * 25, USED)
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
        steps = iter(utilities.CombinedLoader([range(10**7) for _ in range(n)], "sequential"))
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
        """As `MultiLoader` reads its schedule."""
        for _ in range(items // USED):
            for _source, _pass, _batch in itertools.islice(zip(*schedule.draw_lists(BLOCK), strict=True), USED):
                pass
            schedule.advance(USED)

    run = in_blocks if tool == "mtf, blocks" else one_by_one
    measure(run, row="A", work="one next()", size=f"n={n}", tool=tool, items=items, bound=small_binding_ns())
