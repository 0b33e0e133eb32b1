"""Samplers that count, that have a state, or whose range widens: each pass as torch's DataLoader gives it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Sampler, TensorDataset

import mtf
from mtf.testing import assert_resumes_exactly

ROWS = TensorDataset(torch.arange(24))


class Counting(Sampler[int]):
    """Shuffles by the number of times that it was iterated."""

    def __init__(self) -> None:
        self.n = 0

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(self.n)).tolist()
        self.n += 1
        return iter(order)

    def __len__(self) -> int:
        return 24


class CountsAtItsEnd(Counting):
    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(24, generator=torch.Generator().manual_seed(self.n)).tolist()
        self.n += 1


class Widening(Counting):
    """Each pass a wider range; the length follows."""

    def __init__(self, shuffled: bool) -> None:
        super().__init__()
        self.shuffled = shuffled

    def __iter__(self) -> Iterator[int]:
        self.n += 1
        width = min(24, 8 * self.n)
        return iter(sorted(range(width), reverse=self.shuffled))

    def __len__(self) -> int:
        return min(24, 8 * (self.n + 1))


class InAList(Counting):
    """Keeps what it gave in a list, which it changes in place."""

    def __init__(self) -> None:
        self.history: list[int] = []

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(24, generator=torch.Generator().manual_seed(len(self.history))).tolist()
        self.history.append(order[0])
        return iter(order)


class Cell:
    value = 0


class InAnObject(Counting):
    def __init__(self) -> None:
        self.cell, self.ticket = Cell(), itertools.count()

    def __iter__(self) -> Iterator[int]:
        seed = 10 * self.cell.value + next(self.ticket)
        self.cell.value += 1
        return iter(torch.randperm(24, generator=torch.Generator().manual_seed(seed)).tolist())


class Within(Sampler[list[int]]):
    """A batch sampler around one that counts."""

    def __init__(self) -> None:
        self.sampler = Counting()

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        return iter([order[start : start + 4] for start in range(0, 24, 4)])

    def __len__(self) -> int:
        return 6


class ItsOwnIterator(Sampler[list[int]]):
    """A batch sampler that starts again at every ``iter``, as lhotse's do."""

    def __init__(self) -> None:
        self.place, self.passes = 0, 0

    def __iter__(self) -> ItsOwnIterator:
        self.place, self.passes = 0, self.passes + 1
        return self

    def __next__(self) -> list[int]:
        if self.place == 6:
            raise StopIteration
        self.place += 1
        return [(4 * self.place + i + self.passes) % 24 for i in range(4)]

    def __len__(self) -> int:
        return 6


def loader(sampler: Any) -> DataLoader[Any]:
    if isinstance(sampler, (Within, ItsOwnIterator)):
        return DataLoader(ROWS, batch_sampler=sampler)
    return DataLoader(ROWS, 4, sampler=sampler)


KINDS: list[Callable[[], Any]] = [Counting, CountsAtItsEnd, InAList, InAnObject, Within, ItsOwnIterator]


@pytest.mark.parametrize("kind", KINDS)
def test_each_pass_is_that_of_torchs_own_loader(kind: Callable[[], Any]) -> None:
    usual = loader(kind())
    expected = [[batch.tolist() for (batch,) in usual] for _ in range(4)]
    assert expected[0] != expected[1]
    with mtf.MultiLoader({"a": loader(kind())}) as mixture:
        assert [[batch.data[0].tolist() for batch in mixture] for _ in range(4)] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_it_resumes_exactly_in_every_pass(kind: Callable[[], Any]) -> None:
    assert_resumes_exactly(lambda: loader(kind()), passes=4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_sampler_is_left_as_it_was(kind: Callable[[], Any]) -> None:
    sampler = kind()
    plain = (int, list, itertools.count)
    before = copy.deepcopy({name: value for name, value in vars(sampler).items() if isinstance(value, plain)})
    with mtf.MultiLoader({"a": loader(sampler)}) as mixture:
        for _ in range(3):
            list(mixture)
    for name, value in before.items():
        assert repr(vars(sampler)[name]) == repr(value)


def test_a_range_that_widens_is_followed_and_its_new_length_is_reported() -> None:
    config = mtf.MultiDataLoaderConfig(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=6)
    found: dict[int, list[int]] = {}
    with (
        mtf.MultiLoader(DataLoader(ROWS, 4, sampler=Widening(shuffled=True)), config) as mixture,
        pytest.warns(UserWarning, match="pass 1 has 16 draws of its sampler, where the first one opened had 8"),
    ):
        batches = list(mixture)
    for batch in batches:
        found.setdefault(batch.pass_, []).extend(batch.data[0].tolist())
    assert max(found[0]) < 8 <= max(found[1]) < 16 <= max(found[2])


class Weighted(Sampler[int]):
    """Has its weights in its state; somebody changes them between passes."""

    def __init__(self) -> None:
        self.weights = torch.ones(24)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.multinomial(self.weights, 24, replacement=True).tolist())

    def __len__(self) -> int:
        return 24

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"].clone()


class Continuing(Weighted):
    """Its place is in its state, and its order continues from pass to pass."""

    def __init__(self) -> None:
        super().__init__()
        self.rng, self.turns = random.Random(3), 0

    def __iter__(self) -> Iterator[int]:
        self.turns += 1
        return iter([(self.turns * 5 + place * int(self.weights[0])) % 24 for place in range(24)])

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "turns": self.turns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.turns = state["turns"]


@pytest.mark.parametrize("kind", [Weighted, Continuing])
@pytest.mark.parametrize("cut", range(1, 18))
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_changed_between_passes_is_resumed(kind: type[Weighted], cut: int, num_workers: int) -> None:
    if num_workers and cut not in (6, 8):
        pytest.skip("a few cuts are enough with workers")

    def run(sampler: Weighted, state: dict[str, Any] | None, begin: int, end: int) -> tuple[list[Any], dict[str, Any]]:
        given = DataLoader(ROWS, 4, sampler=sampler, num_workers=num_workers)
        found: list[Any] = []
        with mtf.MultiLoader(given) as mixture:
            if state is not None:
                mixture.load_state_dict(state)
            while begin + len(found) < end:
                for batch in mixture:
                    found.append(batch.data[0].tolist())
                    mixture.commit()
                    if batch.step == 5:  # as a hook at the end of an epoch
                        sampler.weights = sampler.weights * torch.linspace(1, 3, 24)
                    if begin + len(found) == end:
                        break
            return found, copy.deepcopy(mixture.state_dict())

    whole, _ = run(kind(), None, 0, 18)
    first, state = run(kind(), None, 0, cut)
    rest, _ = run(kind(), state, cut, 18)
    assert first + rest == whole


def test_a_sampler_without_end_is_opened_for_later_passes() -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield int(torch.randint(24, ()))

    config = mtf.MultiDataLoaderConfig(
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=3, continue_across_epochs=False
    )
    with mtf.MultiLoader(DataLoader(ROWS, 4, sampler=Endless()), config) as mixture:
        assert [batch.pass_ for _ in range(2) for batch in mixture] == [0, 0, 0, 1, 1, 1]


def test_a_sampler_whose_count_is_elsewhere_is_named() -> None:
    class Elsewhere(Counting):
        count = 0

        def __iter__(self) -> Iterator[int]:
            Elsewhere.count += 1
            return iter(torch.randperm(24, generator=torch.Generator().manual_seed(Elsewhere.count)).tolist())

    report = mtf.check_source(DataLoader(ROWS, 4, sampler=Elsewhere()), workers=0)
    assert not report.ok
    assert any("the sampler Elsewhere" in suspect for suspect in report.suspects)


class Slotted(Sampler[int]):
    """Keeps its count in a slot, and its order in a bit generator."""

    __slots__ = ("__count", "bits")

    def __init__(self) -> None:
        self.__count, self.bits = 0, np.random.PCG64(5)

    def __iter__(self) -> Iterator[int]:
        self.__count += 1
        order = np.random.Generator(self.bits).permutation(24).tolist()
        return iter([(index + self.__count) % 24 for index in order])

    def __len__(self) -> int:
        return 24


@dataclasses.dataclass(slots=True)
class Record:
    count: int = 0


class WithRecord(Counting):
    """Keeps its count in an object with slots."""

    def __init__(self) -> None:
        self.record = Record()

    def __iter__(self) -> Iterator[int]:
        self.record.count += 1
        return iter(torch.randperm(24, generator=torch.Generator().manual_seed(self.record.count)).tolist())


@pytest.mark.parametrize("kind", [Slotted, WithRecord])
def test_what_a_sampler_keeps_in_slots_is_carried_from_pass_to_pass(kind: Callable[[], Any]) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(ROWS, 4, sampler=kind())

    sampler = kind()
    with mtf.MultiLoader(DataLoader(ROWS, 4, sampler=sampler)) as mixture:
        orders = [[tuple(batch.data[0].tolist()) for batch in mixture] for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    if kind is WithRecord:
        expected = [list(DataLoader(ROWS, 4, sampler=sampler)) for _ in range(3)]  # the user's object is as it was
        assert orders == [[tuple(batch[0].tolist()) for batch in one] for one in expected]
    assert_resumes_exactly(make, passes=3, every=2)


def test_a_sampler_that_depends_on_something_outside_is_named_in_the_run() -> None:
    calls = itertools.count()

    class Elsewhere(Counting):
        def __iter__(self) -> Iterator[int]:
            return iter(torch.randperm(24, generator=torch.Generator().manual_seed(next(calls))).tolist())

    with (
        mtf.MultiLoader(DataLoader(ROWS, 4, sampler=Elsewhere())) as mixture,
        pytest.warns(UserWarning, match="Elsewhere gives other indices when pass 0 is drawn again.*a resume can't be"),
    ):
        assert [len(list(mixture)) for _ in range(3)] == [6] * 3


class Short(Sampler[Any]):
    """Gives more than its length says."""

    def __init__(self, length: int, draws: list[Any]) -> None:
        self.length, self.draws = length, draws

    def __iter__(self) -> Iterator[Any]:
        return iter(self.draws)

    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize(
    ("options", "num_batches", "is_named"),
    [
        ({"sampler": Short(16, list(range(24))), "batch_size": 4}, 4, True),
        ({"sampler": Short(16, list(range(17))), "batch_size": 4}, 4, True),
        ({"sampler": Short(16, list(range(17))), "batch_size": 4, "drop_last": True}, 4, False),
        ({"batch_sampler": Short(4, [[n] for n in range(6)])}, 4, True),
        ({"batch_sampler": Short(6, [[n] for n in range(6)])}, 6, False),
        ({"sampler": Short(6, list(range(7))), "batch_size": None}, 6, True),
    ],
)
def test_a_sampler_that_gives_more_than_it_says_is_named_once(
    options: dict[str, Any], num_batches: int, is_named: bool
) -> None:
    with mtf.MultiLoader(DataLoader(ROWS, **options)) as mixture, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [len(list(mixture)) for _ in range(3)] == [num_batches] * 3
    assert len(said) == is_named
    assert all("but it gives more" in str(one.message) for one in said)


def test_a_sampler_without_a_length_can_be_checked() -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return itertools.cycle(range(24))

    report = mtf.check_source(lambda: DataLoader(ROWS, 4, sampler=Endless()), workers=0)
    assert report.ok
    assert "BatchSampler: a resume draws the pass's indices again" in report.notes[0]
