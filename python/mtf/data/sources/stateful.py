"""Sources that save their own state: torchdata's StatefulDataLoader, and what else has state_dict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from mtf._core import fold_in
from mtf.data.rng.generators import BatchSeed, seeded, untouched
from mtf.data.sources.base import ResumeMode, Snapshot, Source, Stream
from mtf.data.workers.pool import WorkerInit
from mtf.data.workers.supervision import end_kept_workers, end_workers, forget_ended, iterate, supervise

_ENDLESS = 2**62  # no schedule has as many steps


def has_state_methods(value: Any) -> bool:
    """Whether ``value`` follows the Stateful protocol."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def has_state(loader: Any) -> bool:
    """Whether a loader saves its position exactly: by itself, or by its dataset where that is in this process."""
    holder = _holder(loader)
    return holder is not None and not _loses_its_buffer(
        holder if holder is not loader else getattr(loader, "dataset", loader)
    )


def plain_copy(state: Any) -> Any:
    """A copy that doesn't change when the source goes on."""
    return copy.deepcopy(state)


def _holder(loader: Any) -> Any | None:
    if has_state_methods(loader):
        return loader
    if isinstance(loader, DataLoader) and loader.num_workers == 0 and isinstance(loader.dataset, IterableDataset):
        return loader.dataset if has_state_methods(loader.dataset) else None
    return None


def _loses_its_buffer(dataset: Any) -> bool:
    """Whether this is a dataset of HF ``datasets`` with a shuffle buffer, whose content isn't in its state."""
    stage = getattr(dataset, "_ex_iterable", None)
    while stage is not None:
        if type(stage).__name__.startswith("BufferShuffled"):
            return True
        stage = getattr(stage, "ex_iterable", None)
    return False


class StatefulSource(Source):
    """A loader whose own snapshot travels with each batch; a resume gives the last one back to it.

    Args:
        loader: It, or its dataset, has ``state_dict`` and ``load_state_dict``.
        name: The source's name.
        seed_each_batch: Seed torch, numpy and random from the batch's position when it is fetched in this process.
    """

    resume_mode = ResumeMode.STATEFUL

    def __init__(self, loader: Any, name: str, *, seed_each_batch: bool = True) -> None:
        self.name = name
        self._worker_seed: torch.Generator | None = None
        if isinstance(loader, DataLoader):
            # torch draws the workers' seed from the loader's generator, which often is the sampler's, once more at each
            # resume. A copy of the loader with a generator for that alone keeps the sampler's in step.
            loader = copy.copy(loader)
            loader.generator = self._worker_seed = torch.Generator()
            if loader.num_workers and not loader.persistent_workers:
                loader.worker_init_fn = WorkerInit(loader.worker_init_fn, unwrap=False)
        self.loader = loader
        self._holder = _holder(loader)
        self._num_workers = int(getattr(loader, "num_workers", 0) or 0)
        self._seed_inline = seed_each_batch and self._num_workers == 0
        self._initial: Any = None
        self._used = False
        self._restored = False  # and has given no batch since
        # Where the loader stands, so that a pass that follows its predecessor needs no load.
        self._position: tuple[int, int] | None = None

    def num_batches(self) -> int | None:
        return length_of(self.loader)

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        pass_key = fold_in(key, pass_)
        stood, self._position = self._position, None  # unknown, should the following be interrupted
        with seeded(pass_key):
            skip, follows = self._go_to(pass_, batch, snapshot, stood)
            set_epoch(self.loader, pass_)
            forget_ended(self.loader)
            iterator = self._iterator(pass_key)
        self._position = (pass_, batch - skip)
        stream = _StatefulStream(self, iterator, pass_, batch - skip, pass_key, may_be_over=follows)
        for _ in range(skip):
            next(stream)
        return stream

    def _iterator(self, pass_key: int) -> Iterator[Any]:
        """An iterator whose workers' seed, which is part of its state, doesn't depend on how many were made before."""
        if self._worker_seed is not None:
            self._worker_seed.manual_seed(pass_key)
        return iterate(self.loader)

    def initial_state(self) -> Any:
        """The state before the first batch, of a loader that may have been seeded when it was made."""
        if self._initial is None:
            with untouched():
                holder: Any = self._holder
                self._initial = plain_copy(holder.state_dict())
        return plain_copy(self._initial)

    def _go_to(
        self, pass_: int, batch: int, snapshot: Snapshot | None, stood: tuple[int, int] | None
    ) -> tuple[int, bool]:
        """Puts the loader, which stood at (pass, batch) if that is known, where its next iterator gives the pass.

        Returns:
            How many batches that iterator has to skip, and whether the loader was put into an earlier pass and has
            given nothing since.
        """
        holder: Any = self._holder
        if snapshot is None:
            initial = self.initial_state()
            if self._used:
                holder.load_state_dict(initial)
            self._used = True
            return batch, False
        self._used = True
        is_left = snapshot.pass_ < pass_ and not snapshot.ended
        # A pass that is left before its end was seen is left the same way as after a resume.
        loaded = is_left or (snapshot.pass_, snapshot.batch) != stood
        if loaded:
            self._restored = True
            self.initial_state()
            set_epoch(self.loader, snapshot.pass_)
            holder.load_state_dict(plain_copy(snapshot.data))
            if snapshot.pass_ < pass_ and snapshot.batch > 0:
                # The pass was left behind, at its end or before. The loader has to see that once more: many start a new
                # pass only when the one they were put into has been read from.
                next(iterate(self.loader), None)
        if snapshot.pass_ == pass_ or snapshot.batch == 0:  # nothing has been read: whatever its number, its first pass
            return batch - snapshot.batch, False
        return batch, self._restored

    def shard(self, rank: int, world_size: int) -> Source:
        return self

    def close(self) -> None:
        self._position = None
        end_kept_workers(self.loader)

    def notes(self) -> list[str]:
        if not self._num_workers:
            return []
        return [
            f"{self._num_workers} worker processes fetch ahead by themselves, outside the prefetch budget, and random "
            "augmentation in them depends on how many there are and isn't the same after a resume"
        ]


class _StatefulStream(Stream):
    """A pass of a stateful loader."""

    def __init__(
        self,
        source: StatefulSource,
        iterator: Iterator[Any],
        pass_: int,
        batch: int,
        pass_key: int,
        may_be_over: bool,
    ) -> None:
        # Whether the iterator may still be at the end of the pass before, and has to be made once more then.
        self._may_be_over = may_be_over
        self._source = source
        self._iterator = iterator
        self._take: Callable[[], Any] | None = supervise(iterator)
        self._pass = pass_
        self._batch = batch
        self._pass_key = pass_key
        self._seed = BatchSeed() if source._seed_inline else None

    def __next__(self) -> Any:
        if self._take is None:
            raise StopIteration
        try:
            data = self._fetch()
        except StopIteration:
            if not self._may_be_over:
                raise
            self._may_be_over = False
            with seeded(self._pass_key):
                self._iterator = self._source._iterator(self._pass_key)
            self._take = supervise(self._iterator)
            data = self._fetch()
        self._may_be_over = self._source._restored = False
        self._batch += 1
        self._source._position = (self._pass, self._batch)
        return data

    def _fetch(self) -> Any:
        seed, take = self._seed, self._take
        assert take is not None
        if seed is None:
            return take()
        seed.enter(fold_in(self._pass_key, self._batch))
        try:
            return take()
        finally:
            seed.exit()

    def state(self) -> Any:
        holder: Any = self._source._holder
        return plain_copy(holder.state_dict())

    def close(self) -> None:
        if self._take is not None:
            self._take = None
            end_workers(self._iterator)


def length_of(loader: Any) -> int | None:
    """``len(loader)``, None where it has none or says that it never ends (``sys.maxsize``, infinity)."""
    try:
        length = len(loader)
    except (TypeError, NotImplementedError, OverflowError):
        return None
    return length if length < _ENDLESS else None


def set_epoch(loader: Any, pass_: int) -> None:
    """Tells the loader, its dataset and its samplers which pass comes, each where it can be told."""
    told: set[int] = set()
    for attribute in ("", "dataset", "sampler", "batch_sampler"):
        target = getattr(loader, attribute, None) if attribute else loader
        method = getattr(target, "set_epoch", None)
        if callable(method) and id(target) not in told:
            told.add(id(target))
            method(pass_)
