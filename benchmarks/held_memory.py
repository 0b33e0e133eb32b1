"""How many bytes a thing holds: made in this process of its own, with nothing else going on.

python benchmarks/held_memory.py CASE SIZE   prints the growth of resident memory in bytes, per copy
"""

from __future__ import annotations

import gc
import itertools
import random
import sys
from collections.abc import Callable
from typing import Any

import psutil
from mixtures import weighted, zipf


def schedule(n: int, num_steps: int, order: str = "EVEN") -> Any:
    """A schedule that has drawn, and was asked for its last step."""
    from mtf import WeightedOrder

    made = weighted(n, WeightedOrder[order], num_steps)
    made.sources(0, 0, 512)
    made.at(num_steps - 1)
    return made


def as_arrays(n: int, num_steps: int) -> Any:
    """What a blended index file holds for each step: two bytes for the source, eight for the index in it."""
    import numpy as np

    return np.full(num_steps, n - 1, np.int16), np.arange(num_steps, dtype=np.int64)


def as_list(n: int, num_steps: int) -> Any:
    return random.Random(0).choices(range(n), weights=zipf(n), k=num_steps)


def of_datasets(n: int, num_steps: int) -> Any:
    import datasets

    parts = [datasets.Dataset.from_dict({"x": list(range(num_steps // n))}) for _ in range(n)]
    return datasets.interleave_datasets(parts, probabilities=[1 / n] * n, seed=0, stopping_strategy="all_exhausted")


def of_grain(n: int, num_steps: int) -> Any:
    import grain

    return grain.MapDataset.mix([grain.MapDataset.range(num_steps) for _ in range(n)], weights=zipf(n))


def shuffled(num_samples: int) -> Any:
    from mtf import _core

    order = _core.Permutation(num_samples, 1)
    return order, order.fill(0, 256)


def shuffled_by_torch(num_samples: int) -> Any:
    from torch.utils.data import RandomSampler

    order = iter(RandomSampler(range(num_samples)))
    return order, list(itertools.islice(order, 256))


def shuffled_by_grain(num_samples: int) -> Any:
    import grain

    order = grain.MapDataset.range(num_samples).shuffle(seed=1)
    return order, [order[index] for index in range(256)]


def random_schedule(n: int, num_steps: int) -> Any:
    return schedule(n, num_steps, "RANDOM")


def blend(n: int, first_sample: int) -> Any:
    """A blend of n arrays of one row, and its batch at a sample far into the run."""
    import torch

    import mtf

    arrays = {f"s{number}": torch.zeros(1, 16) for number in range(n)}
    made = mtf.Blend(arrays, zipf(n), global_batch_size=64, batches_per_pass=2**40, num_threads=0)
    stream = made.open(0, first_sample // 64, key=1)
    next(stream)
    return made, stream


# Name -> what is made, from the numbers on the command line.
CASES: dict[str, Callable[..., Any]] = {
    "schedule": schedule,
    "schedule RANDOM": random_schedule,
    "blend": blend,
    "arrays": as_arrays,
    "list": as_list,
    "datasets": of_datasets,
    "grain mix": of_grain,
    "permutation": shuffled,
    "torch RandomSampler": shuffled_by_torch,
    "grain shuffle": shuffled_by_grain,
}


def held_bytes(make: Callable[[], Any], copies: int) -> float:
    """Resident memory that one thing adds, from several that are kept alive."""
    kept = [make()]  # what is loaded and allocated once isn't counted
    gc.collect()
    before = psutil.Process().memory_info().rss
    kept += [make() for _ in range(copies)]
    gc.collect()
    return (psutil.Process().memory_info().rss - before) / copies


if __name__ == "__main__":
    case, copies, *sizes = sys.argv[1:]
    print(held_bytes(lambda: CASES[case](*map(int, sizes)), int(copies)))
