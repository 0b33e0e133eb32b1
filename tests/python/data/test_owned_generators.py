"""Generators that datasets, transforms and collate functions keep: the same numbers after a resume and in workers."""

from __future__ import annotations

import functools
import random
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

import mtf
from mtf.data.rng.owned_generators import OwnedGenerators
from mtf.testing import assert_resumes_exactly

_GLOBAL = np.random.default_rng(5)
_OTHER = np.random.default_rng(9)


class Slotted:
    __slots__ = ("rng",)

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def get(self) -> Any:
        return self.rng


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


class OfClass:
    rng = np.random.default_rng(8)

    @staticmethod
    def draw() -> float:
        return float(OfClass.rng.random())


class Compose:
    """As a module-level ``transform = Compose(...)`` that a dataset's method uses."""

    def __init__(self) -> None:
        self.steps = [Slotted(random.Random(0))]

    def __call__(self) -> Any:
        return self.steps[0].rng


_TRANSFORM = Compose()


def through_another_function(keep: Any) -> Any:
    return _global_transform()


def _global_transform() -> Any:
    return _TRANSFORM()


_METHOD = Slotted(np.random.default_rng(6)).get
_NAMESPACE = types.SimpleNamespace(rng=np.random.default_rng(7))


@functools.cache
def cached_rng() -> Any:
    return _GLOBAL


class OfProperty:
    @property
    def rng(self) -> Any:
        return _GLOBAL

    @functools.cached_property
    def kept(self) -> Any:
        return _OTHER


def of_class(keep: Any) -> Any:
    return OfClass.rng


class _Bits:
    """Draws from a bit generator."""

    def __init__(self, bits: Any) -> None:
        self.bits = bits

    def random(self) -> float:
        return float(self.bits.random_raw() % 2**50)


def suspended(rng: Any) -> Iterator[float]:
    while True:
        yield rng.random()


class _Next:
    def __init__(self, numbers: Iterator[float]) -> None:
        self.numbers = numbers

    def random(self) -> float:
        return next(self.numbers)


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
    "in a global object that a called function names": lambda: (None, through_another_function),
    "of a class that a function names": lambda: (None, of_class),
    "in a global bound method": lambda: (None, lambda keep: _METHOD()),
    "in a global namespace": lambda: (None, lambda keep: _NAMESPACE.rng),
    "of a property": lambda: (OfProperty(), lambda keep: keep.rng),
    "of a cached property": lambda: (OfProperty(), lambda keep: keep.kept),
    "of a cached function": lambda: (None, lambda keep: cached_rng()),
    "a bit generator": lambda: (_Bits(np.random.PCG64(3)), itself),
    "a variable of a generator function": lambda: (_Next(suspended(np.random.default_rng(3))), itself),
    "the last of many": lambda: ([random.Random(n) for n in range(100)], lambda keep: keep[-1]),
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


class MadeLater(Dataset[Any]):
    """Makes its generator when it first meets a sample that needs one."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        if index < 20:
            return torch.tensor([float(index), 0.0])
        if not hasattr(self, "rng"):
            self.rng = np.random.default_rng(3)
        return torch.tensor([float(index), self.rng.random()])


def test_a_generator_made_in_a_later_batch_is_seeded_from_that_batch_on() -> None:
    def make(num_workers: int) -> DataLoader[Any]:
        return DataLoader(MadeLater(), 3, num_workers=num_workers)  # only the seventh batch of a pass needs one

    assert_resumes_exactly(make, workers=(0, 2), every=3)


def test_a_dataset_that_gets_a_new_attribute_with_each_batch_is_not_looked_through_for_ever() -> None:
    class Growing(Dataset[Any]):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> int:
            setattr(self, f"seen_{index}", index)
            return index

    found, data = [], Growing()
    owned = OwnedGenerators(data)
    for index in range(100):
        data[index]
        found.append(owned.look_if_changed())
    assert not any(found)
    assert owned._looks_left == 0


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


class _Settings:
    """As the settings of some libraries are: any attribute that isn't one of them is an error of their own."""

    def __getattr__(self, name: str) -> object:
        raise ValueError(f"unrecognized option: {name}")


def test_an_object_that_answers_with_an_error_is_passed_over() -> None:
    class Transform:
        def __init__(self) -> None:
            self.settings = _Settings()
            self.rng = random.Random(0)

    assert len(OwnedGenerators(Transform(), [_Settings()])) == 1


def test_a_users_module_named_like_one_of_the_standard_library_is_looked_through(tmp_path: Path) -> None:
    lines = ["import sys", "sys.path.insert(0, '.')", "import colorsys", "from mtf.data.rng.owned_generators import *"]
    (tmp_path / "colorsys.py").write_text(
        "import random\nrng = random.Random(0)\ndef draw():\n    return rng.random()\n"
    )
    script = "; ".join([*lines, "print(len(OwnedGenerators(colorsys.draw)), len(OwnedGenerators(sys.settrace)))"])
    found = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["1", "0"], found.stderr
