"""Rows C and D: samples of five sources mixed inside a batch, beside one source per batch and other tools' mixing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import on_disk
import pytest
import torch
from conftest import Measure
from streams import again, count_for, take
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset, WeightedRandomSampler

import mtf

LENGTHS = (243, 1_000, 5_000, 20_000, 50_000)
WEIGHTS = [0.1, 0.2, 0.3, 0.2, 0.2]
WIDTHS = {"64 B": 16, "1 KiB": 256, "4 KiB": 1024}
ENDLESS = 2**40


@pytest.fixture(scope="module", params=WIDTHS)
def rows(request: pytest.FixtureRequest) -> tuple[str, list[torch.Tensor]]:
    width = WIDTHS[request.param]
    return request.param, [torch.arange(n * width, dtype=torch.float32).reshape(n, width) for n in LENGTHS]


def one_source_per_batch(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        weighted_order=mtf.WeightedOrder.SHUFFLED,
        dataloader_weights=WEIGHTS,
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=ENDLESS,
    )
    return iter(mtf.MultiLoader([mtf.ArrayLoader(array, size, shuffle=True) for array in arrays], config))


def blended(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    data = {f"s{number}": array for number, array in enumerate(arrays)}
    return iter(mtf.MultiLoader(mtf.Blend(data, WEIGHTS, global_batch_size=size, batches_per_pass=ENDLESS)))


def weighted_concat(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    """PyTorch's own: one weight per row, drawn with replacement."""
    per_row = torch.cat([torch.full((len(a),), w / len(a)) for a, w in zip(arrays, WEIGHTS, strict=True)])
    sampler = WeightedRandomSampler(per_row, 200_000)
    return again(DataLoader(ConcatDataset([TensorDataset(array) for array in arrays]), size, sampler=sampler))


def interleaved_datasets(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    datasets = pytest.importorskip("datasets")
    parts = [datasets.Dataset.from_dict({"x": a[:2_000].numpy()}).with_format("torch") for a in arrays]
    mixed = datasets.interleave_datasets(parts, WEIGHTS, seed=0, stopping_strategy="all_exhausted")
    return again(DataLoader(mixed, size))


def mixed_by_grain(arrays: list[torch.Tensor], size: int) -> Iterator[Any]:
    grain = pytest.importorskip("grain")
    parts = [grain.MapDataset.source(a.numpy()).shuffle(seed=0).repeat() for a in arrays]
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * size)
    return iter(grain.MapDataset.mix(parts, WEIGHTS).to_iter_dataset(options).batch(size))


TOOLS = {
    "mtf, one source per batch": one_source_per_batch,
    "mtf Blend": blended,
    "WeightedRandomSampler over ConcatDataset": weighted_concat,
    "datasets interleave": interleaved_datasets,
    "grain mix": mixed_by_grain,
}

ON_DISK = {"mosaicml-streaming": on_disk.of_streaming, "litdata": on_disk.of_litdata}
"""Tools that read files of their own; they get the first rows of each source, as `interleaved_datasets` does."""


@pytest.fixture(scope="module")
def folder(rows: tuple[str, list[torch.Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tools of `ON_DISK` keep the rows of one width."""
    return tmp_path_factory.mktemp("rows")


def mean_rows(tool: str, size: int) -> float:
    """Rows of a batch on average: the last batch of a source's pass is short where batches are of one source."""
    if tool != "mtf, one source per batch":
        return size
    return sum(weight * n / -(-n // size) for n, weight in zip(LENGTHS, WEIGHTS, strict=True))


@pytest.mark.parametrize("size", [8, 64, 512])
@pytest.mark.parametrize("tool", [*TOOLS, *ON_DISK])
def test_mixed_rows(
    measure: Measure, pick: Any, rows: tuple[str, list[torch.Tensor]], folder: Path, tool: str, size: int
) -> None:
    width, arrays = rows
    if tool in TOOLS:
        stream = TOOLS[tool](arrays, size)
    else:
        stream = ON_DISK[tool](folder, [array[:2_000] for array in arrays], WEIGHTS, size)
    take(stream, pick(20, 10, 2))()
    count = pick(count_for(stream, 0.3, 20) if pick(True, False, False) else 0, 20, 2)
    measure(
        take(stream, count),
        row="C",
        work=f"samples of five sources, rows of {width}",
        size=f"{size} rows",
        tool=tool,
        items=round(count * mean_rows(tool, size)),
        per_second=True,
    )


@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED"])
def test_first_batch_at_a_billion_samples(measure: Measure, pick: Any, order: str) -> None:
    arrays = {f"s{number}": torch.zeros(n, 16) for number, n in enumerate(LENGTHS)}
    blend = mtf.Blend(arrays, WEIGHTS, global_batch_size=64, order=order, batches_per_pass=ENDLESS, num_threads=0)
    far = itertools.count(10**9 // 64, 1_000)

    def first() -> None:
        stream = blend.open(0, next(far), key=1)
        next(stream)
        stream.close()

    measure(
        first,
        row="D",
        work="first batch of a blend at sample 10^9",
        size=order,
        tool="mtf Blend",
        rounds=pick(50, 10, 1),
    )
