"""The ranks' key-value store, with a bound on every call: a store whose machine is gone never answers by itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Store(Protocol):
    """What is used of ``torch.distributed.Store``. Any thread may call it."""

    def set(self, key: str, value: str) -> None:
        """Writes a value."""

    def get(self, key: str) -> bytes:
        """Reads a value that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""

    def add(self, key: str, amount: int) -> int:
        """Adds to a number, which begins at 0; returns the sum."""

    def delete_key(self, key: str) -> bool:
        """Removes a value; returns whether it was there."""


class StoreLost(RuntimeError):
    """The store of the process group didn't answer in time, or its connection broke."""


class BoundedStore:
    """A store whose calls raise :class:`StoreLost` where it gives no answer in time.

    ``torch.distributed.TCPStore.check`` has no timeout: where the machine that holds the store lost its power, it
    waits until the kernel gives the connection up, which takes a quarter of an hour. So one thread makes the calls, in
    order, and callers wait for it as long as they want to.

    Args:
        store: what is called.
        bound_s: how long a call may take.
    """

    def __init__(self, store: Store, bound_s: float) -> None:
        self._caller = _Caller()
        self._store = store
        self._bound_s = bound_s
        self._prefix = ""

    def within(self, bound_s: float) -> BoundedStore:
        """The same store and thread with another bound."""
        return self._like(bound_s, self._prefix)

    def below(self, prefix: str) -> BoundedStore:
        """The same store and thread with ``prefix`` before each key."""
        return self._like(self._bound_s, f"{self._prefix}{prefix}/")

    def _like(self, bound_s: float, prefix: str) -> BoundedStore:
        other = BoundedStore(self._store, bound_s)
        other._caller, other._prefix = self._caller, prefix
        return other

    def set(self, key: str, value: str) -> None:
        """Writes a value."""
        self._call(lambda: self._store.set(self._prefix + key, value))

    def get(self, key: str) -> bytes:
        """Reads a value that is there."""
        return self._call(lambda: self._store.get(self._prefix + key))

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._call(lambda: self._store.check([self._prefix + key for key in keys])))

    def add(self, key: str, amount: int) -> int:
        """Adds to a number, which begins at 0; returns the sum."""
        return int(self._call(lambda: self._store.add(self._prefix + key, amount)))

    def delete_key(self, key: str) -> bool:
        """Removes a value; returns whether it was there."""
        return bool(self._call(lambda: self._store.delete_key(self._prefix + key)))

    def _call(self, call: Callable[[], T]) -> T:
        return self._caller.run(call, self._bound_s)


class _Caller:
    """One thread that makes calls. It is a daemon: a call that never returns mustn't keep the process."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], _Answer]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def run(self, call: Callable[[], T], bound_s: float) -> T:
        answer = _Answer()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mtf-store", daemon=True)
                self._thread.start()
        self._calls.put((call, answer))
        if not answer.is_there.wait(bound_s):
            answer.is_wanted = False
            raise StoreLost(f"the store of the process group didn't answer within {bound_s:g} s")
        if answer.error is not None:
            raise StoreLost(str(answer.error).splitlines()[0]) from answer.error
        result: T = answer.value
        return result

    def _work(self) -> None:
        while True:
            call, answer = self._calls.get()
            if not answer.is_wanted:
                continue
            try:
                answer.value = call()
            except Exception as error:  # torch raises RuntimeError, DistError and others
                answer.error = error
            answer.is_there.set()
            del call, answer


class _Answer:
    def __init__(self) -> None:
        self.is_there = threading.Event()
        self.is_wanted = True
        self.value: Any = None
        self.error: Exception | None = None


def run_bounded(call: Callable[[], T], bound_s: float) -> T:
    """``call()`` on a thread of its own.

    Raises:
        StoreLost: it took longer than ``bound_s``; it is left alone.
        Exception: what it raised.
    """
    box: list[Any] = []

    def work() -> None:
        try:
            box.append((call(), None))
        except Exception as error:
            box.append((None, error))

    thread = threading.Thread(target=work, name="mtf-store-start", daemon=True)
    thread.start()
    thread.join(bound_s)
    if not box:
        raise StoreLost(f"no answer within {bound_s:g} s")
    value, error = box[0]
    if error is not None:
        raise error
    result: T = value
    return result
