"""Map-style DataLoaders: every sampler resumes exactly, with 0 and 2 workers, and the process is left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders import BucketBatches, Dying, EndlessIndices, Rows, Shouting, Slow, StatefulIndices, shuffled
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
    random_split,
)

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.determinism.content_hash import content_hash
from mtf.data.multi_loader import MultiLoader
from mtf.data.rng.batch_rng import batch_rng
from mtf.data.sources.array import ArrayLoader
from mtf.data.sources.resolve import as_source
from mtf.data.sources.threaded import ThreadLoader
from mtf.data.sources.torch_map import TorchSource
from mtf.enums import EpochLengthPolicy
from mtf.errors import ConfigError, FetchTimeout, SourceError
from mtf.testing import assert_resumes_exactly

ROWS = 17
WEIGHTS = [1.0 + i % 5 for i in range(ROWS)]

LOADERS: dict[str, Callable[[int], DataLoader[Any]]] = {
    "random": lambda w: DataLoader(Rows(ROWS), 3, shuffle=True, num_workers=w),
    "random_own_generator": lambda w: DataLoader(
        Rows(ROWS), 3, shuffle=True, num_workers=w, generator=torch.Generator().manual_seed(7)
    ),
    "drop_last": lambda w: DataLoader(Rows(ROWS), 3, shuffle=True, drop_last=True, num_workers=w),
    "sequential": lambda w: DataLoader(Rows(ROWS), 3, num_workers=w),
    "replacement": lambda w: DataLoader(Rows(ROWS), 3, sampler=RandomSampler(Rows(ROWS), True, 20), num_workers=w),
    "more_than_once": lambda w: DataLoader(Rows(7), 3, sampler=RandomSampler(Rows(7), num_samples=20), num_workers=w),
    "weighted": lambda w: DataLoader(Rows(ROWS), 3, sampler=WeightedRandomSampler(WEIGHTS, 15), num_workers=w),
    "subset": lambda w: DataLoader(Rows(ROWS), 3, sampler=SubsetRandomSampler([1, 5, 7, 9, 11]), num_workers=w),
    "distributed": lambda w: DataLoader(Rows(ROWS), 3, sampler=DistributedSampler(Rows(ROWS), 2, 1), num_workers=w),
    "batch_sampler": lambda w: DataLoader(
        Rows(ROWS), batch_sampler=BatchSampler(RandomSampler(range(ROWS)), 4, False), num_workers=w
    ),
    "list_of_batches": lambda w: DataLoader(Rows(ROWS), batch_sampler=[[0, 1], [5], [2, 3, 4]], num_workers=w),
    "buckets": lambda w: DataLoader(Rows(ROWS), batch_sampler=BucketBatches(ROWS, False), num_workers=w),
    "buckets_own_generators": lambda w: DataLoader(Rows(ROWS), batch_sampler=BucketBatches(ROWS, True), num_workers=w),
    "with_a_state": lambda w: DataLoader(Rows(ROWS), 3, sampler=StatefulIndices(ROWS), num_workers=w),
    "no_batches": lambda w: DataLoader(Rows(6), None, shuffle=True, num_workers=w),
    "persistent": lambda w: DataLoader(
        Rows(ROWS), 3, shuffle=True, num_workers=w, persistent_workers=w > 0, prefetch_factor=5 if w else None
    ),
    "composed": lambda w: DataLoader(
        ConcatDataset([Subset(Rows(9), [1, 3, 8]), *random_split(Rows(6), [2, 4], torch.Generator().manual_seed(1))]),
        2,
        shuffle=True,
        num_workers=w,
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_resumes_exactly_without_workers(name: str) -> None:
    assert assert_resumes_exactly(lambda: LOADERS[name](0)) >= 4


@pytest.mark.parametrize("name", LOADERS)
def test_workers_change_nothing(name: str) -> None:
    # Every interruption without workers (above); here the batches of 0 and 2 workers, and interruptions in both passes.
    assert_resumes_exactly(LOADERS[name], workers=(0, 2), every=5)


def test_every_cut_with_workers() -> None:
    assert_resumes_exactly(LOADERS["random"], workers=(0, 2))


def test_an_endless_sampler_resumes() -> None:
    assert_resumes_exactly(lambda: DataLoader(Rows(9), 2, sampler=EndlessIndices(9)), max_batches=80, every=9)


def fixed(num_steps: int) -> MultiDataLoaderConfig:
    return MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=num_steps)


def rows_of(loader: Any, num_steps: int, **options: Any) -> list[list[int]]:
    with MultiLoader({"a": loader}, fixed(num_steps), **options) as mixture:
        return [batch.data[:, 0].long().tolist() for batch in mixture]


def test_each_pass_takes_every_row_once_in_an_order_of_its_own() -> None:
    batches = rows_of(shuffled(17, 3), 18)
    passes = [[row for batch in batches[start : start + 6] for row in batch] for start in (0, 6, 12)]
    assert all(sorted(order) == list(range(17)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3
    assert rows_of(shuffled(17, 3), 18, seed=1) != batches


def test_a_generator_contributes_its_seed_only() -> None:
    def seeded(seed: int, used: bool = False) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        if used:
            torch.rand(5, generator=generator)
        return shuffled(generator=generator)

    assert rows_of(seeded(1), 12) == rows_of(seeded(1, used=True), 12) != rows_of(seeded(2), 12)


def test_distributed_sampler_gets_the_pass_as_its_epoch() -> None:
    sampler = DistributedSampler(range(10), num_replicas=2, rank=0)
    batches = rows_of(DataLoader(Rows(10), 5, sampler=sampler), 3)
    for pass_, batch in enumerate(batches):
        sampler.set_epoch(pass_)
        assert batch == list(sampler)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_global_order_does_not_depend_on_the_ranks(world_size: int) -> None:
    merged: list[list[int]] = [[] for _ in range(6)]
    for rank in range(world_size):
        loader = shuffled(26, 12 // world_size)
        with MultiLoader({"a": loader}, fixed(6), rank=rank, world_size=world_size) as mixture:
            for batch in mixture:
                if batch.weight:
                    merged[batch.step] += batch.data[:, 0].long().tolist()
    assert merged == rows_of(shuffled(26, 12), 6)


class Drawn(Rows):
    """Draws from the batch's own generator, as datasets read by several threads do."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index), *batch_rng().random(2)], dtype=torch.float64)


class MadeBatches(Sequence[torch.Tensor]):
    """Batches by index, each made when it is asked for."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: Any) -> Any:
        if index >= 12:
            raise IndexError(index)
        return torch.stack([Rows(36)[3 * index + row] for row in range(3)])


def with_noise(rows: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return rows + torch.from_numpy(rng.random(rows.shape))


DIVIDED: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: shuffled(36, 3),
    "shuffled_in_workers": lambda: shuffled(36, 3, num_workers=2),
    "batch_sampler": lambda: DataLoader(Rows(36), batch_sampler=BatchSampler(RandomSampler(range(36)), 3, False)),
    "sequence": MadeBatches,
    "threads": lambda: ThreadLoader(Drawn(36), 3, shuffle=True, num_threads=2),
    "array": lambda: ArrayLoader(torch.arange(36, dtype=torch.float64)[:, None], 3, shuffle=True, transform=with_noise),
}


@pytest.mark.parametrize("name", DIVIDED)
@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_draws_the_numbers_of_its_place_among_all(name: str, world_size: int) -> None:
    with MultiLoader({"a": DIVIDED[name]()}, fixed(12)) as alone:
        expected = [content_hash(batch.data) for batch in alone]
    assert len(set(expected)) == 12
    for rank in range(world_size):
        with MultiLoader({"a": DIVIDED[name]()}, fixed(4), rank=rank, world_size=world_size) as mixture:
            assert [content_hash(batch.data) for batch in mixture] == expected[rank : 4 * world_size : world_size]


def test_a_rank_without_a_sample_repeats_one_with_weight_zero() -> None:
    weights = []
    for rank in range(3):
        with MultiLoader({"a": shuffled(10, 3)}, fixed(2), rank=rank, world_size=3) as mixture:
            weights.append([batch.weight for batch in mixture])
    assert weights == [[1.0, 3.0], [1.0, 0.0], [1.0, 0.0]]


def test_the_users_own_division_among_ranks_is_kept_and_checked() -> None:
    loader = DataLoader(Rows(10), 5, sampler=DistributedSampler(range(10), 2, 1, shuffle=False))
    assert rows_of(loader, 1, rank=1, world_size=2) == [[1, 3, 5, 7, 9]]
    with pytest.raises(ConfigError, match="rank 1 of 2 is used on rank 0 of 2"):
        MultiLoader({"a": loader}, rank=0, world_size=2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_process_wide_generators_are_untouched(num_workers: int) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    np.random.randn()  # numpy keeps the other half of a pair of Gaussians
    random.gauss(0, 1)
    before = torch.get_rng_state(), str(np.random.get_state(legacy=False)), random.getstate()
    rows_of(LOADERS["buckets"](num_workers), 12)
    rows_of(shuffled(num_workers=num_workers), 12)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state(legacy=False)), random.getstate())


def test_seeding_can_be_switched_off() -> None:
    torch.manual_seed(1)
    with MultiLoader({"a": shuffled()}, fixed(1), seed_each_batch=False) as mixture:
        batch = next(iter(mixture)).data
    torch.manual_seed(1)
    assert batch[0, 1] == torch.rand(())


class OwnGenerator(Rows):
    """Augments with a generator of its own, and says how to seed it."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self.generator = np.random.default_rng(0)

    def set_batch_seed(self, key: int) -> None:
        self.generator = np.random.default_rng(key)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, self.generator.random()], dtype=torch.float64)


def test_a_dataset_may_seed_its_own_generator() -> None:
    assert_resumes_exactly(
        lambda w: DataLoader(OwnGenerator(9), 2, shuffle=True, num_workers=w), workers=(0, 2), every=4
    )


def remember(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert isinstance(info.dataset, OwnDataset)
    info.dataset.worker = worker_id + 100


class OwnDataset(Rows):
    worker = 0

    def __getitem__(self, index: int) -> torch.Tensor:
        info = get_worker_info()
        ignored = [signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]
        return torch.tensor(
            [index, self.worker, float(info is not None and info.dataset is self), *map(float, ignored)]
        )


def test_workers_see_the_users_dataset_and_ignore_signals() -> None:
    loader = DataLoader(OwnDataset(8), 2, num_workers=2, worker_init_fn=remember)
    with MultiLoader({"a": loader}) as mixture:
        rows = torch.cat([batch.data for batch in mixture])
    assert set(rows[:, 1].tolist()) == {100.0, 101.0}
    assert rows[:, 2:].all()


def test_spawned_workers() -> None:
    spawned = DataLoader(Rows(6), 3, shuffle=True, num_workers=1, multiprocessing_context="spawn")
    hashes = []
    for loader in (spawned, shuffled(6, 3)):
        with MultiLoader({"a": loader}) as mixture:
            hashes.append([content_hash(batch.data) for batch in mixture])
    assert hashes[0] == hashes[1]


def test_only_what_the_schedule_wants_is_in_flight() -> None:
    config = fixed(40)
    config.prefetch_batches = 3
    with MultiLoader(
        [shuffled(num_workers=1, prefetch_factor=8, persistent_workers=True) for _ in range(2)], config
    ) as mixture:
        most = 0
        for _ in mixture:
            most = max(most, sum(mixture.stats()["in_flight"].values()))
    assert most == 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_exception_names_loader_pass_batch_and_step(num_workers: int) -> None:
    loader = DataLoader(Shouting(10, bad=7), 2, num_workers=num_workers)
    with MultiLoader({"a": shuffled(), "b": loader}) as mixture:
        iterator = iter(mixture)
        seen = [next(iterator) for _ in range(7)]
        for _ in range(2):  # the same place again
            with pytest.raises(
                SourceError, match=r"(?s)loader 'b', pass 0, batch 3 \(epoch 0, step 7\).*row 7 is missing"
            ) as caught:
                next(iterator)
            assert isinstance(caught.value.__cause__, KeyError)
    assert len(seen) == 7


def test_a_killed_worker_is_an_error_at_once() -> None:
    start = time.monotonic()
    with MultiLoader({"a": DataLoader(Dying(8), 2, num_workers=2)}) as mixture:  # noqa: SIM117
        with pytest.raises(SourceError, match="exited unexpectedly"):
            list(mixture)
    assert time.monotonic() - start < 12


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_that_hangs_is_given_up(num_workers: int) -> None:
    mixture = MultiLoader({"a": DataLoader(Slow(8), 2, num_workers=num_workers)}, fetch_timeout_s=0.3)
    with pytest.raises(FetchTimeout, match=r"(?s)loader 'a', pass 0, batch 0 .*0\.3.*test_a_loader_that_hangs"):
        next(iter(mixture))
    mixture.close()


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


def test_none_instead_of_a_batch() -> None:
    loader = DataLoader(Rows(4), 2, collate_fn=lambda rows: None)
    with MultiLoader({"a": loader}) as mixture, pytest.raises(SourceError, match="gave None instead of a batch"):
        next(iter(mixture))


def test_a_stop_iteration_in_the_dataset_is_not_the_end() -> None:
    def stop(rows: Any) -> Any:
        raise StopIteration

    with MultiLoader({"a": DataLoader(Rows(4), 2, collate_fn=stop)}) as mixture:  # noqa: SIM117
        with pytest.raises(SourceError, match="raised StopIteration"):
            next(iter(mixture))


def test_a_live_iterator_is_a_warning() -> None:
    loader = shuffled(num_workers=1, persistent_workers=True)
    iterator = iter(loader)
    with pytest.warns(UserWarning, match="live iterator"):
        MultiLoader({"a": loader}).close()
    iterator._shutdown_workers()


def test_a_one_shot_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match="one-shot iterator"):
        as_source(DataLoader(Rows(4), sampler=iter([0, 1])), "a")


def test_a_subclass_with_its_own_iteration_is_a_plain_iterable() -> None:
    class Twice(DataLoader[Any]):
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                yield batch
                yield batch

    assert not isinstance(as_source(Twice(Rows(4), 2), "a"), TorchSource)


def test_a_position_far_away_opens_at_once() -> None:
    rows = TensorDataset(torch.arange(3_200_000))
    state = None
    with MultiLoader({"a": DataLoader(rows, 32, shuffle=True)}, fixed(100_000)) as mixture:
        mixture.schedule.seek(0, 99_000)
        state = mixture.state_dict()
    times = []
    for _ in range(5):
        with MultiLoader({"a": DataLoader(rows, 32, shuffle=True)}, fixed(100_000)) as mixture:
            start = time.perf_counter()
            mixture.load_state_dict(state)
            next(iter(mixture))
            times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_workers_end_with_the_loader() -> None:
    before = set(_children())
    mixture = MultiLoader({"a": shuffled(num_workers=2)})
    next(iter(mixture))
    assert len(set(_children()) - before) == 2
    mixture.close()
    mixture.close()
    assert set(_children()) <= before


def test_abandoned_iterators_leave_nothing() -> None:
    before = set(_children())
    for _ in range(3):
        next(iter(MultiLoader({"a": shuffled(num_workers=1)})))
    assert set(_children()) <= before


def test_sequential_and_batches_are_recognised() -> None:
    assert as_source(DataLoader(Rows(5), 2), "a").notes() == []
    assert as_source(shuffled(), "a").notes() == []
    weighted = DataLoader(Rows(5), 2, sampler=WeightedRandomSampler(WEIGHTS[:5], 5))
    assert "no data is read" in as_source(weighted, "a").notes()[0]
    assert type(DataLoader(Rows(5)).sampler) is SequentialSampler


class Wide(Rows):
    """Rows of 8,000 bytes."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1000,), float(index), dtype=torch.float64)


def test_batches_in_worker_processes_stay_within_the_bytes() -> None:
    config = fixed(60)
    config.prefetch_bytes = 100_000
    loaders = [
        DataLoader(Wide(20), 4, num_workers=1, prefetch_factor=4, persistent_workers=True) for _ in range(2)
    ]  # batches of 32,000 bytes
    with MultiLoader(loaders, config) as mixture:
        held = [sum(mixture.stats()["in_flight"].values()) * 32_000 for _ in mixture]
    assert max(held) == 96_000
