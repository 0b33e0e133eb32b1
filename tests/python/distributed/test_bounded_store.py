"""A store that doesn't answer is an error within the bound, and one that answers late is used again."""

from __future__ import annotations

import threading
import time

import pytest

from mtf.distributed.bounded_store import BoundedStore, StoreLost, run_bounded


class Stuck:
    """A store whose machine is gone until ``back`` is set."""

    def __init__(self) -> None:
        self.back = threading.Event()
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.back.wait()
        self.values[key] = value

    def get(self, key: str) -> bytes:
        self.back.wait()
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        self.back.wait()
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        raise RuntimeError("Broken pipe\nwith a trace")

    def delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None


def test_a_store_that_never_answers_is_lost_within_the_bound_and_found_again() -> None:
    inner = Stuck()
    store = BoundedStore(inner, 0.1)
    before = time.monotonic()
    for _ in range(3):
        with pytest.raises(StoreLost, match=r"didn't answer within 0\.1 s"):
            store.check(["a"])
    assert time.monotonic() - before < 5
    inner.back.set()
    patient = store.within(10).below("run")
    patient.set("a", "1")
    assert inner.values == {"run/a": "1"}  # calls that were given up before they began are left out
    assert patient.get("a") == b"1"
    assert patient.delete_key("a")


def test_an_error_of_the_store_is_one_line() -> None:
    with pytest.raises(StoreLost) as caught:
        BoundedStore(Stuck(), 1).add("a", 1)
    assert str(caught.value) == "Broken pipe"


def test_a_call_on_a_thread_of_its_own() -> None:
    assert run_bounded(lambda: 3, 5) == 3
    with pytest.raises(ValueError, match="no"):
        run_bounded(lambda: int("no"), 5)
    never = threading.Event()
    with pytest.raises(StoreLost):
        run_bounded(never.wait, 0.05)
    never.set()
