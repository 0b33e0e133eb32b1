"""shared_workers: one set of processes for several DataLoaders gives the batches that their own workers give."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders import Dying, Rows, shuffled
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, get_worker_info

import mtf
from mtf.data.determinism.content_hash import content_hash
from mtf.errors import ConfigError, SourceError

STEPS = 30


def doubled(samples: list[torch.Tensor]) -> torch.Tensor:
    return 2 * torch.stack(samples) + float(np.random.rand())


def three(num_workers: int = 1, **options: Any) -> dict[str, DataLoader[Any]]:
    """Unlike in every respect that processes don't have to agree on."""
    return {
        "rows": shuffled(17, 3, num_workers, **options),
        "pairs": DataLoader(
            Rows(9),
            batch_sampler=BatchSampler(RandomSampler(range(9)), 2, False),
            collate_fn=doubled,
            num_workers=num_workers,
            **options,
        ),
        "single": DataLoader(Rows(5), None, num_workers=num_workers, persistent_workers=num_workers > 0, **options),
    }


def config(shared_workers: int | None, **fields: Any) -> mtf.MultiDataLoaderConfig:
    return mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=STEPS,
        shared_workers=shared_workers,
        **fields,
    )


def hashes(mixture: mtf.MultiLoader, num_steps: int = STEPS) -> list[tuple[str, str]]:
    found = []
    iterator = iter(mixture)
    for _ in range(num_steps):
        batch = next(iterator)
        found.append((batch.name, content_hash(batch.data)))
    return found


@pytest.fixture(scope="module")
def expected() -> list[tuple[str, str]]:
    with mtf.MultiLoader(three(0), config(None)) as mixture:
        return hashes(mixture)


@pytest.mark.parametrize("options", [{}, {"prefetch_batches": 2}, {"prefetch_bytes": 300}], ids=str)
@pytest.mark.parametrize("shared_workers", [1, 2])
def test_batches_are_those_without_workers(
    shared_workers: int, options: dict[str, int], expected: list[tuple[str, str]]
) -> None:
    with mtf.MultiLoader(three(), config(shared_workers, **options)) as mixture:
        assert hashes(mixture) == expected


def test_there_are_so_many_processes_and_no_more() -> None:
    before = set(multiprocessing.active_children())
    with mtf.MultiLoader(three(2), config(2)) as mixture:
        hashes(mixture, 5)
        assert len(set(multiprocessing.active_children()) - before) == 2
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("cut", [1, 7, 16, 29])
def test_a_resume_goes_on_with_other_processes(cut: int, expected: list[tuple[str, str]]) -> None:
    with mtf.MultiLoader(three(), config(2)) as mixture:
        assert hashes(mixture, cut) == expected[:cut]
        state = mixture.state_dict()
        mixture.load_state_dict(state)
        assert hashes(mixture, STEPS - cut) == expected[cut:]
    with mtf.MultiLoader(three(), config(1)) as mixture:
        mixture.load_state_dict(state)
        assert hashes(mixture, STEPS - cut) == expected[cut:]


def test_edits_lose_nothing() -> None:
    def edited(loaders: dict[str, DataLoader[Any]], shared_workers: int | None) -> list[tuple[str, str]]:
        with mtf.MultiLoader(loaders, config(shared_workers)) as mixture:
            found = hashes(mixture, 6)
            mixture.update_weights([1.0, 5.0, 1.0])
            found += hashes(mixture, 6)
            mixture.remove_source("rows")
            mixture.add_source("late", shuffled(8, 2), weight=1.0)
            found += hashes(mixture, 6)
            mixture.set_epoch(2)
            return found + hashes(mixture, 6)

    assert edited(three(), 2) == edited(three(0), None)


def test_batches_that_are_not_wanted_any_more_are_dropped() -> None:
    with mtf.MultiLoader(three(), config(1, prefetch_batches=12)) as mixture:
        for epoch in range(8):
            mixture.set_epoch(epoch)
            hashes(mixture, 3)
        pool = mixture._sources._shared_workers.pool  # type: ignore[union-attr]
        held = sum(map(len, pool._received.values())) + len(pool._owners) - pool._owners.count(None)
        assert held == sum(mixture.stats()["in_flight"].values()) <= 12
        assert len(pool._received) <= 3


class Failing(Rows):
    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            raise ValueError("row 3 is broken")
        return super().__getitem__(index)


def test_an_error_comes_at_its_step_and_names_its_loader() -> None:
    def run(num_workers: int, shared_workers: int | None) -> list[Any]:
        loaders = {**three(num_workers), "bad": DataLoader(Failing(6), 1, num_workers=num_workers)}
        found: list[Any] = []
        with mtf.MultiLoader(loaders, config(shared_workers)) as mixture:
            iterator = iter(mixture)
            while len(found) < STEPS:
                try:
                    batch = next(iterator)
                except SourceError as error:
                    return [*found, str(error).split(":")[0], "row 3 is broken" in str(error.__cause__)]
                found.append((batch.name, content_hash(batch.data)))
        return found

    alone = run(0, None)
    assert alone[-2].startswith("loader 'bad', pass 0, batch 3")
    assert alone[-1]
    assert run(1, 2) == alone


def test_a_dead_worker_is_an_error() -> None:
    loaders = {**three(), "dying": DataLoader(Dying(8), 2, num_workers=1)}
    with (
        mtf.MultiLoader(loaders, config(2)) as mixture,
        pytest.raises(SourceError, match=r"loader '\w+'.*(exited|ended)"),
    ):
        list(mixture)


class Leaving(Rows):
    """Ends its worker as if all were well, once."""

    def __init__(self, num_rows: int, flag: Path) -> None:
        super().__init__(num_rows)
        self.flag = flag

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 7 and not self.flag.exists():
            self.flag.touch()
            os._exit(0)
        return super().__getitem__(index)


def test_after_a_worker_has_left_every_batch_is_its_own(tmp_path: Path) -> None:
    loaders = {
        "a": DataLoader(Leaving(40, tmp_path / "left"), 1, num_workers=1),
        "b": DataLoader(Rows(40), 1, num_workers=1),
    }
    num_errors = num_batches = 0
    with mtf.MultiLoader(loaders, mtf.MultiDataLoaderConfig(shared_workers=2)) as mixture:
        batches = iter(mixture)
        while num_batches < 80:
            try:
                batch = next(batches)
            except SourceError:
                num_errors += 1
                assert num_errors == 1
                continue
            assert batch.data[0, 0] == batch.batch
            num_batches += 1
    assert num_errors == 1


class Shown(Rows):
    """Says what worker code sees of it."""

    def __getitem__(self, index: int) -> torch.Tensor:
        info = get_worker_info()
        assert info is not None
        assert info.dataset is self
        return torch.tensor([float(self.num_rows), getattr(self, "prepared", 0.0)])


def prepare(worker_id: int) -> None:
    info = get_worker_info()
    assert info is not None
    assert info.id == worker_id
    info.dataset.prepared = 10.0 * info.dataset.num_rows


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_see_the_dataset_that_is_read(context: str) -> None:
    def make(num_rows: int, init: Callable[[int], None] | None) -> DataLoader[Any]:
        return DataLoader(Shown(num_rows), 1, num_workers=1, worker_init_fn=init, multiprocessing_context=context)

    with mtf.MultiLoader({"a": make(2, prepare), "b": make(3, None)}, config(2)) as mixture:
        found = {batch.name: batch.data.tolist() for batch in mixture}
    assert found == {"a": [[2.0, 20.0]], "b": [[3.0, 0.0]]}


def test_it_is_one_set_in_the_budget() -> None:
    loaders = {f"s{k}": shuffled(9, 1, 1) for k in range(20)}
    with mtf.MultiLoader(loaders, config(2)) as mixture:
        most = 0
        for _ in mixture:
            most = max(most, sum(mixture.stats()["in_flight"].values()))
    assert 0 < most <= 16


@pytest.mark.parametrize(
    ("loaders", "shared_workers", "message"),
    [
        (three(), 0, "shared_workers must be at least 1, but is 0"),
        (three(0), 2, "no loader is a map-style DataLoader with num_workers > 0"),
        (
            {"a": shuffled(num_workers=1), "b": shuffled(num_workers=1, timeout=5)},
            1,
            "the same timeout, but 'a' has 0 and 'b' has 5",
        ),
    ],
    ids=["zero", "nobody", "timeout"],
)
def test_what_cannot_be_shared_is_refused(loaders: dict[str, Any], shared_workers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mtf.MultiLoader(loaders, config(shared_workers))
