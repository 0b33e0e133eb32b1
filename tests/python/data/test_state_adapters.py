"""States as other libraries mean them: iterators with ``get_state``, datasets that are told how much was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from mtf.data.protocols import set_epoch
from mtf.data.sources.base import ResumeMode
from mtf.data.sources.resolve import as_source
from mtf.data.sources.sequence import SequenceSource
from mtf.data.sources.torch_map import TorchSource
from mtf.testing import assert_resumes_exactly

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Position(Iterator[int]):
    def __init__(self) -> None:
        self.place = 0

    def __next__(self) -> int:
        if self.place == 5:
            raise StopIteration
        self.place += 1
        return self.place

    def get_state(self) -> bytes:
        return bytes([self.place])

    def set_state(self, state: bytes) -> None:
        self.place = state[0]


class Positions:
    def __iter__(self) -> Position:
        return Position()


Positions.__iter__.__annotations__["return"] = Position


def test_an_iterator_with_get_state_is_put_back_by_set_state() -> None:
    assert as_source(Positions(), "a").resume_mode is ResumeMode.STATEFUL
    assert assert_resumes_exactly(Positions) == 10


class Told(IterableDataset[Any]):
    """As litdata's: told what was read, it continues in the workers, each from its part."""

    def __init__(self) -> None:
        self.loaded: dict[str, int] | None = None
        self.epoch = self.batch_size = 0

    def set_batch_size(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def set_epoch(self, epoch: int) -> None:
        if self.loaded is None:
            self.epoch = epoch

    def reset_state_dict(self) -> None:
        self.loaded = None

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, step = (0, 1) if info is None else (info.id, info.num_workers)
        skipped = 0
        if self.loaded is not None:
            assert self.loaded["batch_size"] == self.batch_size
            self.epoch = self.loaded["epoch"]
            batches = -(-self.loaded["samples"] // self.batch_size)
            skipped = len(range(worker, batches, step)) * self.batch_size
        return iter(range(1000 * self.epoch + worker, 1000 * self.epoch + 14, step)[skipped:])

    def state_dict(self, num_samples_yielded: int, num_workers: int, batch_size: int) -> dict[str, int]:
        state = {"samples": num_samples_yielded, "batch_size": batch_size, "epoch": self.epoch}
        if self.loaded is not None:
            self.loaded.update(state)  # litdata's does: asking changes what was loaded
            return self.loaded
        return state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state


Told.__module__ = "litdata.streaming.dataset"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_that_is_told_what_was_read_continues_there(num_workers: int) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(Told(), 3, num_workers=num_workers)

    assert as_source(make(), "a").resume_mode is ResumeMode.STATEFUL
    assert_resumes_exactly(make, every=1 if num_workers == 0 else 3)


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(index)


class OwnIteration(DataLoader[Any]):
    def __iter__(self) -> Any:
        yield from super().__iter__()


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_of_a_subclass_is_that_of_the_pass(num_workers: int, seed: int | None) -> None:
    def make() -> DataLoader[Any]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return OwnIteration(Rows(), 3, shuffle=True, num_workers=num_workers, generator=generator)

    assert_resumes_exactly(make, every=1 if num_workers == 0 else 4)


class Epochs(IterableDataset[Any]):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(100 * self.epoch, 100 * self.epoch + 6))


def test_persistent_workers_have_the_epoch_of_their_pass() -> None:
    assert_resumes_exactly(lambda: DataLoader(Epochs(), 3, num_workers=2, persistent_workers=True), every=2)


class MapDataset:
    """As grain's: any index, without end after ``repeat``."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index * index


class FilterMapDataset(MapDataset):
    def __iter__(self) -> Iterator[int]:
        return iter([0, 4, 16])


MapDataset.__module__ = "grain.python"


def test_grains_map_dataset_is_read_by_index_and_shuffles_each_pass() -> None:
    source = as_source(MapDataset(3), "a")
    assert isinstance(source, SequenceSource)
    assert source.num_batches() == 3
    assert next(source.open(0, 1, key=0)) == 1
    assert [next(source.open(2, batch, key=0)) for batch in range(3)] == [36, 49, 64]


def test_grains_repeated_dataset_has_no_length() -> None:
    source = as_source(MapDataset(2**60), "a")
    assert source.num_batches() is None
    assert next(source.open(0, 10**9, key=0)) == 10**18


def test_a_filtered_map_dataset_is_iterated() -> None:
    assert not isinstance(as_source(FilterMapDataset(5), "a"), SequenceSource)


class Stage:
    epoch = -1


class Pipeline(IterableDataset[Any]):
    """As webdataset's: its stages count passes, and have no ``set_epoch``."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.pipeline = [self.stage, object()]

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


Pipeline.__module__ = "webdataset.pipeline"


def test_stages_of_webdataset_count_the_passes_of_the_run() -> None:
    pipeline = Pipeline()
    set_epoch(DataLoader(pipeline, None), 5)
    assert pipeline.stage.epoch == 4  # it adds one when it begins


class NodeLoader(DataLoader[Any]):
    """As PyG's: what workers made is completed in the training process, where a user's transform is random."""

    filter_per_worker = False

    def filter_fn(self, data: Any) -> Any:
        return data + torch.rand(())

    def _get_iterator(self) -> Any:
        raise AssertionError("read by position")


NodeLoader.__module__ = "torch_geometric.loader.node_loader"


@pytest.mark.parametrize("per_worker", [False, True])
def test_pygs_loader_of_nodes_is_read_by_position(per_worker: bool) -> None:
    def make(num_workers: int) -> DataLoader[Any]:
        loader = NodeLoader(Rows(), 3, shuffle=True, num_workers=num_workers)
        loader.filter_per_worker = per_worker
        return loader

    source = as_source(make(0), "a")
    assert isinstance(source, TorchSource)
    data = next(source.open(0, 0, key=1))
    assert bool((data != data.round()).all()) is not per_worker
    assert_resumes_exactly(make, workers=(0, 2), every=4)
