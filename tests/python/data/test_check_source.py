"""check_source says what holds for a loader, and names what it suspects where something doesn't."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from loaders import BucketBatches, Rows, StatefulStream, Streamed, shuffled
from torch.utils.data import DataLoader

import mtf


class OwnGenerator(Rows):
    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self.noise = np.random.default_rng(0)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, self.noise.random()])


class Counting(Rows):
    count = 0

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self.count = 0

    def __getitem__(self, index: int) -> torch.Tensor:
        self.count += 1
        return torch.tensor([index, self.count])


class HistorySampler:
    """Its order depends on how often it was iterated, and it keeps that where a copy of it doesn't reach."""

    history: Any = itertools.count()

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __iter__(self) -> Iterator[int]:
        shift = next(HistorySampler.history)
        return iter([(row + shift) % self.num_rows for row in range(self.num_rows)])

    def __len__(self) -> int:
        return self.num_rows


@pytest.mark.parametrize(
    ("loader", "resume_mode"),
    [
        (shuffled(), "any position opens directly"),
        (shuffled(num_workers=1), "any position opens directly"),
        (DataLoader(Rows(17), batch_sampler=BucketBatches(17, True)), "any position opens directly"),
        (StatefulStream(5), "its own state is saved"),
        (DataLoader(Streamed(9), 2), "produces the batches before"),
        ([1, 2, 3], "any position opens directly"),
        (mtf.ArrayLoader(torch.arange(20), 3, shuffle=True), "any position opens directly"),
    ],
    ids=["shuffled", "workers", "buckets", "stateful", "iterable", "list", "arrays"],
)
def test_what_holds(loader: Any, resume_mode: str) -> None:
    report = mtf.check_source(loader)
    assert report.ok, report
    assert resume_mode in report.resume_mode
    assert not report.suspects
    assert "holds: a resume inside pass 1 is exact" in repr(report)
    assert report.to_dict()["ok"] is True


@pytest.mark.parametrize(
    ("loader", "suspect"),
    [
        (mtf.ThreadLoader(OwnGenerator(17), 3, num_threads=0), "is a random generator that isn't seeded"),
        (DataLoader(Counting(17), 3), "Counting.count changed while reading"),
        (DataLoader(Rows(17), 3, sampler=HistorySampler(17)), "sampler HistorySampler may depend"),
    ],
    ids=["generator", "counter", "sampler"],
)
def test_what_does_not(loader: Any, suspect: str) -> None:
    report = mtf.check_source(loader, workers=0)
    assert not report.ok
    assert any(suspect in found for found in report.suspects), report
    assert "FAILS" in repr(report)
    assert "suspect: " in repr(report)


class MixesWithTheLast:
    """A collate function that keeps the batch before."""

    last: Any = None

    def __call__(self, samples: list[torch.Tensor]) -> torch.Tensor:
        batch = torch.stack(samples).float()
        mixed = batch if self.last is None or self.last.shape != batch.shape else batch + 0.1 * self.last
        self.last = batch
        return mixed


class Caches(Rows):
    """Counts in an attribute that comes with the first sample."""

    def __getitem__(self, index: int) -> torch.Tensor:
        self.seen = getattr(self, "seen", 0) + 1
        return torch.tensor([index, self.seen])


@pytest.mark.parametrize(
    ("make", "suspect"),
    [
        (lambda: DataLoader(Rows(17), 3, collate_fn=MixesWithTheLast()), "collate_fn.last changed while reading"),
        (lambda: DataLoader(Caches(17), 3), "Caches.seen changed while reading, from nothing to"),
    ],
)
def test_what_changed_is_named_whatever_it_is(make: Any, suspect: str) -> None:
    report = mtf.check_source(make, workers=0)
    assert not report.ok
    assert any(suspect in found for found in report.suspects), report


def test_a_dataset_that_looks_at_the_worker() -> None:
    class ByWorker(Rows):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor([index, torch.utils.data.get_worker_info() is not None])

    report = mtf.check_source(DataLoader(ByWorker(9), 3))
    failed = [finding.claim for finding in report.findings if not finding.holds]
    assert failed == ["batches are the same with 0 and 2 workers"]
    assert "the worker's id" in report.suspects[0]


def test_a_one_shot_iterator_is_not_read() -> None:
    numbers = iter(range(5))
    report = mtf.check_source(numbers)
    assert report.findings == []
    assert "one-shot" in report.notes[0]
    assert next(numbers) == 0


def test_a_loader_that_raises_is_reported_and_nothing_is_suspected() -> None:
    class Broken(Rows):
        def __getitem__(self, index: int) -> torch.Tensor:
            raise KeyError("no such row")

    def not_made() -> Any:
        raise FileNotFoundError("train.bin")

    report = mtf.check_source(DataLoader(Broken(9), 3), workers=0)
    assert [(finding.claim, finding.detail) for finding in report.findings if not finding.holds] == [
        ("it can be read", "KeyError: 'no such row'")
    ]
    assert not report.suspects
    report = mtf.check_source(not_made)
    assert (report.ok, report.suspects) == (False, [])
    assert "FileNotFoundError: train.bin" in repr(report)


def test_what_making_a_loader_draws_is_not_held_against_it() -> None:
    def make() -> Any:
        torch.rand(1)
        return DataLoader(Rows(9), 3, generator=torch.Generator().manual_seed(int(torch.randint(99, ()))), shuffle=True)

    assert mtf.check_source(make, workers=0).ok
