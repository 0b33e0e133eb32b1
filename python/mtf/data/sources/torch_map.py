"""A torch DataLoader over a map-style dataset, rebuilt so that any (pass, batch) opens without reading data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from mtf._core import fold_in
from mtf.call_site import user_level
from mtf.data.protocols import copy_state, has_state_methods, length_of
from mtf.data.rng.generators import BatchSeed
from mtf.data.rng.seeded_dataset import SeededDataset
from mtf.data.sampling.sample_order import EveryNth, FlatOrder, IndexOrder, index_order
from mtf.data.sources.base import ResumeMode, Snapshot, Source, Stream
from mtf.data.sources.rest_of_pass import PassCut, RestOfPass
from mtf.data.workers.pool import WorkerPool, Workers
from mtf.errors import ConfigError

# A subclass that changes one of these decides itself what its iteration means.
_ITERATION = ("__iter__", "__len__", "_get_iterator", "_index_sampler", "_auto_collation")


def can_rebuild(loader: Any) -> bool:
    """Whether ``loader`` is a DataLoader over a map-style dataset that iterates as torch's own does.

    torchdata's StatefulDataLoader is one: its own state would be needed only for what a position says already.
    """
    cls = type(loader)  # some wrappers fake __class__
    if not issubclass(cls, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return iterates_as_torchs(loader, but=("_get_iterator",) if _filter_of(loader) else ())


def _filter_of(loader: Any) -> Callable[[Any], Any] | None:
    """What PyG's loaders of nodes, links and zips do to a batch in the training process."""
    owner = next((base for base in type(loader).__mro__ if "_get_iterator" in base.__dict__), None)
    if owner is None or not owner.__module__.startswith("torch_geometric.loader."):
        return None
    if owner.__name__ not in ("NodeLoader", "LinkLoader", "ZipLoader"):
        return None
    function: Callable[[Any], Any] = (lambda data: data) if loader.filter_per_worker else loader.filter_fn
    return function


def iterates_as_torchs(loader: DataLoader[Any], but: tuple[str, ...] = ()) -> bool:
    """Whether its iteration is torch's or torchdata's own, and not changed by a subclass in other methods than
    ``but``."""
    cls = type(loader)
    usual = next((base for base in cls.__mro__ if is_stateful_data_loader(base)), DataLoader)
    return all(getattr(cls, name) is getattr(usual, name) for name in _ITERATION if name not in but)


def is_stateful_data_loader(cls: type) -> bool:
    """Whether a class is torchdata's StatefulDataLoader itself, which isn't imported for the question."""
    return cls.__name__ == "StatefulDataLoader" and cls.__module__.startswith("torchdata.")


class TorchSource(Source):
    """Batches of a map-style DataLoader: its dataset, sampler, collate function and workers, addressed by position.

    With ``num_workers=0`` a batch is fetched when its step comes. With workers it is fetched when the schedule is
    going to want it; ``prefetch_factor`` is an upper bound.

    Args:
        loader: The user's DataLoader. It isn't iterated itself.
        name: The source's name.
        seed_each_batch: Seed torch, numpy and random from the batch's position before it is fetched.
        order: The order of indices; that of the loader's sampler if None.

    Attributes:
        dataset: The user's, as workers get it.
        filter: What is done in the training process to a batch that a worker made; None: nothing.
        workers: Processes shared with other sources, in place of the loader's own; None: it has its own.
    """

    workers: Workers | None = None
    _rank = 0
    _world_size = 1
    _first_length: int | None = None
    _reported_length = False

    def __init__(
        self, loader: DataLoader[Any], name: str, *, seed_each_batch: bool = True, order: IndexOrder | None = None
    ) -> None:
        self.name = name
        self.loader = loader
        self.seed_each_batch = seed_each_batch
        self._order = order or index_order(loader.batch_sampler, loader.sampler, name, loader.generator)
        self.dataset = SeededDataset(loader.dataset, loader.collate_fn)
        filter_batch = _filter_of(loader)
        self.filter = None if filter_batch is None else _Filter(filter_batch, self.dataset)
        self._pool: WorkerPool | None = None
        self.opens_ahead = loader.num_workers > 0 and loader.persistent_workers
        self.max_in_flight = loader.num_workers * int(loader.prefetch_factor or 2) if loader.num_workers else 0
        if has_state_methods(loader.dataset) and loader.num_workers == 0:
            self.resume_mode = ResumeMode.STATEFUL
        if order is None and loader._iterator is not None:
            warnings.warn(
                f"loader {name!r} has a live iterator, whose {loader.num_workers} worker processes stay next to those "
                "that are started now; drop it, or pass a new DataLoader",
                stacklevel=user_level(),
            )

    def num_batches(self) -> int | None:
        return self._order.num_batches()

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        pass_key = fold_in(key, pass_)
        indices = self._order.open(pass_, key, batch)
        self._compare_length(pass_)
        if self.workers is not None:
            return _WorkerStream(self, self.workers, indices, pass_, batch, pass_key, owns_workers=False)
        if self.loader.num_workers == 0:
            if snapshot is not None:
                self.loader.dataset.load_state_dict(copy_state(snapshot.data))  # type: ignore[attr-defined]
            return _InlineStream(self, indices, pass_, batch, pass_key)
        if not self.loader.persistent_workers:
            # A new set for each pass: users rely on the fork seeing what they changed in the dataset.
            pool = WorkerPool(self.dataset, self.loader, pass_key)
            return _WorkerStream(self, pool, indices, pass_, batch, pass_key, owns_workers=True)
        if self._pool is None or self._pool.closed:
            self._pool = WorkerPool(self.dataset, self.loader, key)
        return _WorkerStream(self, self._pool, indices, pass_, batch, pass_key, owns_workers=False)

    def initial_state(self) -> Any:
        return copy_state(self.loader.dataset.state_dict()) if self.resume_mode is ResumeMode.STATEFUL else None  # type: ignore[attr-defined]

    @property
    def _sampler(self) -> Any:
        """What makes the order; its length isn't asked for, since it may have none."""
        return self.loader.sampler if self.loader.batch_sampler is None else self.loader.batch_sampler

    def _compare_length(self, pass_: int) -> None:
        """Warns where a pass is longer or shorter than the schedule can know."""
        replay = self._order.replay
        length = self._order.num_batches() if replay is None else replay.num_draws
        if self._first_length is None:
            self._first_length = length
        elif length is not None and length != self._first_length and not self._reported_length:
            self._reported_length = True
            unit = "batches" if replay is None else "draws of its sampler"
            warnings.warn(
                f"loader {self.name!r}: pass {pass_} has {length} {unit}, where the first one opened had "
                f"{self._first_length}. The schedule keeps the length that the loader had at the start, so what "
                "is more is left out; a new MultiLoader, or add_source under another name, uses the new length",
                stacklevel=user_level(),
            )

    def order_state(self) -> Any:
        return None if self._order.replay is None else self._order.replay.state_dict()

    def load_order_state(self, state: Any) -> None:
        if self._order.replay is not None:
            self._order.replay.load_state_dict(state)

    def drop_last(self) -> Source:
        return self._with_order(self._order.drop_last())

    def shard(self, rank: int, world_size: int) -> Source:
        return self._part(self._order.shard(rank, world_size), rank, world_size)

    def size_to_divide(self) -> int | None:
        return length_of(self.loader.dataset)  # samplers count its samples, also those that divide them

    def spread(self, rank: int, world_size: int) -> Source:
        if self._order.shard(rank, world_size) is self._order:
            raise ConfigError(f"source {self.name!r} is already the part of rank {rank}")
        return self._part(EveryNth(self._order, rank, world_size), rank, world_size)

    def batch_key(self, pass_key: int, batch: int) -> int:
        """Key of a batch's random numbers: of its number among the batches of all ranks."""
        return fold_in(pass_key, batch * self._world_size + self._rank)

    def pass_cut(self, world_size: int) -> PassCut | None:
        if self.resume_mode is not ResumeMode.SEEK or not isinstance(self._order, FlatOrder):
            return None
        return self._order.pass_cut()

    def finish_pass(self, rest: RestOfPass) -> Source:
        other = copy.copy(self)
        assert isinstance(self._order, FlatOrder)
        other._order = self._order.finish_pass(rest)
        other._pool = None
        return other

    def weight(self, pass_: int, batch: int) -> float:
        return self._order.weight(batch, pass_)

    def global_batch_size_on(self, world_size: int) -> int | None:
        return self._order.global_batch_size(world_size)

    def order(self) -> str | None:
        return self._order.describe()

    def notes(self) -> list[str]:
        notes = []
        if self._order.replays_indices:
            notes.append(
                f"{type(self._sampler).__name__}: a resume draws the pass's indices "
                "again up to the position; no data is read for it"
            )
        if has_state_methods(self.loader.dataset) and self.loader.num_workers:
            notes.append(
                "the dataset has a state_dict, but its copies live in worker processes: their state isn't saved"
            )
        return notes

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _part(self, order: IndexOrder, rank: int, world_size: int) -> TorchSource:
        part = self._with_order(order)
        part._rank, part._world_size = rank, world_size
        return part

    def _with_order(self, order: IndexOrder) -> TorchSource:
        other = TorchSource(self.loader, self.name, seed_each_batch=self.seed_each_batch, order=order)
        other._rank, other._world_size = self._rank, self._world_size
        return other


class _Filter:
    """A function that is called with every batch in the training process, under generators of the batch."""

    def __init__(self, function: Callable[[Any], Any], dataset: SeededDataset) -> None:
        self._function = function
        self._dataset = dataset
        self._seed = BatchSeed()

    def __call__(self, data: Any, key: int | None) -> Any:
        if key is None:
            return self._function(data)
        key, owned = fold_in(key, "filter"), self._dataset.owned
        states = owned.states()
        self._seed.enter(key)
        owned.seed(key)
        try:
            return self._function(data)
        finally:
            self._seed.exit()
            owned.restore(states)


class _InlineStream(Stream):
    """A pass fetched in the training process, each batch when it is asked for."""

    def __init__(self, source: TorchSource, indices: Iterator[Any], pass_: int, batch: int, pass_key: int) -> None:
        loader = source.loader
        self._indices = indices
        self._pass = pass_
        self._batch = batch
        self._pass_key = pass_key
        self._batch_key = source.batch_key
        self._seed = BatchSeed() if source.seed_each_batch else None
        self._dataset = source.dataset
        self._fetch = self._dataset.__getitems__ if loader.batch_sampler is not None else self._dataset.__getitem__
        self._collate = self._dataset.collate
        self._pin = loader.pin_memory and torch.accelerator.is_available()
        self._stateful = source.resume_mode is ResumeMode.STATEFUL
        self._filter = source.filter

    def __next__(self) -> Any:
        index = next(self._indices)
        seed, key = self._seed, None
        try:
            if seed is None:
                data = self._collate(self._fetch((None, self._pass, index)))
            else:
                key = self._batch_key(self._pass_key, self._batch)
                owned = self._dataset.owned
                states = owned.states() if owned else None
                seed.enter(None)  # the dataset seeds
                try:
                    data = self._collate(self._fetch((key, self._pass, index)))
                finally:
                    seed.exit()
                    if states:
                        owned.restore(states)
            if self._filter is not None:
                data = self._filter(data, key)
        except StopIteration as error:
            raise RuntimeError(f"the dataset or collate function raised StopIteration for {index!r}") from error
        finally:
            self._batch += 1
        return pin_memory(data) if self._pin else data

    def state(self) -> Any:
        return copy_state(self._dataset.dataset.state_dict()) if self._stateful else None


class _WorkerStream(Stream):
    """A pass fetched by worker processes, as far ahead as was requested."""

    def __init__(
        self,
        source: TorchSource,
        workers: Workers,
        indices: Iterator[Any],
        pass_: int,
        batch: int,
        pass_key: int,
        *,
        owns_workers: bool,
    ) -> None:
        self._workers = workers
        self._tag = object()  # names this stream to the workers, which mustn't refer back to it
        self._owns_workers = owns_workers
        self._indices = indices
        self._pass = pass_
        self._batch = batch  # the next to be sent
        self._num_batches = source.num_batches() if owns_workers else None
        self._in_flight = 0
        self._pass_key = pass_key
        self._batch_key = source.batch_key if source.seed_each_batch else None
        self._filter = source.filter

    def request(self, num_batches: int) -> None:
        for _ in range(num_batches):
            index = next(self._indices, None)
            if index is None:
                return
            key = self._batch_key(self._pass_key, self._batch) if self._batch_key else None
            self._workers.send(self._tag, (key, self._pass, index))
            self._batch += 1
            self._in_flight += 1

    def __next__(self) -> Any:
        if self._in_flight == 0:
            self.request(1)
            if self._in_flight == 0:
                self.close()
                raise StopIteration
        batch = self._batch - self._in_flight
        self._in_flight -= 1
        data = self._workers.take(self._tag)
        if self._filter is not None:
            data = self._filter(data, self._batch_key(self._pass_key, batch) if self._batch_key else None)
        if self._in_flight == 0 and self._batch == self._num_batches:
            self.close()  # the last batch of the pass: without persistent_workers the processes end with it
        return data

    def close(self) -> None:
        if self._owns_workers:
            self._workers.close()
        elif not self._workers.closed:
            self._workers.forget(self._tag)
