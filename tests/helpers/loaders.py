"""Datasets and loaders that several tests read. Module level, so that worker processes can unpickle them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info


class Rows(Dataset[torch.Tensor]):
    """Row i holds i and one number from each process-wide generator, like an augmentation would."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = [torch.rand(()).item(), float(np.random.rand()), random.random(), float(torch.randn(300).sum())]
        return torch.tensor([float(index), *noise], dtype=torch.float64)


class Shouting(Rows):
    """Raises at one row."""

    def __init__(self, num_rows: int, bad: int) -> None:
        super().__init__(num_rows)
        self.bad = bad

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.bad:
            raise KeyError(f"row {index} is missing")
        return super().__getitem__(index)


class Dying(Rows):
    """Ends its worker process at one row."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.num_rows // 2 and get_worker_info() is not None:
            os._exit(3)
        return super().__getitem__(index)


class Slow(Rows):
    """Never comes back."""

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(60)
        return super().__getitem__(index)


class Streamed(IterableDataset[torch.Tensor]):
    """Rows 0 ... n-1 in order, divided among workers; random numbers as in Rows."""

    def __init__(self, num_rows: int, length: int | None = None) -> None:
        self.rows = Rows(num_rows)
        self.length = length

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(start, len(self.rows), step):
            yield self.rows[index]


class Sized(Streamed):
    """Says how long it is, rightly or not."""

    def __len__(self) -> int:
        assert self.length is not None
        return self.length


class StatefulStream(IterableDataset[torch.Tensor]):
    """A stream that saves where it is: it shuffles each pass with a generator of its own."""

    def __init__(self, num_rows: int, state: bool = True) -> None:
        self.rows = Rows(num_rows)
        self.passes = 0
        self.index = 0
        self.resumed = False

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self.resumed:
            self.passes, self.index = self.passes + 1, 0
        self.resumed = False
        order = random.Random(self.passes).sample(range(len(self.rows)), len(self.rows))
        while self.index < len(order):
            row = self.rows[order[self.index]]
            self.index += 1
            yield row

    def state_dict(self) -> dict[str, Any]:
        return {"passes": self.passes, "index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes, self.index = state["passes"], state["index"]
        self.resumed = self.index > 0


class BucketBatches:
    """A batch sampler of the user's own: batches of neighbours, in a random order, of random sizes, drawn lazily."""

    def __init__(self, num_rows: int, own_generator: bool) -> None:
        self.num_rows = num_rows
        self.generator = torch.Generator().manual_seed(4) if own_generator else None
        self.numpy = np.random.default_rng(4) if own_generator else None
        self.python = random.Random(4) if own_generator else None

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.num_rows // 3, generator=self.generator).tolist()
        for bucket in order:
            count = int((self.numpy or np.random.default_rng(np.random.randint(2**31))).integers(1, 4))
            yield [bucket * 3 + (self.python or random).randrange(3) for _ in range(count)]

    def __len__(self) -> int:
        return self.num_rows // 3


def endless(num_rows: int) -> Iterator[int]:
    """Indices without end, drawn from the process-wide generator."""
    while True:
        yield int(torch.randint(num_rows, ()))


class EndlessIndices:
    """A sampler without a length."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __iter__(self) -> Iterator[int]:
        return endless(self.num_rows)


class StatefulIndices:
    """A sampler that continues where it was, also from one pass to the next, and can say where that is."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.place = 0

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.num_rows):
            self.place += 1
            yield self.place * 5 % self.num_rows

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def shuffled(num_rows: int = 17, batch_size: int = 3, num_workers: int = 0, **options: Any) -> DataLoader[Any]:
    """A shuffled DataLoader over Rows."""
    return DataLoader(Rows(num_rows), batch_size, shuffle=True, num_workers=num_workers, **options)
