"""Row C: what mtf adds to a batch of PyTorch's loaders, whose samplers and states it reads to resume them exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import Measure
from streams import again, count_for, take
from torch.utils.data import DataLoader, Dataset, TensorDataset

import mtf

BATCH, NUM_ROWS = 32, 64_000


class Lengthwise:
    """A batch sampler of one's own: batches of neighbours, in an order that differs each time."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return NUM_ROWS // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.passes)
        self.passes += 1
        for first in torch.randperm(len(self), generator=generator).tolist():
            yield list(range(first * BATCH, (first + 1) * BATCH))


class Pairs(Dataset[tuple[torch.Tensor, int]]):
    """A map-style dataset whose samples take some microseconds."""

    def __init__(self) -> None:
        self.rows = torch.randn(NUM_ROWS, 16)

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.rows[index], index


def with_batch_sampler() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(NUM_ROWS, 16)), batch_sampler=Lengthwise())  # type: ignore[arg-type]


def stateful() -> Any:
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    return loader(Pairs(), BATCH, shuffle=True)


def mixed(loader: Any) -> Iterator[Any]:
    config = mtf.MultiDataLoaderConfig(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=2**40)
    return iter(mtf.MultiLoader([loader], config))


@pytest.mark.parametrize("tool", ["by hand, the loader alone", "mtf"])
@pytest.mark.parametrize(
    ("work", "make"), [("custom batch sampler", with_batch_sampler), ("StatefulDataLoader", stateful)]
)
def test_batches_of_a_loader(measure: Measure, pick: Any, work: str, make: Any, tool: str) -> None:
    stream = again(make()) if tool == "by hand, the loader alone" else mixed(make())
    take(stream, pick(50, 20, 2))()
    count = pick(count_for(stream, 0.5, 50) if pick(True, False, False) else 0, 200, 4)
    measure(
        take(stream, count),
        row="C",
        work=f"batches of a {work}" if make is stateful else f"batches of a DataLoader with a {work}",
        size=f"{BATCH} rows",
        tool=tool,
        items=count,
        rounds=7,
    )
