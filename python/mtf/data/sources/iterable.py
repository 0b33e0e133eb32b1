"""Iterables without a state: a position is reached by producing the batches before it again."""

from __future__ import annotations

import copy
import inspect
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from mtf._core import fold_in
from mtf.call_site import user_level
from mtf.data.protocols import length_of, set_epoch
from mtf.data.rng.generators import fresh_torch_generator, seeded
from mtf.data.rng.owned_generators import OwnedGenerators, same_state
from mtf.data.sampling.sampler_replay import copy_sampler
from mtf.data.sources.base import ResumeMode, Snapshot, Source, Stream
from mtf.data.sources.iterator_stream import IteratorStream
from mtf.data.sources.stateful import compare_again
from mtf.data.sources.torch_map import iterates_as_torchs
from mtf.data.workers.pool import WorkerInit
from mtf.data.workers.supervision import end_kept_workers, forget_ended, iterate
from mtf.errors import ConfigError
from mtf.formatting import shortened

_log = logging.getLogger("mtf")


class IterableSource(Source):
    """Anything that can be iterated. A position is reached by producing the batches before it again; a warning says so.

    Each batch is produced under generators seeded from its position, so that what is produced again is the same as
    far as the iterable draws from the process-wide generators and depends on nothing else that changes.

    A one-shot iterator (a generator, an open file) goes forward only, and stays alive as long as the source.

    Attributes:
        is_one_shot: Whether the loader is one.
    """

    resume_mode = ResumeMode.REPLAY

    def __init__(self, loader: Any, name: str, *, seed_each_batch: bool = True) -> None:
        self.name = name
        self.is_one_shot = isinstance(loader, Iterator)
        is_iterable = hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")
        # Keys and letters are no batches.
        if not is_iterable or isinstance(loader, (dict, str, bytes)):
            raise ConfigError(
                f"loader {name!r} must be a Source, a DataLoader or an iterable of batches, but is "
                f"{shortened(repr(loader))}"
            )
        self.loader = loader
        self._num_workers = loader.num_workers if isinstance(loader, DataLoader) else 0
        # torch's own iterator draws nothing here where workers fetch; that of a subclass may draw an order, or augment.
        self._seed_inline = seed_each_batch and not (self._num_workers and iterates_as_torchs(loader))
        self._owned: OwnedGenerators | None = None
        self._first_states: list[Any] = []  # of the generators that the loader keeps, before it was read
        self._moved_paths: set[str] = set()
        self._num_taken = 0  # of a one-shot iterator
        self._is_over = False  # a generator that has raised gives nothing more

    def num_batches(self) -> int | None:
        return length_of(self.loader)

    def position_owner(self) -> Any:
        return self.loader if self.is_one_shot else None

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        pass_key = fold_in(key, pass_)
        if self.is_one_shot:
            return self._open_one_shot(pass_, batch, pass_key, snapshot)
        self._place_generators(pass_, pass_key, snapshot)
        # torch draws the workers' seed from the process-wide generator when an iterator is made.
        with seeded(pass_key):
            set_epoch(self.loader, pass_)
            forget_ended(self.loader)
            iterator = iterate(self._prepared(pass_key))
        stream = IteratorStream(iterator, 0, pass_key, self._seed_inline, hashes=True, state=self._state)
        self._replay(stream, pass_, batch, snapshot)
        return stream

    def _open_one_shot(self, pass_: int, batch: int, pass_key: int, snapshot: Snapshot | None) -> Stream:
        way_out = "pass an object that can be iterated again (a class with __iter__, a DataLoader), or save its state"
        if pass_ > 0:
            raise ConfigError(f"loader {self.name!r} is a one-shot iterator and can't start pass {pass_}: {way_out}")
        if self._is_over:
            raise ConfigError(f"loader {self.name!r} is a generator that has raised, and so it is over: {way_out}")
        if batch < self._num_taken:
            raise ConfigError(
                f"loader {self.name!r} is a one-shot iterator that has given {self._num_taken} batches and can't go "
                f"back to batch {batch}: {way_out}"
            )
        stream = IteratorStream(self._counted(), self._num_taken, pass_key, self._seed_inline, hashes=True)
        self._replay(stream, pass_, batch - self._num_taken, snapshot)
        return stream

    def _counted(self) -> Iterator[Any]:
        try:
            for data in self.loader:
                self._num_taken += 1
                yield data
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C ends a generator as well
            self._is_over = inspect.isgenerator(self.loader)
            raise

    def _place_generators(self, pass_: int, pass_key: int, snapshot: Snapshot | None) -> None:
        """Puts generators that the loader keeps to where ``pass_`` begins, if passes move them on.

        Pass 0 begins where the user has put them. Later passes begin at their keys, since a new process can't know
        what the passes before have left. What isn't moved on by reading, as a generator that is copied by each pass,
        stays as it is.
        """
        if self._owned is None:
            self._owned = OwnedGenerators(self.loader)
            self._first_states = self._owned.states()
        if not self._owned:
            return
        if pass_ == 0:
            self._owned.restore(self._first_states)
        else:
            saved = snapshot.data if snapshot is not None and isinstance(snapshot.data, Mapping) else {}
            self._moved_paths.update(saved.get("generators", ()))
            self._owned.seed(pass_key, only=self._moved())

    def _moved(self) -> set[str]:
        """Paths of generators that reading has moved on."""
        assert self._owned is not None
        places = zip(self._owned.paths, self._first_states, strict=False)
        waiting = [(place, path, first) for place, (path, first) in enumerate(places) if path not in self._moved_paths]
        if waiting:
            states = self._owned.states()
            self._moved_paths.update(path for place, path, first in waiting if not same_state(first, states[place]))
        return self._moved_paths

    def _state(self) -> dict[str, Any] | None:
        """What a resume has to know besides the position; None: nothing."""
        moved = self._moved() if self._owned else ()
        return {"generators": sorted(moved)} if moved else None

    def _prepared(self, pass_key: int) -> Any:
        """The loader with a generator of its own, from which torch seeds workers, and with their signals ignored."""
        loader = self.loader
        if not isinstance(loader, DataLoader):
            return loader
        prepared = copy.copy(loader)
        if loader.generator is not None:
            prepared.generator = fresh_torch_generator(loader.generator, pass_key)
        changed = vars(prepared)  # a DataLoader lets some be set only by its constructor
        if not isinstance(loader.dataset, IterableDataset):
            # A subclass with an iteration of its own: its samplers' generators begin anew in each pass, too.
            copies: dict[int, Any] = {}
            for attribute in ("batch_sampler", "sampler"):
                if changed.get(attribute) is not None:
                    changed[attribute] = copy_sampler(changed[attribute], pass_key, copies)
        if self._num_workers:
            prepared.worker_init_fn = WorkerInit(loader.worker_init_fn, unwrap=False)
            # New workers in each pass: those of the pass before have a dataset that knows nothing of ``set_epoch`` and
            # has counted what no resume could count again.
            changed.update(persistent_workers=False, _iterator=None)
        return prepared

    def _replay(self, stream: Stream, pass_: int, num_batches: int, snapshot: Snapshot | None) -> None:
        if num_batches == 0:
            return
        warnings.warn(
            f"loader {self.name!r} can't be opened at a position and has no state_dict: to get to batch "
            f"{num_batches} of pass {pass_}, the {num_batches} batches before it are produced again and dropped",
            stacklevel=user_level(),
        )
        start = time.perf_counter()
        digest = None
        if snapshot is not None and snapshot.pass_ == pass_ and snapshot.batch == num_batches:
            digest = snapshot.digest
        for done in range(num_batches):
            try:
                if digest is not None and done == num_batches - 1:
                    place = f"loader {self.name!r}, pass {pass_}, batch {done}"
                    compare_again(place, digest, stream)
                else:
                    next(stream)
            except StopIteration:
                raise ConfigError(
                    f"loader {self.name!r} ended after {done} batches of pass {pass_} while going to batch "
                    f"{num_batches}: it gives less than when the state was saved"
                ) from None
        _log.info("%s: produced %d batches again in %.1f s", self.name, num_batches, time.perf_counter() - start)

    def close(self) -> None:
        end_kept_workers(self.loader)

    def shard(self, rank: int, world_size: int) -> Source:
        return self

    def notes(self) -> list[str]:
        notes = ["a resume produces the batches before the position again and drops them"]
        if self.is_one_shot:
            notes[0] = (
                "a one-shot iterator: it can't cycle or go back; a resume in a new process produces the batches "
                "before the position and drops them"
            )
        if self._num_workers:
            notes.append(
                f"{self._num_workers} worker processes fetch ahead by themselves, outside the prefetch budget; batches "
                "depend on the number of workers"
            )
        return notes
