"""Row C: DataLoaders as their users make them, read by mtf and by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import Measure
from streams import again, take
from torch.utils.data import DataLoader, TensorDataset

import mtf

NUM_ROWS, BATCH = 40_000, 32
Loader = Callable[[], DataLoader[Any]]


class Shuffled:
    """A batch sampler that a user wrote."""

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(NUM_ROWS).tolist()
        return (order[start : start + BATCH] for start in range(0, NUM_ROWS, BATCH))

    def __len__(self) -> int:
        return NUM_ROWS // BATCH


def rows() -> TensorDataset:
    return TensorDataset(torch.arange(float(NUM_ROWS)))


def with_batch_sampler() -> DataLoader[Any]:
    return DataLoader(rows(), batch_sampler=Shuffled())


def of_torchdata() -> DataLoader[Any]:
    stateful: Any = pytest.importorskip("torchdata.stateful_dataloader")
    made: DataLoader[Any] = stateful.StatefulDataLoader(rows(), BATCH, shuffle=True, drop_last=True)
    return made


def mixture(make: Loader) -> Iterator[Any]:
    policy = mtf.EpochLengthPolicy.FIXED_NUM_STEPS
    config = mtf.MultiDataLoaderConfig(epoch_length_policy=policy, steps_per_epoch=2**40)
    return iter(mtf.MultiLoader({"rows": make()}, config))


LOADERS: dict[str, tuple[str, Loader]] = {
    "a batch sampler of one's own": ("torch DataLoader", with_batch_sampler),
    "map-style data in a StatefulDataLoader": ("torchdata StatefulDataLoader", of_torchdata),
}


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("by_mtf", [False, True])
@pytest.mark.parametrize("work", LOADERS)
def test_loaders_of_others(measure: Measure, pick: Any, work: str, by_mtf: bool) -> None:
    name, make = LOADERS[work]
    stream = mixture(make) if by_mtf else again(make())
    items = pick(2500, 1250, 4)  # whole passes, which begin with an order
    measure(
        take(stream, items), row="C", work=work, size=f"batches of {BATCH}", tool="mtf" if by_mtf else name, items=items
    )
