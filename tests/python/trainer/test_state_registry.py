"""A state is loaded by all components or by none, on one rank and on several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch

import mtf
from mtf.distributed.ranks import SingleRank
from mtf.trainer.state.registry import StateRegistry


class Counter:
    """A component that refuses negative numbers in ``check``, and 13 while it loads."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.num_loads = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def check(self, state: dict[str, int]) -> list[str]:
        return [f"value is {state['value']}, which is negative"] if state["value"] < 0 else []

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_loads += 1
        self.value = state["value"]
        if self.value == 13:
            raise KeyError("thirteen")


class Plain:
    """A component without ``check``."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, state: Any) -> None:
        self.value = state


class PerRank(Counter):
    def for_rank(self, parts: Sequence[Any], rank: int, world_size: int) -> Any:
        if any(part["value"] == 99 for part in parts):
            raise mtf.StateMismatch(f"saved by {len(parts)} ranks, which can't be divided")
        return {"value": sum(part["value"] for part in parts) if rank == 0 else 0}


def registry(**components: Any) -> StateRegistry:
    made = StateRegistry(SingleRank())
    for name, component in components.items():
        made.register(name, component)
    return made


def test_it_collects_and_loads_by_name() -> None:
    a, b = Counter(1), Plain(torch.ones(2))
    made = registry(a=a, b=b)
    assert made.names == ["a", "b"]
    state = made.collect()
    assert state["b"] is b.value  # live, not a copy
    assert state == {"a": {"value": 1}, "b": b.value, "other_ranks": []}
    other_a, other_b = Counter(5), Plain(None)
    registry(b=other_b, a=other_a).load(state)
    assert (other_a.value, other_b.value) == (1, b.value)


def test_every_difference_is_named_and_nothing_is_loaded() -> None:
    a, b, c = Counter(1), Counter(2), Counter(3)
    made = registry(first=a, second=b, third=c)
    state = {"first": {"value": 7}, "second": {"value": -1}, "third": {"wrong": 0}}
    lines = ["value is -1, which is negative", "third: it is malformed: KeyError: 'value'"]
    assert made.check(state) == lines
    with pytest.raises(mtf.StateMismatch) as caught:
        made.load(state)
    assert all(line in str(caught.value) for line in lines)
    assert (a.value, b.value, c.value) == (1, 2, 3)
    assert a.num_loads == b.num_loads == c.num_loads == 0


def test_a_missing_part_is_named_unless_it_is_optional() -> None:
    made = registry(model=Counter(1))
    made.register("averaged", Counter(2), is_optional=True)
    with pytest.raises(mtf.StateMismatch, match=r"no 'model'; did you mean 'modle'"):
        made.load({"modle": {"value": 3}})
    made.load({"model": {"value": 3}})
    assert made.collect()["averaged"] == {"value": 2}
    assert made.collect()["model"] == {"value": 3}
    with pytest.raises(mtf.StateMismatch, match="a state is a mapping, this is list"):
        made.load([1])  # type: ignore[arg-type]


def test_one_that_fails_while_it_loads_puts_the_others_back() -> None:
    made = StateRegistry(SingleRank())
    a, b, checked = Counter(1), Counter(2), Counter(3)
    made.register("checked", checked, loading="checked")
    made.register("a", a)
    made.register("b", b)
    with pytest.raises(mtf.StateMismatch, match="malformed, nothing of it is used: KeyError: 'thirteen'"):
        made.load({"checked": {"value": 8}, "a": {"value": 8}, "b": {"value": 13}})
    assert (a.value, b.value, checked.value) == (1, 2, 3)
    assert checked.num_loads == 0


@pytest.mark.parametrize(
    ("name", "component", "words"),
    [
        ("", Counter(), "isn't empty"),
        ("taken", Counter(), "has a component 'taken' already"),
        ("other_ranks", Counter(), "already"),
        ("x", object(), "object has no state_dict"),
    ],
)
def test_what_cannot_be_registered(name: str, component: Any, words: str) -> None:
    made = registry(taken=Counter())
    with pytest.raises(mtf.ConfigError, match=words):
        made.register(name, component)
    assert made.names == ["taken"]


class Ranks(SingleRank):
    """Ranks as threads that gather over a barrier."""

    def __init__(self, rank: int, slots: list[Any], barrier: Barrier) -> None:
        self.rank, self.world_size = rank, len(slots)
        self._slots, self._barrier = slots, barrier

    def gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait(10)
        found = list(self._slots)
        self._barrier.wait(10)
        return found


def on_ranks(number: int, work: Callable[[Ranks], Any]) -> list[Any]:
    slots, barrier = [None] * number, Barrier(number)
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda rank: work(Ranks(rank, slots, barrier)), range(number)))


def test_each_rank_gets_its_own_part_back() -> None:
    def work(ranks: Ranks, state: Any = None) -> Any:
        made, own = StateRegistry(ranks), PerRank(10 + ranks.rank)
        made.register("own", own, per_rank=True)
        made.register("shared", Counter(5))
        made.register("both", PerRank(20 + ranks.rank), per_rank=("value",))
        if state is None:
            return made.collect()
        made.load(state)
        return own.value

    states = on_ranks(3, work)
    assert states[0] == states[1] == states[2]
    assert states[0]["other_ranks"] == [{"own": {"value": v}, "both": {"value": v + 10}} for v in (11, 12)]
    assert on_ranks(3, lambda ranks: work(ranks, states[0])) == [10, 11, 12]
    assert on_ranks(2, lambda ranks: work(ranks, states[0])) == [33, 0]  # divided by the component
    states[0]["own"]["value"] = 99
    with pytest.raises(mtf.StateMismatch, match="saved by 3 ranks"):
        on_ranks(2, lambda ranks: work(ranks, states[0]))


@pytest.mark.parametrize("bad", [-1, 13])
def test_ranks_load_together_or_not_at_all(bad: int) -> None:
    """One rank refuses its part, in ``check`` or while it loads: all ranks raise, and keep what they had."""

    def work(ranks: Ranks) -> Any:
        made, shared, own = StateRegistry(ranks), Counter(1), PerRank(2)
        made.register("shared", shared)
        made.register("own", own, per_rank=True)
        state = {"shared": {"value": 3}, "own": {"value": 3}, "other_ranks": [{"own": {"value": bad}}]}
        try:
            made.load(state)
        except mtf.StateMismatch as error:
            return str(error), shared.value, own.value
        return None

    found = on_ranks(2, work)
    assert all(entry is not None and entry[1:] == (1, 2) for entry in found)
    words = "rank 1: value is -1" if bad < 0 else "KeyError: 'thirteen'"
    assert all(words in entry[0] for entry in found)
