"""Loaders of every kind over rows of which one is bad while a file exists: deleting it mends them, also in workers.

Module level, so that worker processes can unpickle them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import mtf

NUM_ROWS = 14
BATCH_SIZE = 3
BAD = 7

FAULTS = ("raises", "none", "shape", "hangs", "killed")


class Fault:
    """What happens at the bad row while ``switch`` exists.

    Args:
        kind: one of ``FAULTS``.
        switch: the file.
    """

    def __init__(self, kind: str, switch: Path) -> None:
        self.kind = kind
        self.switch = switch

    def at(self, row: int) -> None:
        """Raises, hangs or kills this worker if it is to."""
        if row != BAD or not self.switch.exists():
            return
        if self.kind == "raises":
            raise KeyError(f"row {row} is missing")
        while self.kind == "hangs" and self.switch.exists():
            time.sleep(0.05)
        if self.kind == "killed" and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    def collate(self, rows: list[Tensor]) -> Tensor | None:
        """A batch ``[b, 3]``, or what comes in its place."""
        batch = torch.stack(rows)
        if self.switch.exists() and bool((batch[:, 0] == BAD).any()):
            if self.kind == "none":
                return None
            if self.kind == "shape":
                return batch[:, :2]
        return batch


def row(index: int) -> Tensor:
    """Row ``index``: its number and two features."""
    return torch.tensor([index, index % 5 - 2.0, (index * index) % 7 - 3.0])


class Rows(Dataset[Tensor]):
    """A map-style dataset."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return NUM_ROWS

    def __getitem__(self, index: int) -> Tensor:
        self.fault.at(index)
        return row(index)


class Stream(IterableDataset[Tensor]):
    """An iterable dataset; with one worker at most."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(NUM_ROWS):
            self.fault.at(index)
            yield row(index)


class Batches:
    """An iterable of batches that is no DataLoader."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return -(-NUM_ROWS // BATCH_SIZE)

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, NUM_ROWS, BATCH_SIZE):
            yield self.batch(range(first, min(first + BATCH_SIZE, NUM_ROWS)))

    def batch(self, indices: range) -> Any:
        """The batch of these rows."""
        for index in indices:
            self.fault.at(index)
        return self.fault.collate([row(index) for index in indices])


class Resumable(Batches):
    """The same with a state: the next batch, of the pass that is under way."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < len(self):
            first = self.place * BATCH_SIZE
            self.place += 1  # as loaders do that count before they read
            yield self.batch(range(first, min(first + BATCH_SIZE, NUM_ROWS)))
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def _stateful(fault: Fault, num_workers: int) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Rows(fault), BATCH_SIZE, collate_fn=fault.collate, num_workers=num_workers)


def _torch(dataset: Any, fault: Fault, num_workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, BATCH_SIZE, collate_fn=fault.collate, num_workers=num_workers, **options)


KINDS: dict[str, Callable[[Fault], Any]] = {
    "in the process": lambda fault: _torch(Rows(fault), fault, 0, shuffle=True),
    "workers": lambda fault: _torch(Rows(fault), fault, 2, shuffle=True),
    "persistent workers": lambda fault: _torch(Rows(fault), fault, 2, shuffle=True, persistent_workers=True),
    "shared workers": lambda fault: _torch(Rows(fault), fault, 2, shuffle=True),
    "threads": lambda fault: mtf.ThreadLoader(
        Rows(fault), BATCH_SIZE, shuffle=True, collate_fn=fault.collate, num_threads=2
    ),
    "iterable": lambda fault: _torch(Stream(fault), fault, 0),
    "iterable in a worker": lambda fault: _torch(Stream(fault), fault, 1),
    "stateful": lambda fault: _stateful(fault, 0),
    "stateful in a worker": lambda fault: _stateful(fault, 1),
    "own iterable": Batches,
    "own with a state": Resumable,
}
HAS_WORKERS = tuple(name for name in KINDS if "worker" in name)
