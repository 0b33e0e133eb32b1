"""Batches of a map-style dataset that is safe to read on several threads at once, fetched by the engine's threads."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from mtf import _core
from mtf.config.checks import whole_number
from mtf.config.keywords import checked_keywords
from mtf.data.nested import num_bytes
from mtf.data.prefetch.engine import NativeStream, PreparedSource
from mtf.data.prefetch.source_reader import PassEnded
from mtf.data.protocols import epoch_setters, has_state_methods
from mtf.data.rng.batch_rng import begin_batch, end_batch
from mtf.data.rng.torch_threads import OneThread
from mtf.data.sampling.sample_order import IndexOrder
from mtf.data.sources.base import ResumeMode, Snapshot, Stream
from mtf.data.sources.standalone import StandaloneSource
from mtf.data.sources.torch_map import TorchSource
from mtf.errors import ConfigError
from mtf.formatting import shortened


class ThreadLoader(StandaloneSource, TorchSource):
    """A map-style dataset read by several threads at once, with a DataLoader's arguments and without its processes.

    It pays where samples wait (for files, a network, a database) or are decoded by code that releases the GIL (image
    and audio decoders, decompression, numpy and torch on large arrays), and everywhere in a free-threaded Python. It
    starts in milliseconds, and batches aren't copied between processes. For samples made in pure Python threads are
    slower than none: use a ``DataLoader`` with worker processes for these.

    The dataset's ``__getitem__`` (or ``__getitems__``) and ``collate_fn`` must be safe to call on several threads at
    once: each call computes its result from its index, and keeps files and connections in ``threading.local``.
    Samplers run on the thread that iterates. Batches come in the sampler's order, whichever thread is done first, and
    the order of a pass is the one that a ``DataLoader`` has in a ``MultiLoader``. Random augmentation draws from
    ``mtf.batch_rng()``, which belongs to the batch; process-wide generators aren't seeded here, since all threads share
    them. torch's own operations run on one thread inside a fetch, as in a DataLoader's workers: sums over several
    threads would differ in their last bits from machine to machine. An exception is raised, with its own traceback,
    where its batch is due.

    Iterated alone it gives one pass per ``iter``, each in an order of its own; in a ``MultiLoader`` or ``Trainer`` the
    schedule decides, and ``prefetch_workers``, ``prefetch_batches`` and ``prefetch_bytes`` of the configuration hold
    for all sources together.
    """

    @checked_keywords(words={"num_workers": "num_threads", "prefetch_factor": "prefetch_batches"})
    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        drop_last: bool = False,
        *,
        generator: torch.Generator | None = None,
        num_threads: int = 4,
        seed: int = 0,
        prefetch_batches: int | None = None,
        prefetch_bytes: int | None = None,
    ) -> None:
        """Describes the batches; reads no data and starts no thread.

        Args:
            dataset: Has ``__getitem__``, or ``__getitems__`` for a list of indices, and ``__len__`` unless a sampler is
                given.
            batch_size: Samples per batch (on each rank); None hands out single samples.
            shuffle: Each pass in an order of its own, which depends on the seed, the source's name and the pass only.
            sampler: Gives the order of indices.
            batch_sampler: Gives the indices of each batch.
            collate_fn: Makes a batch of a list of samples; torch's default if None.
            drop_last: Leave out an incomplete last batch.
            generator: Its initial seed takes part in the order.
            num_threads: Threads that fetch. In a mixture: the largest of its sources' counts, unless
                ``prefetch_workers`` is configured. With 0 a batch is fetched when it is asked for.
            seed: For iteration without a mixture, which has its own seed.
            prefetch_batches: Batches held ahead when iterated alone; None: two per thread.
            prefetch_bytes: Bytes held ahead when iterated alone, or None.

        Raises:
            ConfigError: An iterable-style dataset, a one-shot sampler or a number out of range.
            ValueError: Arguments that a DataLoader refuses as well.
        """
        ahead = _checked_prefetch(dataset, num_threads, prefetch_batches)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            collate_fn=collate_fn,
            drop_last=drop_last,
            generator=generator,
        )
        TorchSource.__init__(self, loader, "")
        self.resume_mode = ResumeMode.SEEK
        self._prepare_alone(seed, num_threads, ahead, prefetch_bytes)

    def __len__(self) -> int:
        num = self.num_batches()
        if num is None:
            raise TypeError("the number of batches isn't known: the sampler has no length")
        return num

    def native(self, key: int) -> _core.NativeSource:
        return _ThreadSource(_Fetches(self, key))

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        return NativeStream(self.native(key), pass_, batch, self.num_batches(), self.num_threads)

    def notes(self) -> list[str]:
        notes = super().notes()
        if has_state_methods(self.loader.dataset):
            notes.append("the dataset has a state_dict, which isn't saved: several threads read it, in no fixed order")
        return notes

    def _shape(self) -> dict[str, int | None]:
        return {"num_batches": self.num_batches(), "global_batch_size": self.global_batch_size_on(1)}

    def _with_order(self, order: IndexOrder) -> ThreadLoader:
        other = copy.copy(self)
        other._order = order
        return other


def _checked_prefetch(dataset: Any, num_threads: int, prefetch_batches: int | None) -> int:
    """Batches held ahead, after a look at what a DataLoader wouldn't refuse."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise ConfigError(
            f"dataset must be map-style (have __getitem__), but is {shortened(repr(dataset))}; pass an iterable "
            "to MultiLoader as it is"
        )
    num_threads = whole_number("num_threads", num_threads, 0)
    if prefetch_batches is None:
        return max(1, 2 * num_threads)
    return whole_number("prefetch_batches", prefetch_batches, 1)


class _ThreadSource(PreparedSource):
    """A ThreadLoader as the engine sees it."""

    def __init__(self, fetches: _Fetches) -> None:
        super().__init__(fetches.fetch, num_bytes)
        self._fetches = fetches

    def prepare(self, passes: list[int], batches: list[int]) -> list[int]:
        return self._fetches.prepare(passes, batches)

    def forget(self) -> None:
        self._fetches.requested.clear()


class _Fetches:
    """Indices drawn on the consumer's thread, and what other threads do with them."""

    def __init__(self, source: ThreadLoader, key: int) -> None:
        loader = source.loader
        self._dataset = loader.dataset
        self._getitems = getattr(loader.dataset, "__getitems__", None)
        self._epoch_setters = epoch_setters(loader.dataset)
        self._has_batches = loader.batch_sampler is not None
        self._collate = loader.collate_fn
        self._order = source._order
        self._batch_key = source.batch_key
        self._key = key
        # Ticket -> (pass, batch, its indices, what was raised instead). Each is taken out by the one fetch of it.
        self.requested: dict[int, tuple[int, int, Any, BaseException | None]] = {}
        self._tickets = itertools.count()
        self._indices: Iterator[Any] = iter(())
        self._next: tuple[int, int] | None = None  # what `_indices` gives next
        self._one_thread = OneThread()

    def prepare(self, passes: list[int], batches: list[int]) -> list[int]:
        self._one_thread.called_by_consumer()
        tickets = []
        for pass_, batch in zip(passes, batches, strict=True):
            indices, error = self._draw(pass_, batch)
            ticket = next(self._tickets)
            self.requested[ticket] = pass_, batch, indices, error
            tickets.append(ticket)
        return tickets

    def _draw(self, pass_: int, batch: int) -> tuple[Any, BaseException | None]:
        """The indices of a batch, or what is to be raised when it is due."""
        try:
            if (pass_, batch) != self._next:
                for set_epoch in self._epoch_setters:
                    set_epoch(pass_)
                self._indices = iter(self._order.open(pass_, self._key, batch))
            self._next = pass_, batch + 1
            return next(self._indices), None
        except StopIteration:
            return None, PassEnded(batch)
        except Exception as error:  # a sampler may raise anything; it is raised at its step
            self._next = None
            return None, error

    def fetch(self, pass_: int, ticket: int) -> Any:
        """Runs on any thread."""
        pass_, batch, indices, error = self.requested.pop(ticket)
        if error is not None:
            raise error
        begin_batch(self._batch_key(_core.fold_in(self._key, pass_), batch))
        self._one_thread.enter()
        try:
            if not self._has_batches:
                samples = self._dataset[indices]
            elif self._getitems is not None:
                samples = self._getitems(indices)
            else:
                samples = [self._dataset[index] for index in indices]
            return self._collate(samples)
        except StopIteration as stop:
            raise RuntimeError(f"the dataset or collate function raised StopIteration for {indices!r}") from stop
        finally:
            self._one_thread.exit()
            end_batch()
