"""An iterable dataset with a state, read by worker processes: each batch comes with the state of its worker.

A DataLoader's workers read in turns. With the state of every worker, and which of them is next, a new set of workers
continues exactly there: it begins with the worker whose turn it is, under the number that it had. The protocol is that
of torchdata: ``state_dict`` and ``load_state_dict`` of the dataset, of the iterator that it gives, or of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mtf._core import fold_in
from mtf.data.protocols import copy_state, has_state_methods, known_length
from mtf.data.rng.generators import seed_generators
from mtf.data.workers.pool import RenumberedWorkers
from mtf.data.workers.supervision import iterate, supervise
from mtf.errors import StateMismatch


class WorkerStateLoader:
    """A DataLoader over an iterable dataset with a state and with workers, as a loader with a state.

    Every pass starts new workers, so that each sees the dataset as it is in the training process, its epoch included.
    What is random in a worker starts anew with each of its batches, from the process-wide generator at ``iter``.

    Args:
        loader: The user's. It isn't iterated itself.

    Attributes:
        dataset: The user's.
        num_workers: Its worker processes.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.dataset = loader.dataset
        self.num_workers = loader.num_workers
        self._states: list[dict[str, Any] | None] = [None] * self.num_workers  # after the last batch of each
        self._next = 0  # the worker that gives the next batch
        self._is_loaded = False

    def __len__(self) -> int:
        return known_length(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if not self._is_loaded:
            self._states, self._next = [None] * self.num_workers, 0
        self._is_loaded = False
        loader, key = self.loader, int(torch.randint(2**62, ()).item())
        part = _WorkerPart(loader.dataset, loader.collate_fn, list(self._states), key)
        generator = torch.Generator()
        generator.manual_seed(key)
        rebuilt: DataLoader[Any] = DataLoader(
            part,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            num_workers=self.num_workers,
            collate_fn=part.collate,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=RenumberedWorkers(loader.worker_init_fn, self._next, self.num_workers, unwrap=True),
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
            generator=generator,
        )
        return _Batches(self, supervise(iterate(rebuilt)))

    def state_dict(self) -> dict[str, Any]:
        """The state of each worker after its last batch, and the number of the worker that is next."""
        return {"workers": list(self._states), "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next ``iter`` continues from ``state``, which may also be one of torchdata's StatefulDataLoader.

        Raises:
            StateMismatch: It is of another number of workers.
        """
        if "_snapshot" in state:
            state = _from_torchdata(state)
        workers = list(state["workers"])
        if len(workers) != self.num_workers:
            raise StateMismatch(
                f"the state is of {len(workers)} worker processes, and this loader has {self.num_workers}: what each "
                f"reads depends on how many there are, so use num_workers={len(workers)}"
            )
        self._states, self._next, self._is_loaded = workers, state["next"], True

    def took(self, worker: int, state: dict[str, Any]) -> None:
        """A batch of ``worker`` was handed out, after which it has ``state``."""
        self._states = [*self._states[:worker], state, *self._states[worker + 1 :]]  # states given out stay as they are
        self._next = (worker + 1) % self.num_workers


class _Batches(Iterator[Any]):
    """One pass of the rebuilt loader."""

    def __init__(self, loader: WorkerStateLoader, take: Callable[[], Any]) -> None:
        self._loader = loader
        self._take = take

    def __next__(self) -> Any:
        data, worker, state = self._take()
        self._loader.took(worker, state)
        return data


def _from_torchdata(state: Mapping[str, Any]) -> dict[str, Any]:
    snapshot = state["_snapshot"]
    if state["_steps_since_snapshot"]:
        raise StateMismatch(
            "this state of a StatefulDataLoader was taken between two snapshots (snapshot_every_n_steps): it can only "
            "be continued where snapshot_every_n_steps=1"
        )
    by_name = snapshot["_worker_snapshots"]
    workers = []
    for number in range(len(by_name)):
        one = by_name[f"worker_{number}"]
        fetcher = one["fetcher_state"] or {}
        workers.append(
            {
                "dataset": one["dataset_state"],
                "iterator": fetcher.get("dataset_iter_state"),
                "ended": bool(fetcher.get("fetcher_ended")),
                "batches": 0,
            }
        )
    return {"workers": workers, "next": (snapshot["_last_yielded_worker_id"] + 1) % len(workers)}


class _WorkerPart(IterableDataset[Any]):
    """What a worker reads: the user's dataset from the worker's state on.

    Args:
        dataset: The user's.
        collate: The user's.
        states: By worker, its state; None at the beginning.
        key: From which each batch's generators are seeded.
    """

    def __init__(self, dataset: Any, collate: Any, states: list[dict[str, Any] | None], key: int) -> None:
        self.dataset = dataset
        self._collate = collate
        self._states = states
        self._key = key
        self._iterator: Any = None
        self._ended = False
        self._number = 0  # of the worker's next batch
        self._is_seeded = False

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        self._worker = info.id
        state = self._states[self._worker] or {}
        self._number, self._ended = state.get("batches", 0), state.get("ended", False)
        if not self._ended:
            self._seed()
            if state.get("dataset") is not None:
                self.dataset.load_state_dict(state["dataset"])
            self._iterator = iter(self.dataset)
            if state.get("iterator") is not None:
                # torchdata lets it return the iterator to use.
                self._iterator = self._iterator.load_state_dict(state["iterator"]) or self._iterator
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        if not self._is_seeded:
            self._seed()
        try:
            return next(self._iterator)
        except StopIteration:
            self._ended = True
            raise

    def collate(self, samples: Any) -> tuple[Any, int, dict[str, Any]]:
        """The batch, the worker's number, and its state after the batch."""
        data = self._collate(samples)
        self._number += 1
        self._is_seeded = False
        dataset, iterator = self.dataset, self._iterator
        state = {
            "dataset": copy_state(dataset.state_dict()) if has_state_methods(dataset) else None,
            "iterator": copy_state(iterator.state_dict())
            if iterator is not dataset and has_state_methods(iterator)
            else None,
            "ended": self._ended,
            "batches": self._number,
        }
        return data, self._worker, state

    def _seed(self) -> None:
        seed_generators(fold_in(fold_in(self._key, self._worker), self._number))
        self._is_seeded = True
