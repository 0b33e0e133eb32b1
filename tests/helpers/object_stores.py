"""Stores for tests: one in memory that can be killed, refused or made slow to list at each request."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from mtf.checkpoint import ObjectLock


class Killed(BaseException):
    """As good as a kill: nothing of mtf handles it."""


class DictStorage:
    """Five methods over a dict: what a storage from outside of mtf looks like.

    Args:
        url: for messages.
        files: content by name; shared by all who use the store.
        before: called before each request with its kind and name.
        after: likewise afterwards.
        list_lag: how many writes and deletions behind listings are.
    """

    def __init__(
        self,
        url: str,
        files: dict[str, bytes],
        before: Callable[[str, str], None] = lambda kind, name: None,
        after: Callable[[str, str], None] = lambda kind, name: None,
        list_lag: int = 0,
    ) -> None:
        self.url = url
        self.files = files
        self.before, self.after = before, after
        self.list_lag = list_lag
        self._history: list[set[str]] = [set(files)]

    @contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        self.before("read", name)
        if name not in self.files:
            raise FileNotFoundError(name)
        yield io.BytesIO(self.files[name])

    def write_atomic(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        self.before("write", name)
        self.files[name] = b"".join(bytes(chunk) for chunk in chunks)
        self._history.append(set(self.files))
        self.after("write", name)

    def list(self, folder: str = "") -> list[str]:
        self.before("list", folder)
        shown = self._history[max(0, len(self._history) - 1 - self.list_lag)]
        prefix = f"{folder}/" if folder else ""
        inside = [name[len(prefix) :] for name in shown if name.startswith(prefix)]
        return sorted({name.partition("/")[0] + "/" * ("/" in name) for name in inside})

    def delete(self, name: str) -> None:
        self.before("delete", name)
        self.files.pop(name, None)
        self._history.append(set(self.files))
        self.after("delete", name)

    def lock(self) -> ObjectLock:
        return ObjectLock(self, settle_s=0.0)


class KillAt:
    """Raises :class:`Killed` at the ``number``-th request, counted from 0, and at every later one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0

    def __call__(self, kind: str, name: str) -> None:
        self.count += 1
        if self.count > self.number:
            raise Killed(f"{kind} {name}")
