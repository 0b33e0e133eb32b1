"""Row C: samples that wait, that compute outside the GIL, and that compute in Python."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import Measure
from streams import take, time_per_item
from torch.utils.data import DataLoader, Dataset

import mtf

BATCH = 8


class Waiting(Dataset[int]):
    """Each sample waits like one that comes over a network."""

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> int:
        time.sleep(0.005)
        return index


class Computing(Dataset[int]):
    """Each sample is decompressed and sorted, outside the GIL."""

    def __init__(self) -> None:
        numbers = np.random.default_rng(0).integers(0, 50, 60_000, dtype=np.uint8)
        self.packed = zlib.compress(numbers.tobytes())

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> int:
        return int(np.sort(np.frombuffer(zlib.decompress(self.packed), np.uint8))[index % 60_000])


class PurePython(Dataset[int]):
    """Each sample takes about half a millisecond of Python's interpreter."""

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> int:
        return sum(number * index % 7 for number in range(8000))


def samples_of(tool: str, data: Dataset[int], num_threads: int) -> Iterator[Any]:
    """Single samples, or batches of BATCH of them with their length, in order."""
    if tool == "mtf":
        return iter(mtf.ThreadLoader(data, BATCH, num_threads=num_threads, collate_fn=len))
    if tool.startswith("mtf, DataLoader"):
        loader = DataLoader(data, BATCH, num_workers=num_threads, collate_fn=len)
        return iter(mtf.MultiLoader([loader]))
    if tool == "thread pool":
        return in_pool(data, num_threads)
    if tool == "plain loop":
        return map(data.__getitem__, itertools.count())
    if tool.startswith("torch DataLoader"):
        return iter(DataLoader(data, BATCH, num_workers=num_threads, collate_fn=len))
    if tool == "torchdata":
        nodes = pytest.importorskip("torchdata.nodes")
        mapped = nodes.ParallelMapper(nodes.IterableWrapper(range(2**20)), data.__getitem__, num_threads)
        return iter(nodes.Loader(mapped))
    if tool == "grain":
        grain = pytest.importorskip("grain")
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        return iter(grain.MapDataset.range(2**20).map(data.__getitem__).to_iter_dataset(options))
    return of_spdl(data, num_threads)


def of_spdl(data: Dataset[int], num_threads: int) -> Iterator[Any]:
    pipeline = pytest.importorskip("spdl.pipeline")
    builder = pipeline.PipelineBuilder().add_source(range(2**20))
    builder.pipe(data.__getitem__, concurrency=num_threads, output_order="input").add_sink(2 * num_threads)
    running = builder.build(num_threads=num_threads)
    with running.auto_stop():
        yield from running


def in_pool(data: Dataset[int], num_threads: int) -> Iterator[Any]:
    with ThreadPoolExecutor(num_threads) as pool:
        ahead = [pool.submit(data.__getitem__, index) for index in range(2 * num_threads)]
        for index in itertools.count(2 * num_threads):
            yield ahead.pop(0).result()
            ahead.append(pool.submit(data.__getitem__, index))


def run_of(tool: str, data: Dataset[int], num_threads: int, items: int) -> Any:
    """Takes `items` samples."""
    in_batches = tool.startswith(("mtf", "torch DataLoader"))
    return take(samples_of(tool, data, num_threads), items // BATCH if in_batches else items)


@pytest.mark.parametrize("tool", ["mtf", "thread pool", "torchdata", "grain", "SPDL"])
def test_waiting_samples(measure: Measure, pick: Any, tool: str) -> None:
    items, num_threads = pick(3200, 1600, 32), 16
    measure(
        run_of(tool, Waiting(), num_threads, items),
        row="C",
        work="samples that wait 5 ms",
        size=f"{num_threads} threads",
        tool=tool,
        items=items,
        bound=5e6 / num_threads,
        per_second=True,
    )


PEERS = ["plain loop", "thread pool", "torchdata", "grain", "SPDL", "torch DataLoader, 2 workers"]


@pytest.mark.parametrize("tool", ["mtf", *PEERS])
def test_computing_samples(measure: Measure, pick: Any, tool: str) -> None:
    items, num_threads = pick(800, 240, 16), 2
    data = Computing()
    alone = time_per_item(take(map(data.__getitem__, itertools.count()), items), items, rounds=pick(3, 1, 0) or 1)
    measure(
        run_of(tool, data, num_threads, items),
        row="C",
        work="samples computed outside the GIL",
        size=f"{num_threads} threads",
        tool=tool,
        items=items,
        bound=alone / num_threads,
        per_second=True,
    )


@pytest.mark.parametrize("tool", ["mtf", "mtf, DataLoader, 2 workers", *PEERS])
def test_python_samples(measure: Measure, pick: Any, tool: str) -> None:
    items, num_threads = pick(1600, 400, 16), 2
    data = PurePython()
    alone = time_per_item(take(map(data.__getitem__, itertools.count()), items), items, rounds=1)
    measure(
        run_of(tool, data, num_threads, items),
        row="C",
        work="samples computed in Python",
        size=f"{num_threads} threads",
        tool=tool,
        items=items,
        bound=alone / num_threads,
        per_second=True,
    )
