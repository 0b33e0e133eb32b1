"""Generators that datasets, transforms and collate functions keep: the same numbers after a resume and in workers."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

import mtf
from mtf.data.rng.owned_generators import OwnedGenerators
from mtf.testing import assert_resumes_exactly

_GLOBAL = np.random.default_rng(5)


class Slotted:
    __slots__ = ("rng",)

    def __init__(self, rng: Any) -> None:
        self.rng = rng


def draw(rng: Any) -> float:
    if isinstance(rng, torch.Generator):
        return torch.rand((), generator=rng).item()
    return float(rng.random())


class Augmented(Dataset[Any]):
    """Keeps its generator somewhere."""

    def __init__(self, keep: Any, find: Callable[[Any], Any]) -> None:
        self.keep, self.find = keep, find

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index), draw(self.find(self.keep))], dtype=torch.float64)


class LazyCollate:
    """Makes its generator at its first call, as transformers' collators with a seed do."""

    def __init__(self) -> None:
        self.rng: Any = None

    def __call__(self, samples: list[Any]) -> Any:
        if self.rng is None:
            self.rng = np.random.default_rng(7)
        return torch.stack(samples) + self.rng.random()


def itself(keep: Any) -> Any:
    return keep


def inside(keep: Any) -> Any:
    return keep["steps"][1].rng


def of_global(keep: Any) -> Any:
    return _GLOBAL


def of_partial(keep: Any) -> Any:
    return keep.keywords["rng"]


KEPT: dict[str, Callable[[], tuple[Any, Callable[[Any], Any]]]] = {
    "numpy Generator": lambda: (np.random.default_rng(0), itself),
    "numpy RandomState": lambda: (np.random.RandomState(0), itself),
    "random.Random": lambda: (random.Random(0), itself),
    "torch.Generator": lambda: (torch.Generator().manual_seed(0), itself),
    "nested, in slots": lambda: ({"steps": [1, Slotted(np.random.default_rng(0))]}, inside),
    "in a partial": lambda: (functools.partial(draw, rng=random.Random(0)), of_partial),
    "a global": lambda: (None, of_global),
}


@pytest.mark.parametrize("kind", KEPT)
def test_augmentation_is_the_same_after_a_resume_and_in_workers(kind: str) -> None:
    def make(num_workers: int) -> DataLoader[Any]:
        data: Dataset[Any] = Subset(Augmented(*KEPT[kind]()), range(12))
        return DataLoader(data, 3, shuffle=True, num_workers=num_workers)

    assert_resumes_exactly(make, workers=(0, 2), every=4)


def test_a_generator_made_at_the_first_call_is_seeded_from_the_first_batch_on() -> None:
    def make(num_workers: int) -> DataLoader[Any]:
        data = Augmented(random.Random(0), itself)
        return DataLoader(data, 3, shuffle=True, num_workers=num_workers, collate_fn=LazyCollate())

    assert_resumes_exactly(make, workers=(0, 2), every=4)


def test_in_the_training_process_the_users_generator_stays_where_it_was() -> None:
    shared = np.random.default_rng(0)
    expected = np.random.default_rng(0).random(3).tolist()
    drawn = []
    with mtf.MultiLoader(DataLoader(Augmented(shared, itself), 6)) as mixture:
        for _, _ in zip(mixture, range(2), strict=True):
            drawn.append(shared.random())
    assert [*drawn, shared.random()] == expected


def test_paths_say_where_a_generator_is() -> None:
    data = Augmented({"steps": [1, Slotted(np.random.default_rng(0))]}, inside)
    assert OwnedGenerators(data).paths == ["0.keep['steps'][1].rng"]
    assert len(OwnedGenerators(data, random.SystemRandom())) == 1


class Epochs(Dataset[Any]):
    """Gives the epoch that it was told."""

    epoch = -1

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return self.epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
def test_set_epoch_of_a_map_style_dataset_is_called_wherever_it_lives(options: dict[str, Any]) -> None:
    with mtf.MultiLoader(DataLoader(Subset(Epochs(), range(4)), 2, **options)) as mixture:
        assert [batch.data.tolist() for _ in range(3) for batch in mixture] == [[p, p] for p in (0, 0, 1, 1, 2, 2)]
