"""A DataLoader's worker processes, fed with indices when the schedule wants them and not before."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, get_worker_info

from mtf.data.workers.supervision import ignore_signals, iterate, supervise


class WorkerInit:
    """Prepares a worker process; picklable, for spawn and forkserver.

    Args:
        user_init: The loader's own ``worker_init_fn``; called last, so that it may set signals otherwise.
        unwrap: The worker's dataset is a ``SeededDataset``, and users are to see what is inside.
    """

    def __init__(self, user_init: Callable[[int], Any] | None, *, unwrap: bool) -> None:
        self._user_init = user_init
        self._unwrap = unwrap

    def __call__(self, worker_id: int) -> None:
        ignore_signals()
        info: Any = get_worker_info()
        if self._unwrap:
            # Users look at the dataset here and change it (its part of the files, a file handle).
            object.__setattr__(info, "dataset", info.dataset.dataset)
        if self._user_init is not None:
            self._user_init(worker_id)


class RenumberedWorkers:
    """Prepares worker processes whose numbers begin with ``first``, so that torch takes its batch first.

    Args:
        user_init: The loader's own ``worker_init_fn``.
        first: The number of the first worker.
        num_workers: How many there are.
        unwrap: As for ``WorkerInit``.
    """

    def __init__(
        self, user_init: Callable[[int], Any] | None, first: int, num_workers: int, *, unwrap: bool = False
    ) -> None:
        self._init = WorkerInit(user_init, unwrap=unwrap)
        self._first, self._num_workers = first, num_workers

    def __call__(self, worker_id: int) -> None:
        number = (worker_id + self._first) % self._num_workers
        object.__setattr__(get_worker_info(), "id", number)
        self._init(number)


class _Feed:
    """What is to be sent to the workers next. Unlike other iterators it continues after it was empty."""

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> Any:
        if not self.waiting:
            raise StopIteration
        return self.waiting.popleft()


class Workers(Protocol):
    """What a pass needs of worker processes."""

    @property
    def closed(self) -> bool: ...

    def send(self, owner: object, index: Any) -> None:
        """Queues one batch to be fetched for ``owner``."""

    def take(self, owner: object) -> Any:
        """The oldest batch sent for ``owner`` and not taken yet. Raises what its fetch raised."""

    def forget(self, owner: object) -> None:
        """Drops what was sent for ``owner`` and not taken."""

    def close(self) -> None:
        """Ends the processes."""


class WorkerPool:
    """Worker processes that fetch what is sent to them, in the order of sending.

    torch's own iterator starts and watches the workers, pins memory and raises their errors. It asks its sampler for an
    index whenever a batch was taken; here the sampler answers only with what was sent. Used from the main thread:
    workers are forked, and torch reports a killed worker there.

    Args:
        dataset: The dataset in the workers, a ``SeededDataset``.
        loader: The user's DataLoader, whose settings are used.
        base_seed: What the workers' generators start from.
    """

    def __init__(self, dataset: Any, loader: DataLoader[Any], base_seed: int) -> None:
        self.max_in_flight = loader.num_workers * int(loader.prefetch_factor or 2)
        self._feed = _Feed()
        self._owners: deque[object] = deque()  # of what was sent and not received, None: it was forgotten
        # Received before it was asked for: batches that were sent earlier than the one taken, for other owners.
        self._received: dict[object, deque[tuple[Any, Exception | None]]] = {}
        self._pid = os.getpid()
        # A private generator: torch draws the workers' seed from it, and from the process-wide one if there is none.
        generator = torch.Generator()
        generator.manual_seed(base_seed)
        order = (
            {"batch_sampler": self._feed}
            if loader.batch_sampler is not None
            else {"sampler": self._feed, "batch_size": None}
        )
        with warnings.catch_warnings():
            # Said once already, when the user made the loader.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            rebuilt: DataLoader[Any] = DataLoader(
                dataset,
                num_workers=loader.num_workers,
                collate_fn=dataset.collate,
                pin_memory=loader.pin_memory,
                timeout=loader.timeout,
                worker_init_fn=WorkerInit(loader.worker_init_fn, unwrap=True),
                multiprocessing_context=loader.multiprocessing_context,
                prefetch_factor=loader.prefetch_factor,
                persistent_workers=True,  # the end of a pass isn't known to an iterator that is fed one by one
                generator=generator,
                **order,
            )
            iterator: Any = iterate(rebuilt)
            self._iterator = iterator
        self._next: Callable[[], Any] | None = supervise(iterator)

    def send(self, owner: object, index: Any) -> None:
        """Queues one batch to be fetched for ``owner``; it goes to a worker as soon as ``max_in_flight`` allows."""
        self._feed.waiting.append(index)
        self._owners.append(owner)
        if len(self._owners) <= self.max_in_flight:
            self._iterator._try_put_index()

    def take(self, owner: object) -> Any:
        """The oldest batch sent for ``owner`` and not taken yet."""
        received = self._received.get(owner)
        if received:
            data, error = received.popleft()
            if error is not None:
                raise error
            return data
        while True:
            current = self._owners[0]
            num_received = self._iterator._rcvd_idx
            assert self._next is not None
            data, raised = None, None
            try:
                data = self._next()
            except BaseException as error:
                # Only a fetch that raised leaves the queue in step with the owners. After a dead worker, a batch that
                # cannot be unpickled and Ctrl-C torch would skip a batch, or wait for one that never comes.
                if self._iterator._rcvd_idx != num_received + 1 or not isinstance(error, Exception):
                    self.close()
                    raise
                self._owners.popleft()
                if current is owner:
                    raise
                raised = error
            else:
                self._owners.popleft()
                if current is owner:
                    return data
            if current is not None:
                self._received.setdefault(current, deque()).append((data, raised))

    def forget(self, owner: object) -> None:
        """Drops what was sent for ``owner`` and not taken."""
        self._received.pop(owner, None)
        for place, other in enumerate(self._owners):
            if other is owner:
                self._owners[place] = None

    def close(self) -> None:
        """Ends the workers. May be called several times, and does nothing in a forked child."""
        iterator, self._iterator, self._next = self._iterator, None, None
        if iterator is not None and os.getpid() == self._pid:
            iterator._shutdown_workers()
        self._owners.clear()
        self._received.clear()
        self._feed.waiting.clear()

    @property
    def closed(self) -> bool:
        return self._iterator is None or self._iterator._shutdown
