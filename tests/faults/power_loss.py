"""A pessimistic model of power loss: what a disk may hold after the calls of a recorded piece of work.

A file's content is certain only after its fsync; a change of a directory only after that directory's fsync. At each
instant, and for each directory by itself, any number of its latest unsynced changes may be missing (they are applied in
order), and content that wasn't synced is missing altogether.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mtf.checkpoint.storage import local

Entries = dict[str, int]

_MAX_STATES = 8  # after one call; where more are possible, a random choice of so many


@dataclass
class _Directory:
    durable: Entries = field(default_factory=dict)
    pending: list[Callable[[Entries], None]] = field(default_factory=list)

    def now(self, num_applied: int | None = None) -> Entries:
        entries = dict(self.durable)
        for change in self.pending[:num_applied]:
            change(entries)
        return entries


@dataclass
class _File:
    path: Path  # where the content can be read while the work continues
    content: bytes | None = None  # None until synced
    link: str | None = None


class Disk:
    """Follows the work done below ``root`` and yields, call by call, every state that a power loss might leave."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._nodes: list[_Directory | _File] = []
        self._top = self._add(root)
        self.num_calls = 0
        self._chance = random.Random(0)

    def _add(self, path: Path) -> int:
        """Takes in what is there already; all of it is durable."""
        number = len(self._nodes)
        if path.is_symlink():
            self._nodes.append(_File(path, b"", os.readlink(path)))
        elif path.is_dir():
            directory = _Directory()
            self._nodes.append(directory)
            directory.durable = {name: self._add(path / name) for name in sorted(os.listdir(path))}
        else:
            self._nodes.append(_File(path, path.read_bytes()))
        return number

    def _find(self, path: Path) -> int:
        number = self._top
        for part in path.relative_to(self._root).parts:
            node = self._nodes[number]
            assert isinstance(node, _Directory)
            number = node.now()[part]
        return number

    def _change(self, parent: Path, change: Callable[[Entries], None]) -> None:
        node = self._nodes[self._find(parent)]
        assert isinstance(node, _Directory)
        node.pending.append(change)
        self.num_calls += 1

    def created(self, path: Path, node: _Directory | _File) -> None:
        self._nodes.append(node)
        number = len(self._nodes) - 1
        self._change(path.parent, lambda entries: entries.update({path.name: number}))

    def removed(self, path: Path) -> None:
        self._change(path.parent, lambda entries: entries.pop(path.name, None) and None)

    def renamed(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent
        number = self._find(old)

        def change(entries: Entries) -> None:
            entries.pop(old.name, None)
            entries[new.name] = number

        self._change(old.parent, change)

    def exchanged(self, a: Path, b: Path) -> None:
        numbers = {a.name: self._find(b), b.name: self._find(a)}
        self._change(a.parent, lambda entries: entries.update(numbers))

    def synced(self, path: Path) -> None:
        node = self._nodes[self._find(path)]
        if isinstance(node, _Directory):
            node.durable, node.pending = node.now(), []
        else:
            node.content = path.read_bytes()
        self.num_calls += 1

    def states(self) -> Iterator[Callable[[Path], None]]:
        """Functions that build a possible state of the disk in an empty directory."""
        unsynced = [
            (number, len(node.pending))
            for number, node in enumerate(self._nodes)
            if isinstance(node, _Directory) and node.pending
        ]
        choices = [range(count + 1) for _, count in unsynced]
        if math.prod(len(choice) for choice in choices) <= _MAX_STATES:
            combinations = list(itertools.product(*choices))
        else:
            combinations = [tuple(map(self._chance.choice, choices)) for _ in range(_MAX_STATES)]
        for applied in combinations:
            counts = {number: count for (number, _), count in zip(unsynced, applied, strict=True)}
            yield lambda target, counts=counts: self._build(self._top, target, counts)

    def _build(self, number: int, target: Path, counts: dict[int, int]) -> None:
        node = self._nodes[number]
        if isinstance(node, _Directory):
            target.mkdir(exist_ok=True)
            for name, child in node.now(counts.get(number)).items():
                self._build(child, target / name, counts)
        elif node.link is not None:
            target.symlink_to(node.link)
        else:
            target.write_bytes(node.content or b"")


def follow(disk: Disk, root: Path, patch: pytest.MonkeyPatch, after_call: Callable[[], None]) -> None:
    """Makes every call that changes something below ``root`` known to ``disk``, and then calls ``after_call``."""

    def where(path: Any, dir_fd: int | None) -> Path:
        base = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path()
        return base / Path(os.fsdecode(path))

    def inside(path: Path) -> bool:
        return path == root or root in path.parents

    def wrap(module: Any, name: str, note: Callable[..., None]) -> None:
        real = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            paths = [where(arg, options.get("dir_fd")) for arg in args if isinstance(arg, (str, bytes, os.PathLike))]
            result = real(*args, **options)
            if paths and inside(paths[-1]) and result is not False:
                note(*paths)
                after_call()
            return result

        patch.setattr(module, name, call, raising=False)

    wrap(os, "mkdir", lambda path: disk.created(path, _Directory()))
    wrap(os, "unlink", disk.removed)
    wrap(os, "rmdir", disk.removed)
    wrap(os, "rename", disk.renamed)
    wrap(os, "symlink", lambda target, link: disk.created(link, _File(link, b"", str(target))))
    wrap(local, "exchange", disk.exchanged)

    real_open, real_fsync = open, os.fsync

    def open_(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = real_open(path, mode, *args, **options)
        if "x" in mode and inside(Path(path)):
            disk.created(Path(path), _File(Path(path)))
            after_call()
        return file

    def fsync(fd: int) -> None:
        real_fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if inside(path):
            disk.synced(path)
            after_call()

    patch.setattr(local, "open", open_, raising=False)
    patch.setattr(os, "fsync", fsync)
