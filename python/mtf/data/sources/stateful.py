"""Sources that save their own state: torchdata's loaders, and what else has state_dict.

The state that is saved is the one before the last batch. A resume reads that batch again, compares it, and drops it: so
the loader meets the end of its pass as it does in an uninterrupted run, and a state that wasn't restored is noticed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from mtf._core import fold_in
from mtf.call_site import user_level
from mtf.data.determinism.content_hash import short_hash
from mtf.data.protocols import copy_state, has_state_methods, length_of, set_epoch
from mtf.data.rng.generators import BatchSeed, seeded
from mtf.data.sources.base import ResumeMode, Snapshot, Source, Stream
from mtf.data.workers.pool import WorkerInit
from mtf.data.workers.supervision import end_kept_workers, end_workers, forget_ended, has_workers, iterate, supervise
from mtf.data.workers.worker_states import WorkerStateLoader
from mtf.errors import ConfigError


def _holder(loader: Any) -> Any:
    """What has the state of a loader: itself, or its dataset where that is in this process."""
    return loader if has_state_methods(loader) else loader.dataset


class StatefulSource(Source):
    """A loader whose own snapshot travels with each batch; a resume gives the last one back to it.

    Args:
        loader: What ``with_state_methods`` gives: it, or its dataset, has ``state_dict`` and ``load_state_dict``.
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
        self._initial: Any = None  # the state before the first batch
        self._knows_initial = False
        self._is_new = True  # nothing was read from it or loaded into it
        self._ended: int | None = None  # the pass whose end it has given, and nothing since

    def num_batches(self) -> int | None:
        return length_of(self.loader)

    def position_owner(self) -> Any:
        return None if isinstance(self.loader, WorkerStateLoader) else self._holder

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        ended, self._ended = self._ended, None  # unknown, should the following be interrupted
        if snapshot is None or snapshot.batch == 0:
            stream = self._open_first(pass_, key)
        elif snapshot.ended and ended == snapshot.pass_ < pass_:
            stream = self._iterate(pass_, 0, key)
        else:
            stream = self._restore(snapshot, key)
            if snapshot.pass_ == pass_:
                batch -= snapshot.batch
            else:
                # The pass is over. The loader has to see that, because many start a new one only then.
                if snapshot.ended or snapshot.digest is None:
                    next(stream, None)
                stream.close()
                stream = self._iterate(pass_, 0, key, was_left=not snapshot.ended, may_be_over=not snapshot.ended)
        for _ in range(batch):
            next(stream)
        return stream

    def _open_first(self, pass_: int, key: int) -> _StatefulStream:
        """The first pass that is read, from its beginning."""
        if not self._is_new:
            if not self._knows_initial:
                raise ConfigError(
                    f"loader {self.name!r} can't go back to its beginning, because its state there isn't known: it was "
                    "resumed before anything was read from it. Pass a new loader"
                )
            self._set_epoch(pass_)
            if self._initial is not None:
                self._load(self._initial)
        return self._iterate(pass_, 0, key)

    def _restore(self, snapshot: Snapshot, key: int) -> _StatefulStream:
        """The pass of a snapshot, after the batch that the snapshot was taken at."""
        # litdata's loader counts epochs by itself; its state says which this is.
        own = snapshot.data.get("current_epoch") if isinstance(snapshot.data, Mapping) else None
        self._set_epoch(own if isinstance(own, int) else snapshot.pass_)
        if snapshot.data is not None:
            self._load(snapshot.data)
        elif not self._is_new and self._initial is not None:  # the loader was new there
            self._load(self._initial)
        if snapshot.digest is None:  # taken after the batch
            return self._iterate(snapshot.pass_, snapshot.batch, key, is_loaded=snapshot.data is not None)
        stream = self._iterate(
            snapshot.pass_,
            snapshot.batch - 1,
            key,
            may_be_over=snapshot.batch == 1,
            is_loaded=snapshot.data is not None,
        )
        stream.known_state = snapshot.data
        place = f"loader {self.name!r}, pass {snapshot.pass_}, batch {snapshot.batch - 1}"
        compare_again(place, snapshot.digest, stream)
        return stream

    def _set_epoch(self, epoch: int) -> None:
        """Gives the loader its epoch. litdata's dataset takes none while it holds a loaded state."""
        reset = getattr(getattr(self.loader, "dataset", None), "reset_state_dict", None)
        if callable(reset):
            reset()
        set_epoch(self.loader, epoch)

    def _load(self, state: Any) -> None:
        self._is_new = False
        holder: Any = self._holder
        holder.load_state_dict(copy_state(state))

    def _iterate(
        self,
        pass_: int,
        batch: int,
        key: int,
        *,
        was_left: bool = False,
        may_be_over: bool = False,
        is_loaded: bool = False,
    ) -> _StatefulStream:
        """A new iterator of the loader, whose next batch is ``batch`` of ``pass_``.

        Args:
            pass_: The pass.
            batch: The batch.
            key: Key of the source's random numbers.
            was_left: The pass before was left before its end.
            may_be_over: The loader may still stand at the end of the pass before.
            is_loaded: The loader was given a state, which ``set_epoch`` would change in some of them.
        """
        iterator = self._iterator(pass_, key, is_loaded=is_loaded)
        stream = _StatefulStream(self, iterator, pass_, batch, fold_in(key, pass_))
        stream.follows_left = was_left
        if may_be_over:
            stream.make_again = lambda: self._iterator(pass_, key)
        return stream

    def _iterator(self, pass_: int, key: int, *, is_loaded: bool = False) -> Iterator[Any]:
        pass_key = fold_in(key, pass_)
        with seeded(pass_key):
            if not is_loaded:
                self._set_epoch(pass_)
            forget_ended(self.loader)
            if self._worker_seed is not None:
                # The workers' seed, which is part of their state, mustn't depend on how many iterators were made.
                self._worker_seed.manual_seed(pass_key)
            return iterate(self.loader)

    def shard(self, rank: int, world_size: int) -> Source:
        return self

    def close(self) -> None:
        self._ended = None
        end_kept_workers(self.loader)

    def notes(self) -> list[str]:
        if isinstance(self.loader, WorkerStateLoader):
            return [
                f"{self._num_workers} worker processes fetch ahead by themselves, outside the prefetch budget; what "
                "each reads depends on how many there are"
            ]
        if not self._num_workers:
            return []
        return [
            f"{self._num_workers} worker processes fetch ahead by themselves, outside the prefetch budget, and random "
            "augmentation in them depends on how many there are and isn't the same after a resume"
        ]


class _StatefulStream(Stream):
    """A pass of a stateful loader.

    Attributes:
        follows_left: Whether the pass before was left before its end. Loaders that begin a pass at its first batch then
            still have the state of that pass before it, so the state after it is the one to save.
        known_state: The state before the first batch, where one was just loaded. The loader isn't asked for it, because
            asking changes a loaded state in some of them.
        make_again: Makes the iterator once more, should it be at the end of the pass before; None where it can't be.
    """

    def __init__(self, source: StatefulSource, iterator: Iterator[Any], pass_: int, batch: int, pass_key: int) -> None:
        self._source = source
        self._iterator = iterator
        self._take: Callable[[], Any] | None = supervise(iterator)
        self._pass = pass_
        self._batch = batch
        self._pass_key = pass_key
        self._seed = BatchSeed() if source._seed_inline else None
        self.follows_left = False
        self.known_state: Any = None
        self.make_again: Callable[[], Iterator[Any]] | None = None
        self._before: Any = None
        self._digest: str | None = None

    def __next__(self) -> Any:
        if self._take is None:
            raise StopIteration
        # Many loaders can't be given the state that they had when they were new: they take it for one inside a pass.
        was_new = self._source._is_new
        before = self._state() if self.known_state is None else self.known_state
        self.known_state = None
        self._source._is_new = False  # also where Ctrl-C comes during the fetch
        try:
            data = self._fetch()
        except StopIteration:
            if self.make_again is None:
                self._source._ended = self._pass
                raise
            self._iterator, self.make_again = self.make_again(), None
            self._take = supervise(self._iterator)
            data = self._fetch()
        self.make_again = None
        if self.follows_left:
            self._before, self._digest, self.follows_left = self._state(), None, False
        else:
            self._before, self._digest = None if was_new else before, short_hash(data)
        self._batch += 1
        return data

    def _state(self) -> Any:
        holder: Any = self._source._holder
        try:
            state = copy_state(holder.state_dict())
        except Exception:
            if not self._source._is_new:
                raise
            state = None  # some loaders have no state before their first batch: they are as new there
        if self._source._is_new:
            self._source._initial, self._source._knows_initial = state, True
        return state

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

    def snapshot(self, pass_: int, batch: int) -> Snapshot:
        return Snapshot(pass_, batch, self._before, digest=self._digest)

    def has_workers(self) -> bool:
        return self._take is not None and has_workers(self._iterator)

    def close(self) -> None:
        if self._take is not None:
            self._take = None
            end_workers(self._iterator)


def compare_again(place: str, digest: str, stream: Stream) -> None:
    """Reads a batch once more and warns where it is another than before.

    Args:
        place: Which batch, in words.
        digest: Its ``short_hash`` when it was read first; empty where none could be taken.
        stream: Gives the batch next.
    """
    try:
        found = short_hash(next(stream))
        seen = "is another batch now"
    except StopIteration:
        found, seen = "", "doesn't exist any more: the pass ends before it"
    if digest and found != digest:
        warnings.warn(
            f"{place}, the last one before the resume, {seen}. The loader wasn't put back to where it was, so the "
            "batches that follow differ from those of an uninterrupted run. mtf.check_source says what may cause it",
            stacklevel=user_level(),
        )
