"""Iterable datasets with a state in worker processes: exact by the workers' states, nothing read twice."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import mtf
from mtf.data.sources.base import ResumeMode
from mtf.data.sources.resolve import as_source
from mtf.data.workers.worker_states import WorkerStateLoader
from mtf.testing import assert_resumes_exactly

FIXED = mtf.MultiDataLoaderConfig(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=10**6)
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Numbers(IterableDataset[Any]):
    """Workers share 0 ... size-1. It begins again after its end, so that an ended worker would, too."""

    def __init__(self, size: int = 14) -> None:
        self.size = size
        self.place = 0
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        while first + self.place * step < self.size:
            self.place += 1
            number = first + (self.place - 1) * step
            yield torch.tensor([number, self.epoch]) + torch.rand(2) / 2
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Places(Iterator[int]):
    """An iterator with a state, as torchdata means it."""

    def __init__(self) -> None:
        info = get_worker_info()
        self.worker = 0 if info is None else info.id
        self.place = 0

    def __next__(self) -> int:
        if self.place == 7:
            raise StopIteration
        self.place += 1
        return 100 * self.worker + self.place

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class WithIterator(IterableDataset[Any]):
    def __iter__(self) -> Places:
        return Places()


WithIterator.__iter__.__annotations__["return"] = Places


@pytest.mark.parametrize(("num_workers", "batch_size", "size"), [(2, 3, 14), (3, 2, 11), (2, 2, 2)])
def test_every_cut_of_two_passes_is_exact(num_workers: int, batch_size: int, size: int) -> None:
    compared = assert_resumes_exactly(
        lambda: DataLoader(Numbers(size), batch_size, num_workers=num_workers), every=2 if size > 2 else 1
    )
    assert compared >= 2


def test_an_iterator_with_a_state_and_unbatched_samples() -> None:
    assert_resumes_exactly(lambda: DataLoader(WithIterator(), 3, num_workers=2), every=3)
    assert_resumes_exactly(lambda: DataLoader(Numbers(5), None, num_workers=2), every=2)


def test_a_resume_reads_one_batch_and_later_passes_have_their_epoch() -> None:
    loader = DataLoader(Numbers(), 3, num_workers=2, persistent_workers=True)
    source = as_source(loader, "a")
    assert source.resume_mode is ResumeMode.STATEFUL
    with mtf.MultiLoader(loader, FIXED) as batches:
        taken = [batch for _, batch in zip(range(8), batches, strict=False)]
    assert [int(batch.data[0, 1]) for batch in taken] == [0] * 6 + [1] * 2
    assert [int(row) for row in taken[1].data[:, 0]] == [1, 3, 5]


def test_a_state_needs_the_same_number_of_workers() -> None:
    with mtf.MultiLoader(DataLoader(Numbers(), 3, num_workers=2), FIXED) as batches:
        iterator = iter(batches)
        next(iterator)
        next(iterator)
        state = copy.deepcopy(batches.state_dict())
    with mtf.MultiLoader(DataLoader(Numbers(), 3, num_workers=3), FIXED) as other:
        other.load_state_dict(state)
        with pytest.raises(mtf.MtfError, match=r"2 worker processes, and this loader has 3.*use num_workers=2"):
            next(iter(other))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_a_state_that_torchdata_made_is_continued() -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    theirs = torchdata.StatefulDataLoader(Numbers(), 3, num_workers=2)
    given, state = [], {}
    for place, batch in enumerate(theirs):
        given.append(batch[:, 0].long().tolist())
        if place == 1:
            state = theirs.state_dict()
    ours = WorkerStateLoader(torchdata.StatefulDataLoader(Numbers(), 3, num_workers=2))
    ours.load_state_dict(state)
    assert [batch[:, 0].long().tolist() for batch in ours] == given[2:]


def test_a_state_between_two_snapshots_is_refused() -> None:
    state = {"_snapshot": {"_worker_snapshots": {}, "_last_yielded_worker_id": 0}, "_steps_since_snapshot": 1}
    with pytest.raises(mtf.StateMismatch, match="snapshot_every_n_steps=1"):
        WorkerStateLoader(DataLoader(Numbers(), 3, num_workers=2)).load_state_dict(state)
