"""Random generators that a dataset, its transforms and its collate function keep for themselves.

albumentations and MONAI work like this. Left alone, what such a generator gives depends on every batch that was read
before in the same process, so neither a resume nor another number of workers could give the same augmentation.
"""

from __future__ import annotations

import functools
import os
import random
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mtf._core import fold_in

_MAX_OBJECTS = 20_000
_MAX_ITEMS = 64  # of a container whose first items are looked at
_KINDS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_OPAQUE = (str, bytes, bytearray, int, float, complex, type(None), np.ndarray, np.generic, torch.Tensor, range)
# Their functions and classes hold no generator of a user's, and looking through them takes long.
_LIBRARIES = ("builtins", "torch", "numpy", "threading", "_thread", "logging", "multiprocessing", "pandas", "pyarrow")


class OwnedGenerators:
    """The generators found from a few objects, each with the path that leads to it.

    Looked through are attributes (in slots as well), items of small containers, what functions have closed over or
    name as globals, and what ``functools.partial`` and bound methods hold. A generator inside compiled code isn't
    found.

    Args:
        roots: Datasets, transforms, functions.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self._pid = os.getpid()
        self._found: dict[int, tuple[str, Any]] = {}
        self.look_again()

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was made here; a forked worker has copies of its own."""
        return self._pid == os.getpid()

    @property
    def paths(self) -> list[str]:
        """Where each generator is, in words."""
        return [path for path, _ in self._found.values()]

    def __len__(self) -> int:
        return len(self._found)

    def look_again(self) -> bool:
        """Looks for generators made since; returns whether there are any."""
        known = len(self._found)
        for path, generator in _find(self._roots):
            self._found.setdefault(id(generator), (path, generator))
        return len(self._found) > known

    def seed(self, key: int) -> None:
        """Puts every generator to the start that ``key`` and its path give."""
        for path, generator in self._found.values():
            _seed(generator, fold_in(key, path))

    def states(self) -> list[Any]:
        """Where each stands, for ``restore``."""
        return [_state(generator) for _, generator in self._found.values()]

    def restore(self, states: list[Any]) -> None:
        """Puts each back to where it stood; those found since stay."""
        for (_, generator), state in zip(self._found.values(), states, strict=False):
            _restore(generator, state)


def _seed(generator: Any, key: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(key)
    elif isinstance(generator, random.Random):
        generator.seed(key)
    elif isinstance(generator, np.random.RandomState):
        generator.seed([key & 0xFFFFFFFF, key >> 32])
    else:
        generator.bit_generator.state = type(generator.bit_generator)(key).state


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _find(roots: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Generators in a fixed order, so that their paths are the same in every process: breadth first."""
    seen: set[int] = {id(random._inst), id(torch.default_generator), id(np.random.mtrand._rand)}
    waiting = deque((f"{number}", root) for number, root in enumerate(roots))
    while waiting and len(seen) < _MAX_OBJECTS:
        path, value = waiting.popleft()
        if isinstance(value, _OPAQUE) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _KINDS):
            if not _is_system(value):
                yield path, value
            continue
        waiting.extend((f"{path}{step}", inner) for step, inner in _inside(value))


def _is_system(generator: Any) -> bool:
    """Whether it draws from the operating system, and can't be seeded."""
    return isinstance(generator, random.SystemRandom)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (type, types.ModuleType)):
        return
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in _first_items(value.items()))
        if type(value) is dict:
            return
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from ((f"[{place}]", item) for place, item in enumerate(_first_items(value)))
        if type(value) in (list, tuple, set, frozenset, deque):
            return
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
        return
    elif isinstance(value, types.MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
        return
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
        return
    yield from ((f".{name}", inner) for name, inner in sorted(getattr(value, "__dict__", {}).items(), key=_by_name))
    cls = type(value)
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in _LIBRARIES:
            continue
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") else name
                yield f".{name}", getattr(value, mangled, None)
        for name, member in sorted(base.__dict__.items(), key=_by_name):
            function = getattr(member, "__func__", member)  # of static and class methods
            if isinstance(function, types.FunctionType):
                yield from ((f".{name}{step}", inner) for step, inner in _of_function(function))
            elif isinstance(member, _KINDS):
                yield f".{name}", member


def _of_function(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """What a function has closed over, its defaults, and the generators among the globals that it names."""
    code, closure = function.__code__, function.__closure__ or ()
    for name, cell in zip(code.co_freevars, closure, strict=False):
        try:
            yield f"<{name}>", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from ((f"<default {place}>", value) for place, value in enumerate(function.__defaults__ or ()))
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, _KINDS):
            yield f"<global {name}>", value


def _first_items(items: Any) -> list[Any]:
    """The first of a container's items; none of a long one of plain values, which is data."""
    first = []
    for item in items:
        first.append(item)
        if len(first) == _MAX_ITEMS:
            break
    return first


def _by_name(item: tuple[Any, Any]) -> str:
    return str(item[0])
