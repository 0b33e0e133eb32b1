"""Row C: batches of rows of four arrays in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import Measure
from streams import again, count_for, round_robin, take, time_per_item
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

import mtf
from mtf import EpochLengthPolicy, MultiDataLoaderConfig

NUM_SOURCES = 4
ENDLESS = 2**40
# name: (numbers of 4 bytes in a row, rows of a source, rows of a batch)
ROWS = {"64 B": (16, 100_000, 256), "1 KiB": (256, 20_000, 256), "150 KiB": (38_400, 400, 32)}


@pytest.fixture(scope="module", params=ROWS)
def rows(request: pytest.FixtureRequest) -> tuple[str, list[torch.Tensor], int]:
    width, num_rows, batch_size = ROWS[request.param]
    arrays = [torch.arange(num_rows * width, dtype=torch.float32).reshape(num_rows, width) for _ in range(NUM_SOURCES)]
    return request.param, arrays, batch_size


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


def per_row(array: torch.Tensor, size: int, workers: int) -> DataLoader[Any]:
    data = TensorDataset(array)
    return DataLoader(data, size, True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def mtf_mixture(arrays: list[torch.Tensor], size: int, num_threads: int) -> Iterator[Any]:
    loaders = [mtf.ArrayLoader(array, size, shuffle=True, drop_last=True) for array in arrays]
    config = MultiDataLoaderConfig(
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=ENDLESS, prefetch_workers=num_threads
    )
    return iter(mtf.MultiLoader(loaders, config))


def index_select(arrays: list[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """By hand: one operation of torch for each batch, into memory that is there already."""
    orders = [torch.randperm(len(array)).split(size)[:-1] for array in arrays]
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


def of_grain(arrays: list[torch.Tensor], size: int, batched: bool) -> Iterator[Any]:
    """Rows gathered by one operation of numpy per batch, or taken one by one and batched by grain."""
    grain = pytest.importorskip("grain")
    parts = []
    for seed, array in enumerate(arrays):
        order = grain.MapDataset.range(len(array)).shuffle(seed=seed).repeat()
        take_rows = array.numpy().__getitem__
        parts.append(order.batch(size).map(take_rows) if batched else order.map(take_rows).batch(size))
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
    running = builder.build(num_threads=2)
    with running.auto_stop():
        yield from running


def of_torch(arrays: list[torch.Tensor], make: Callable[[torch.Tensor], DataLoader[Any]]) -> Iterator[Any]:
    return round_robin([again(make(array)) for array in arrays])


Maker = Callable[[list[torch.Tensor], int], Iterator[Any]]
TOOLS: dict[str, Maker] = {
    "mtf, no threads": lambda arrays, size: mtf_mixture(arrays, size, 0),
    "mtf, 1 thread": lambda arrays, size: mtf_mixture(arrays, size, 1),
    "mtf, 2 threads": lambda arrays, size: mtf_mixture(arrays, size, 2),
    "by hand, index_select": index_select,
    "torch DataLoader, per batch": lambda arrays, size: of_torch(arrays, lambda array: per_batch(array, size)),
    "torch DataLoader, per row": lambda arrays, size: of_torch(arrays, lambda array: per_row(array, size, 0)),
    "torch DataLoader, per row, 2 workers": lambda arrays, size: of_torch(
        arrays, lambda array: per_row(array, size, 2)
    ),
    "Lightning CombinedLoader": of_lightning,
    "torchdata": of_torchdata,
    "grain": lambda arrays, size: of_grain(arrays, size, True),
    "grain, per row": lambda arrays, size: of_grain(arrays, size, False),
    "SPDL": of_spdl,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_rows_in_memory(
    measure: Measure, pick: Any, native_ns: Any, rows: tuple[str, list[torch.Tensor], int], tool: str
) -> None:
    name, arrays, size = rows
    if "2 workers" in tool and pick(False, True, True):
        pytest.skip("only in the full form")
    stream = TOOLS[tool](arrays, size)
    seconds = pick(0.4, 0.1, 0.0)
    items = count_for(stream, seconds, pick(200, 100, 4))
    by_hand = index_select(arrays, size)
    turns = count_for(by_hand, seconds, pick(200, 100, 4))
    compiled = native_ns(f"rows of {name}")
    bound = min(filter(None, [time_per_item(take(by_hand, turns), turns), compiled]))
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
