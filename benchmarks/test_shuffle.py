"""Row B: an order over many samples: its beginning, all of it, one index; and that every index comes once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from conftest import HandOn, Measure
from mixtures import power
from tables import Measurement

from mtf import _core


@pytest.mark.parametrize("num_samples", [10**k for k in range(4, 9)], ids=power)
@pytest.mark.parametrize("tool", ["mtf", "torch RandomSampler", "grain"])
def test_first_batch(measure: Measure, pick: Any, tool: str, num_samples: int) -> None:
    if num_samples > pick(10**8, 10**7, 10**4):
        pytest.skip("only in the full form")
    keys = itertools.count()
    rounds, warmup = 20, 1
    if tool == "mtf":
        run = lambda: _core.Permutation(num_samples, next(keys)).fill(0, 256)  # noqa: E731
    elif tool == "grain":
        grain = pytest.importorskip("grain")
        run = lambda: list(map(grain.MapDataset.range(num_samples).shuffle(seed=next(keys)).__getitem__, range(256)))  # noqa: E731
    else:
        from torch.utils.data import RandomSampler

        rounds, warmup = (1, 0) if num_samples >= 10**7 else (3, 1)
        run = lambda: list(itertools.islice(RandomSampler(range(num_samples)), 256))  # noqa: E731
    measure(
        run,
        row="B",
        work="first batch of 256",
        size=f"of {power(num_samples)}",
        tool=tool,
        rounds=rounds,
        warmup=warmup,
        bound="first batch of 256 of 10^8 (whole batch)",
    )


@pytest.mark.parametrize("tool", ["mtf", "torch", "numpy"])
@pytest.mark.parametrize("n", [10**k for k in range(4, 10)], ids=power)
def test_whole_permutation(measure: Measure, pick: Any, tool: str, n: int) -> None:
    if n > pick(10**9, 10**7, 10**4):
        pytest.skip("only in the full form")
    if n > 10**8 and tool != "mtf":
        pytest.skip("holds 8 GB and more")
    if tool == "mtf":
        permutation = _core.Permutation(n, 1)
        chunk = 1 << 20

        def run() -> None:
            for start in range(0, n, chunk):
                permutation.fill(start, min(start + chunk, n))

    elif tool == "torch":
        import torch

        run = lambda: torch.randperm(n)  # noqa: E731
    else:
        generator = np.random.default_rng(0)
        run = lambda: generator.permutation(n)  # noqa: E731
    measure(
        run,
        row="B",
        work="whole permutation, per index",
        size=f"of {power(n)}",
        tool=tool,
        items=n,
        rounds=1 if n > 10**7 else 3 if n > 10**6 else 5,
        warmup=0 if n > 10**6 else 1,
        bound=f"permutation index n={n}",
    )


@pytest.mark.parametrize("tool", ["mtf", "grain"])
def test_one_index(measure: Measure, pick: Any, tool: str) -> None:
    n = 10**8
    if tool == "mtf":
        order = _core.Permutation(n, 1)
    else:
        order = pytest.importorskip("grain").MapDataset.range(n).shuffle(seed=1)
    indices = np.random.default_rng(0).integers(0, n, size=pick(5000, 1000, 10)).tolist()

    def run() -> None:
        for index in indices:
            order[index]

    bound = f"permutation single index n={n}"
    measure(run, row="B", work="one index", size="of 10^8", tool=tool, items=len(indices), rounds=10, bound=bound)


@pytest.mark.parametrize("n", [65_537, 262_145, 1_048_577])
@pytest.mark.parametrize("tool", ["mtf", "torch", "grain"])
def test_every_index_once(hand_on: HandOn, pick: Any, tool: str, n: int) -> None:
    if n > pick(1_048_577, 65_537, 65_537 if tool == "mtf" else 0):
        pytest.skip("only in the full form")
    if tool == "mtf":
        order = _core.Permutation(n, 1).fill(0, n)
    elif tool == "torch":
        import torch

        order = torch.randperm(n).numpy()
    else:
        shuffled = pytest.importorskip("grain").MapDataset.range(n).shuffle(seed=1)
        order = np.fromiter((shuffled[index] for index in range(n)), np.int64, n)
    times = np.bincount(order, minlength=n)
    wrong = int((times != 1).sum())
    assert tool == "grain" or wrong == 0
    hand_on(Measurement("B", "indices not given exactly once", f"of {n:,}", tool, wrong, unit="count"))
