"""Datasets of Hugging Face: map-style by position, streams by their state, shuffled streams by replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mtf
from mtf.data.sources.base import ResumeMode
from mtf.data.sources.resolve import as_source
from mtf.testing import assert_resumes_exactly

try:
    import datasets
except ImportError as error:  # not installed, or at odds with another package's version
    pytest.skip(f"datasets can't be imported: {error}", allow_module_level=True)

# datasets copies arrays in a way that newer pyarrow and numpy comment on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def augment(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A transform that draws from a process-wide generator."""
    return {"x": [torch.tensor([x, np.random.rand()]) for x in rows["x"]]}


def table() -> Any:
    return datasets.Dataset.from_dict({"x": list(range(11))})


@pytest.mark.parametrize("num_workers", [0, 2])
def test_map_style_in_a_dataloader(num_workers: int) -> None:
    def make() -> Any:
        return DataLoader(table().with_transform(augment), 3, shuffle=True, num_workers=num_workers)

    assert as_source(make(), "a").resume_mode is ResumeMode.SEEK
    assert_resumes_exactly(make, every=1 if num_workers == 0 else 5)


def test_rows_of_a_map_style_dataset_are_batches() -> None:
    assert as_source(table(), "a").resume_mode is ResumeMode.SEEK
    with mtf.MultiLoader({"a": table()}) as loader:
        assert [batch.data["x"] for batch in loader] == list(range(11))


def test_a_stream_by_its_state() -> None:
    def make() -> Any:
        return table().to_iterable_dataset(num_shards=3)

    assert as_source(make(), "a").resume_mode is ResumeMode.STATEFUL
    assert_resumes_exactly(make)


def test_a_stream_in_a_dataloader_by_its_state() -> None:
    def make() -> Any:
        return DataLoader(table().to_iterable_dataset(num_shards=2).with_format("torch"), 3)

    assert as_source(make(), "a").resume_mode is ResumeMode.STATEFUL
    assert_resumes_exactly(make)


def test_a_shuffled_stream_by_replay() -> None:
    def make() -> Any:
        return table().to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=4)

    assert as_source(make(), "a").resume_mode is ResumeMode.REPLAY
    assert_resumes_exactly(make)


def test_each_pass_of_a_shuffled_stream_has_an_order_of_its_own() -> None:
    stream = table().to_iterable_dataset().shuffle(seed=1, buffer_size=20)
    config = mtf.MultiDataLoaderConfig(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=22)
    with mtf.MultiLoader({"a": stream}, config) as loader:
        rows = [batch.data["x"] for batch in loader]
    assert sorted(rows[:11]) == sorted(rows[11:]) == list(range(11))
    assert rows[:11] != rows[11:]
