"""Row C: batches of four sources in memory, samples that wait or compute, and what 64 sources hold."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Measure
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import mtf
from mtf import EpochLengthPolicy, MultiDataLoaderConfig

NUM_SOURCES = 4
ENDLESS = 2**40
# name: (numbers of 4 bytes in a row, rows of a source, rows of a batch, batches of a round)
ROWS = {"64 B": (16, 100_000, 256, 2000), "1 KiB": (256, 20_000, 256, 800), "150 KiB": (38_400, 400, 32, 60)}


def take(stream: Iterator[Any], count: int) -> Callable[[], None]:
    """A function that takes `count` batches from a stream and does nothing with them."""

    def run() -> None:
        for _ in itertools.islice(stream, count):
            pass

    return run


def again(passes: Iterable[Any]) -> Iterator[Any]:
    """One pass after the other, without end."""
    while True:
        yield from passes


def round_robin(streams: list[Iterator[Any]]) -> Iterator[Any]:
    return (next(stream) for stream in itertools.cycle(streams))


@pytest.fixture(scope="module", params=ROWS)
def rows(request: pytest.FixtureRequest) -> tuple[str, list[torch.Tensor], int, int]:
    width, num_rows, batch_size, count = ROWS[request.param]
    arrays = [torch.arange(num_rows * width, dtype=torch.float32).reshape(num_rows, width) for _ in range(NUM_SOURCES)]
    return request.param, arrays, batch_size, count


class Gathering(Dataset[torch.Tensor]):
    """Gives a batch for a list of indices, with one operation of torch."""

    def __init__(self, array: torch.Tensor) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, indices: Any) -> torch.Tensor:
        return self.array[indices]


def per_batch(array: torch.Tensor, size: int) -> DataLoader[Any]:
    data = Gathering(array)
    return DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), size, drop_last=True))


def mtf_mixture(arrays: list[torch.Tensor], size: int, num_threads: int) -> Iterator[Any]:
    loaders = [mtf.ArrayLoader(array, size, shuffle=True, drop_last=True) for array in arrays]
    config = MultiDataLoaderConfig(
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=ENDLESS, prefetch_workers=num_threads
    )
    return iter(mtf.MultiLoader(loaders, config))


def index_select(arrays: list[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The bound: one operation of torch for each batch, into memory that is there already."""
    orders = [torch.randperm(len(array)).split(size)[:-1] or torch.randperm(len(array)).split(size) for array in arrays]
    places = [itertools.cycle(order) for order in orders]
    out = torch.empty(size, arrays[0].shape[1])
    for number in itertools.cycle(range(len(arrays))):
        yield torch.index_select(arrays[number], 0, next(places[number]), out=out)


def of_lightning(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    combined = pytest.importorskip("lightning.pytorch.utilities").CombinedLoader
    return again(combined([per_batch(array, size) for array in arrays], "sequential"))


def of_torchdata(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    nodes = pytest.importorskip("torchdata.nodes")
    sources = {}
    for number, array in enumerate(arrays):
        sampler = BatchSampler(RandomSampler(array), size, drop_last=True)  # type: ignore[arg-type]
        sources[str(number)] = nodes.Mapper(nodes.SamplerWrapper(sampler), array.__getitem__)
    mixed = nodes.MultiNodeWeightedSampler(sources, dict.fromkeys(sources, 1.0))
    return again(nodes.Loader(mixed))


def of_grain(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    grain = pytest.importorskip("grain")
    parts = []
    for seed, array in enumerate(arrays):
        numbers = array.numpy()
        parts.append(
            grain.MapDataset.range(len(array)).shuffle(seed=seed).repeat().batch(size).map(numbers.__getitem__)
        )
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)
    return iter(grain.MapDataset.mix(parts).to_iter_dataset(options))


def of_spdl(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    pipeline = pytest.importorskip("spdl.pipeline")

    def requests() -> Iterator[tuple[int, list[int]]]:
        samplers = [again(BatchSampler(RandomSampler(array), size, True)) for array in arrays]
        for number in itertools.cycle(range(len(arrays))):
            yield number, next(samplers[number])

    builder = pipeline.PipelineBuilder().add_source(requests())
    builder.pipe(lambda asked: arrays[asked[0]][asked[1]], concurrency=2, output_order="input").add_sink(16)
    return of_pipeline(builder.build(num_threads=2))


def of_pipeline(running: Any) -> Iterator[Any]:
    with running.auto_stop():
        yield from running


TOOLS: dict[str, Callable[[list[torch.Tensor], int], Iterator[Any]]] = {
    "mtf": lambda arrays, size: mtf_mixture(arrays, size, 1),
    "mtf, no threads": lambda arrays, size: mtf_mixture(arrays, size, 0),
    "mtf, 2 threads": lambda arrays, size: mtf_mixture(arrays, size, 2),
    "torch DataLoader, per batch": lambda arrays, size: round_robin(
        [again(per_batch(array, size)) for array in arrays]
    ),
    "torch DataLoader, per row": lambda arrays, size: round_robin(
        [again(DataLoader(TensorDataset(array), size, True, drop_last=True)) for array in arrays]
    ),
    "Lightning CombinedLoader": of_lightning,
    "torchdata": of_torchdata,
    "grain": of_grain,
    "SPDL": of_spdl,
}


def time_per_item(run: Callable[[], None], items: int, rounds: int = 3) -> float:
    """Nanoseconds per item of the best round, after one that isn't counted."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begin)
    return min(times[1:]) / items


@pytest.mark.parametrize("tool", TOOLS)
def test_rows_in_memory(measure: Measure, rows: tuple[str, list[torch.Tensor], int, int], tool: str) -> None:
    name, arrays, size, count = rows
    stream = TOOLS[tool](arrays, size)
    items = count if "row" not in tool else max(8, count // 20)
    bound = time_per_item(take(index_select(arrays, size), count), count)
    measure(
        take(stream, items),
        row="C",
        work="batches from 4 arrays",
        size=f"rows of {name}, batches of {size}",
        tool=tool,
        items=items,
        bound=bound,
        per_second=True,
    )


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


BATCH = 8


def samples_of(tool: str, data: Dataset[int], num_threads: int) -> Iterator[Any]:
    """Single samples, or batches of BATCH of them with their length, in order."""
    if tool == "mtf":
        return iter(mtf.ThreadLoader(data, BATCH, num_threads=num_threads, collate_fn=len))
    if tool == "thread pool":
        return in_pool(data, num_threads)
    if tool == "plain loop":
        return map(data.__getitem__, itertools.count())
    if tool == "torch DataLoader":
        return iter(DataLoader(data, BATCH, num_workers=num_threads, collate_fn=len))
    if tool == "torchdata":
        nodes = pytest.importorskip("torchdata.nodes")
        mapped = nodes.ParallelMapper(nodes.IterableWrapper(range(2**20)), data.__getitem__, num_threads)
        return iter(nodes.Loader(mapped))
    if tool == "grain":
        grain = pytest.importorskip("grain")
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
        return iter(grain.MapDataset.range(2**20).map(data.__getitem__).to_iter_dataset(options))
    pipeline = pytest.importorskip("spdl.pipeline")
    builder = pipeline.PipelineBuilder().add_source(range(2**20))
    builder.pipe(data.__getitem__, concurrency=num_threads, output_order="input").add_sink(2 * num_threads)
    return of_pipeline(builder.build(num_threads=num_threads))


def in_pool(data: Dataset[int], num_threads: int) -> Iterator[Any]:
    with ThreadPoolExecutor(num_threads) as pool:
        ahead = [pool.submit(data.__getitem__, index) for index in range(2 * num_threads)]
        for index in itertools.count(2 * num_threads):
            yield ahead.pop(0).result()
            ahead.append(pool.submit(data.__getitem__, index))


def take_samples(stream: Iterator[Any], tool: str, items: int) -> Callable[[], None]:
    return take(stream, items // BATCH if tool in ("mtf", "torch DataLoader") else items)


@pytest.mark.parametrize("tool", ["mtf", "thread pool", "torchdata", "grain", "SPDL"])
def test_waiting_samples(measure: Measure, tool: str) -> None:
    items, num_threads = 1600, 16
    measure(
        take_samples(samples_of(tool, Waiting(), num_threads), tool, items),
        row="C",
        work="samples that wait 5 ms",
        size=f"{num_threads} threads",
        tool=tool,
        items=items,
        bound=5e6 / num_threads,
        per_second=True,
    )


@pytest.mark.parametrize("tool", ["mtf", "plain loop", "thread pool", "torchdata", "grain", "SPDL", "torch DataLoader"])
def test_computing_samples(measure: Measure, tool: str) -> None:
    items, num_threads = 400, 2
    data = Computing()
    alone = time_per_item(take(map(data.__getitem__, itertools.count()), items), items)
    measure(
        take_samples(samples_of(tool, data, num_threads), tool, items),
        row="C",
        work="samples computed outside the GIL",
        size=f"{num_threads} threads",
        tool=tool,
        items=items,
        bound=alone / num_threads,
        per_second=True,
    )


class Rows(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1024,), float(index))


@pytest.mark.parametrize("kind", ["arrays", "threads"])
def test_64_sources_hold_one_budget(kind: str) -> None:
    budget, batch = 20 * 32 * 1024, 8 * 1024 * 4
    loaders: list[Any] = [
        mtf.ArrayLoader(torch.zeros(64, 1024), 8) if kind == "arrays" else mtf.ThreadLoader(Rows(), 8)
        for _ in range(64)
    ]
    config = MultiDataLoaderConfig(
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=2000,
        prefetch_workers=4,
        prefetch_batches=1000,
        prefetch_bytes=budget,
    )
    with mtf.MultiLoader(loaders, config) as mixture:
        for _ in mixture:
            pass
        held = mixture.stats()["engine"]
    assert budget // 2 < held["peak_bytes_held"] <= budget + batch
