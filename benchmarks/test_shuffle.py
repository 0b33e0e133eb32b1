"""Row B: an order over many samples: its beginning, all of it, one index; and that it is a bijection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import Measure

from mtf import _core


@pytest.fixture
def num_samples(quick: bool) -> int:
    return 10**7 if quick else 10**8


def power(n: int) -> str:
    return f"10^{len(str(n)) - 1}"


@pytest.mark.parametrize("tool", ["mtf", "torch RandomSampler", "grain"])
def test_first_batch(measure: Measure, tool: str, num_samples: int) -> None:
    keys = itertools.count()
    rounds, warmup = 20, 1
    if tool == "mtf":
        run = lambda: _core.Permutation(num_samples, next(keys)).fill(0, 256)  # noqa: E731
    elif tool == "grain":
        grain = pytest.importorskip("grain")
        run = lambda: list(map(grain.MapDataset.range(num_samples).shuffle(seed=next(keys)).__getitem__, range(256)))  # noqa: E731
    else:
        from torch.utils.data import RandomSampler

        rounds, warmup = 1, 0
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
@pytest.mark.parametrize("n", [10**6, 10**8])
def test_whole_permutation(measure: Measure, tool: str, n: int, quick: bool) -> None:
    if quick and n > 10**7:
        n = 10**7
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
        rounds=1 if n > 10**6 else 5,
        warmup=0 if n > 10**6 else 1,
        bound=f"permutation index n={n}",
    )


@pytest.mark.parametrize("tool", ["mtf", "grain"])
def test_one_index(measure: Measure, tool: str) -> None:
    n = 10**8
    if tool == "mtf":
        order = _core.Permutation(n, 1)
    else:
        order = pytest.importorskip("grain").MapDataset.range(n).shuffle(seed=1)
    indices = np.random.default_rng(0).integers(0, n, size=1000).tolist()

    def run() -> None:
        for index in indices:
            order[index]

    measure(run, row="B", work="one index", size="of 10^8", tool=tool, items=len(indices))


@pytest.mark.parametrize("n", [65_537, 262_145, 1_048_577])
def test_every_index_once(n: int) -> None:
    assert np.array_equal(np.sort(_core.Permutation(n, 1).fill(0, n)), np.arange(n))
