"""mtf.ThreadLoader gives what a DataLoader gives, in its order, whatever the threads do."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from loaders import BucketBatches, EndlessIndices
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

import mtf
from mtf.testing import assert_resumes_exactly, content_hash


class Augmented(Dataset[torch.Tensor]):
    """Row i holds i and numbers of the batch's own generator; late rows are often done before early ones."""

    def __init__(self, num_rows: int, wait_s: float = 0.0) -> None:
        self.num_rows = num_rows
        self.wait_s = wait_s

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.wait_s:
            time.sleep(self.wait_s * random.Random(index).random())
        return torch.tensor([float(index), *mtf.batch_rng().random(2)], dtype=torch.float64)


class Grouped(Augmented):
    """Reads a batch at once."""

    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [super(Grouped, self).__getitem__(index) for index in indices]

    def __getitem__(self, index: int) -> torch.Tensor:
        raise AssertionError("__getitems__ is there")


class Meeting(Dataset[int]):
    """Every row waits until as many threads as expected are inside."""

    def __init__(self, num_rows: int, num_threads: int) -> None:
        self.num_rows = num_rows
        self.barrier = threading.Barrier(num_threads, timeout=20)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> int:
        self.barrier.wait()
        return index


def from_mixture(loader: Any, num_batches: int, seed: int = 0, **options: Any) -> list[str]:
    config = mtf.MultiDataLoaderConfig(
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=num_batches, **options
    )
    with mtf.MultiLoader({"a": loader}, config, seed=seed) as mixture:
        return [content_hash(batch.data) for batch in mixture]


ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "in order": lambda: {"batch_size": 4},
    "shuffled": lambda: {"batch_size": 4, "shuffle": True},
    "drop last": lambda: {"batch_size": 4, "shuffle": True, "drop_last": True},
    "single samples": lambda: {"batch_size": None},
    "subset": lambda: {"batch_size": 2, "sampler": SubsetRandomSampler([1, 5, 8, 9, 13])},
    "weighted": lambda: {"batch_size": 3, "sampler": WeightedRandomSampler([1.0, 2.0] * 9, 14)},
    "list as sampler": lambda: {"batch_size": 3, "sampler": [3, 1, 2, 0]},
    "own batches": lambda: {"batch_sampler": BucketBatches(18, own_generator=True)},
    "generator": lambda: {"batch_size": 4, "shuffle": True, "generator": torch.Generator().manual_seed(9)},
    "collate": lambda: {"batch_size": 4, "collate_fn": lambda rows: (len(rows), mtf.batch_rng().random(), rows)},
}


@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_batches_are_those_of_a_dataloader(case: str, num_threads: int) -> None:
    expected = from_mixture(DataLoader(Augmented(18), **ARGUMENTS[case]()), 16)
    loader = mtf.ThreadLoader(Augmented(18, 0.001), num_threads=num_threads, **ARGUMENTS[case]())
    assert from_mixture(loader, 16) == expected


def test_getitems_is_used() -> None:
    assert from_mixture(mtf.ThreadLoader(Grouped(18), 4), 5) == from_mixture(mtf.ThreadLoader(Augmented(18), 4), 5)


@pytest.mark.parametrize("case", ARGUMENTS)
def test_resumes_exactly(case: str) -> None:
    assert assert_resumes_exactly(lambda: mtf.ThreadLoader(Augmented(18), num_threads=2, **ARGUMENTS[case]())) > 3


def test_resumes_exactly_without_threads_and_with() -> None:
    hashes = from_mixture(mtf.ThreadLoader(Augmented(18), 4, True, num_threads=4), 12)
    config = mtf.MultiDataLoaderConfig(
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=12, prefetch_workers=0
    )
    with mtf.MultiLoader({"a": mtf.ThreadLoader(Augmented(18), 4, True)}, config) as first:
        iterator = iter(first)
        for _ in range(7):
            next(iterator)
        state = first.state_dict()
    with mtf.MultiLoader({"a": mtf.ThreadLoader(Augmented(18), 4, True, num_threads=4)}, config) as second:
        second.load_state_dict(state)
        assert [content_hash(batch.data) for batch in second] == hashes[7:]


def test_a_sampler_of_unknown_length_ends_where_it_ends() -> None:
    class Some:
        def __iter__(self) -> Iterator[int]:
            return iter(range(10))

    assert [len(batch) for batch in mtf.ThreadLoader(Augmented(18), 4, sampler=Some())] == [4, 4, 2]
    loader = mtf.ThreadLoader(Augmented(18), 4, sampler=Some(), num_threads=2)
    with pytest.raises(TypeError, match="length"):
        len(loader)
    assert from_mixture(loader, 9) == from_mixture(DataLoader(Augmented(18), 4, sampler=Some()), 9)


def test_an_endless_sampler_is_drawn_as_far_as_needed() -> None:
    options = {"batch_size": 4, "sampler": EndlessIndices(18)}
    assert from_mixture(mtf.ThreadLoader(Augmented(18), **options), 40) == from_mixture(
        DataLoader(Augmented(18), **options), 40
    )


def test_iterated_alone_each_pass_has_an_order_of_its_own() -> None:
    loader = mtf.ThreadLoader(Augmented(18, 0.001), 4, True, seed=3)
    first, second = ([batch[:, 0] for batch in loader] for _ in range(2))
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(18))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    assert len(loader) == 5


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 7])
def test_state_alone_goes_on_where_it_was_taken(cut: int) -> None:
    def batches(loader: mtf.ThreadLoader) -> Iterator[str]:
        while True:
            yield from map(content_hash, loader)

    first = mtf.ThreadLoader(Augmented(18), 4, True)
    reading = batches(first)
    for _ in range(cut):
        next(reading)
    state = first.state_dict()
    second = mtf.ThreadLoader(Augmented(18), 4, True)
    second.load_state_dict(state)
    resumed = batches(second)
    assert [next(reading) for _ in range(8)] == [next(resumed) for _ in range(8)]
    reading.close()
    resumed.close()
    with pytest.raises(mtf.StateMismatch, match="global_batch_size is 3 here, but 4"):
        mtf.ThreadLoader(Augmented(15), 3).load_state_dict(state)


@pytest.mark.parametrize("num_threads", [2, 8])
def test_waiting_samples_wait_together(num_threads: int) -> None:
    loader = mtf.ThreadLoader(Meeting(5 * num_threads, num_threads), 1, num_threads=num_threads)
    assert torch.cat(list(loader)).tolist() == list(range(5 * num_threads))


def test_in_a_mixture_its_number_of_threads_counts() -> None:
    loaders = {
        "a": mtf.ThreadLoader(Meeting(30, 3), 1, num_threads=3),
        "b": mtf.ArrayLoader(torch.arange(30), 3),
    }
    config = mtf.MultiDataLoaderConfig(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=60)
    with mtf.MultiLoader(loaders, config) as mixture:
        assert sum(batch.name == "a" for batch in mixture) == 30


def fails_at(bad: int) -> Dataset[int]:
    class Failing(Dataset[int]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> int:
            if index == bad:
                self.look_up(index)
            return index

        def look_up(self, index: int) -> None:
            raise KeyError(f"row {index} is missing")

    return Failing()


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_exceptions_come_at_their_step_with_their_traceback(num_threads: int) -> None:
    loader = mtf.ThreadLoader(fails_at(13), 2, num_threads=num_threads)
    batches = iter(loader)
    seen = [next(batches).tolist() for _ in range(6)]
    with pytest.raises(KeyError, match="row 13 is missing") as raised:
        next(batches)
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert "look_up" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]

    with mtf.MultiLoader({"rows": mtf.ThreadLoader(fails_at(13), 2, num_threads=num_threads)}) as mixture:
        iterator = iter(mixture)
        for _ in range(6):
            next(iterator)
        for _ in range(2):  # and again when it is tried again
            with pytest.raises(mtf.SourceError, match=r"'rows', pass 0, batch 6 .*step 6\).*row 13 is missing") as told:
                next(iterator)
            assert isinstance(told.value.__cause__, KeyError)


def test_what_a_sampler_raises_comes_at_its_step() -> None:
    def indices() -> Iterator[int]:
        yield from range(6)
        raise OSError("the list of indices is gone")

    class Breaking:
        def __iter__(self) -> Iterator[int]:
            return indices()

    batches = iter(mtf.ThreadLoader(Augmented(18), batch_sampler=_InPairs(Breaking())))
    assert [len(next(batches)) for _ in range(3)] == [2, 2, 2]
    with pytest.raises(OSError, match="is gone"):
        next(batches)


class _InPairs:
    def __init__(self, sampler: Any) -> None:
        self.inner = sampler

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.inner)
        for index in indices:
            yield [index, next(indices)]


def test_stop_iteration_in_a_dataset_is_an_error() -> None:
    class Ending(Dataset[int]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            raise StopIteration

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(mtf.ThreadLoader(Ending(), 2))


def test_threads_keep_their_locals() -> None:
    made: list[int] = []
    kept = threading.local()

    class Files(Dataset[int]):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> int:
            if not hasattr(kept, "file"):
                kept.file = object()
                made.append(index)
            return index

    list(mtf.ThreadLoader(Files(), 2, num_threads=3))
    assert 1 <= len(made) <= 3


def test_batch_rng_belongs_to_a_batch() -> None:
    with pytest.raises(mtf.ConfigError, match="only while a batch is fetched"):
        mtf.batch_rng()
    unseeded = mtf.MultiLoader({"a": DataLoader(Augmented(4))}, seed_each_batch=False)
    with unseeded, pytest.raises(mtf.ConfigError, match="seed_each_batch"):
        next(iter(unseeded))
    assert len(from_mixture(DataLoader(Augmented(8), 4), 2)) == 2
    with pytest.raises(mtf.ConfigError):
        mtf.batch_rng()  # it has ended


def test_process_wide_generators_stay_where_they_are() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    list(mtf.ThreadLoader(Augmented(18), 4, True))
    from_mixture(mtf.ThreadLoader(Augmented(18), batch_sampler=BucketBatches(18, own_generator=False)), 9)
    after = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


class Sums(Dataset[torch.Tensor]):
    """Row i holds statistics whose last bits depend on the number of threads that torch computes them with."""

    def __init__(self) -> None:
        self.rows = torch.rand(4, 200_001, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self.rows[index]
        return torch.stack([row.sum(), row.var(), row.log().mean(), torch.fft.rfft(row).abs().sum()])


def test_torch_computes_on_one_thread_inside_a_fetch() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [content_hash(batch) for batch in mtf.ThreadLoader(Sums(), 2, num_threads=0)]
        torch.set_num_threads(3)
        for num_threads in (0, 1, 3):
            assert [content_hash(batch) for batch in mtf.ThreadLoader(Sums(), 2, num_threads=num_threads)] == expected
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor() as pool:  # a thread that starts later has the caller's number as well
                assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_torchs_threads_stay_as_the_user_sets_them_between_batches() -> None:
    before = torch.get_num_threads()
    try:
        for first, second in ((2, 1), (1, 2)):
            torch.set_num_threads(first)
            batches = iter(mtf.ThreadLoader(Sums(), 1, num_threads=0))
            next(batches)
            torch.set_num_threads(second)
            next(batches)
            assert torch.get_num_threads() == second
    finally:
        torch.set_num_threads(before)


def test_ranks_share_global_batches() -> None:
    whole = torch.cat([batch[:, 0] for batch in mtf.ThreadLoader(Augmented(18), 4)])
    parts = [mtf.ThreadLoader(Augmented(18), 2).shard(rank, 2) for rank in range(2)]
    read = [[batch[:, 0] for batch in part] for part in parts]
    assert torch.cat([rows for pair in zip(*read, strict=True) for rows in pair]).tolist() == whole.tolist()


def test_indices_of_forgotten_requests_are_forgotten() -> None:
    native = mtf.ThreadLoader(Augmented(18), 4).native(1)
    from mtf.data.prefetch.engine import Engine

    with Engine([native], num_threads=1, max_batches=1) as engine:
        for forget in (lambda: engine.discard(0), engine.reset):
            engine.request([0] * 5, [0] * 5, [0, 1, 2, 3, 4])
            engine.take(0)
            forget()
            assert not native._fetches.requested  # type: ignore[attr-defined]
        engine.request([0] * 2, [0] * 2, [3, 4])
        assert [len(engine.take(0)) for _ in range(2)] == [4, 2]
        assert not native._fetches.requested  # type: ignore[attr-defined]


def test_check_source_compares_threads() -> None:
    report = mtf.check_source(mtf.ThreadLoader(Augmented(18), 4, True, num_threads=2))
    assert report.ok
    assert "batches are the same with 2 threads and with none" in [finding.claim for finding in report.findings]


class Rows(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


BAD: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "iterable": (mtf.ConfigError, "must be map-style.*is <.*Rows", lambda: mtf.ThreadLoader(Rows())),
    "threads": (mtf.ConfigError, "num_threads must be at least 0", lambda: mtf.ThreadLoader([1], num_threads=-1)),
    "budget": (mtf.ConfigError, "prefetch_batches must be", lambda: mtf.ThreadLoader([1], prefetch_batches=0)),
    "one-shot": (mtf.ConfigError, "one-shot iterator", lambda: mtf.ThreadLoader([1], sampler=iter([0]))),
    "both": (ValueError, "sampler option is mutually exclusive", lambda: mtf.ThreadLoader([1], 1, True, [0])),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case: str) -> None:
    error, message, make = BAD[case]
    with pytest.raises(error, match=message):
        make()
