"""Random generators that a dataset, its transforms and its collate function keep for themselves.

albumentations and MONAI work like this. Left alone, what such a generator gives depends on every batch that was read
before in the same process, so neither a resume nor another number of workers could give the same augmentation.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import sysconfig
import threading
import types
from collections import deque
from collections.abc import Callable, Collection, ItemsView, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtf._core import fold_in
from mtf.data.rng.generators import GENERATOR_TYPES

_MAX_OBJECTS = 20_000
_MAX_ITEMS = 64  # of a container whose first items are looked at
_OPAQUE = (str, bytes, bytearray, int, float, complex, type(None), np.ndarray, np.generic, torch.Tensor, range)
_MAX_WATCHED = 64  # objects that are looked at after each batch, because they may make a generator later
_MAX_LOOKS = 16  # of a process, after its first
# Their functions and classes hold no generator of a user's, and looking through them takes long.
_LIBRARIES = (
    *("torch", "numpy", "pandas", "pyarrow", "typing_extensions"),
    *("hypothesis", "pytest", "_pytest", "pluggy"),  # what a test module names beside its dataset
)
_STANDARD = sysconfig.get_paths()["stdlib"]
# Objects of the standard library that hold what a user put into them.
_HOLDERS = (
    *(list, tuple, dict, set, frozenset, deque, functools.partial, types.MethodType, types.SimpleNamespace),
    *(threading.local, type(functools.cache(len))),
)


class OwnedGenerators:
    """The generators found from a few objects, each with the path that leads to it.

    Looked through are attributes (in slots as well), items of small containers, what functions have closed over,
    what they and the functions that they call name as globals, the variables of suspended generator functions, and
    what ``functools.partial`` and bound methods hold. A generator inside compiled code isn't found.

    Args:
        roots: Datasets, transforms, functions.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self._pid = os.getpid()
        self._found: dict[int, tuple[str, Any]] = {}
        self._watched: list[tuple[dict[str, Any], int, list[str]]] = []
        self._looks_left = _MAX_LOOKS
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
        self._watched = []
        for path, generator in _find(self._roots, self._watch):
            self._found.setdefault(id(generator), (path, generator))
        return len(self._found) > known

    def look_if_changed(self) -> bool:
        """Looks again where an object has a new attribute, or one that was None; as ``look_again``."""
        if not self._looks_left or not any(_has_changed(*watched) for watched in self._watched):
            return False
        self._looks_left -= 1
        return self.look_again()

    def _watch(self, value: Any) -> None:
        held = getattr(value, "__dict__", None)
        if type(held) is dict and len(self._watched) < _MAX_WATCHED and not isinstance(value, types.FunctionType):
            self._watched.append((held, len(held), [name for name, inner in held.items() if inner is None]))

    def seed(self, key: int, only: Collection[str] | None = None) -> None:
        """Puts every generator, or those at some paths, to the start that ``key`` and its path give."""
        for path, generator in self._found.values():
            if only is None or path in only:
                _seed(generator, fold_in(key, path))

    def states(self) -> list[Any]:
        """Where each stands, for ``restore``."""
        return [_state(generator) for _, generator in self._found.values()]

    def restore(self, states: list[Any]) -> None:
        """Puts each back to where it stood; those found since stay."""
        for (_, generator), state in zip(self._found.values(), states, strict=False):
            _restore(generator, state)


def _has_changed(held: dict[str, Any], number: int, empty: list[str]) -> bool:
    return len(held) != number or any(held.get(name) is not None for name in empty)


def _seed(generator: Any, key: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(key)
    elif isinstance(generator, random.Random):
        generator.seed(key)
    elif isinstance(generator, np.random.RandomState):
        generator.seed([key & 0xFFFFFFFF, key >> 32])
    else:
        bits = _bits(generator)
        bits.state = type(bits)(key).state


def _bits(generator: Any) -> Any:
    return generator if isinstance(generator, np.random.BitGenerator) else generator.bit_generator


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return _bits(generator).state


def same_state(one: Any, other: Any) -> bool:
    """Whether two states of one generator are the same."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, Mapping):
        return all(same_state(one[name], other[name]) for name in one)
    if isinstance(one, tuple) and any(isinstance(part, np.ndarray) for part in one):
        return all(map(same_state, one, other))
    return bool(one == other)


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        _bits(generator).state = state


def _find(roots: tuple[Any, ...], watch: Callable[[Any], None]) -> Iterator[tuple[str, Any]]:
    """Generators in a fixed order, so that their paths are the same in every process: breadth first."""
    seen: set[int] = {id(random._inst), id(torch.default_generator), id(np.random.mtrand._rand)}
    waiting = deque((f"{number}", root) for number, root in enumerate(roots))
    while waiting and len(seen) < _MAX_OBJECTS:
        path, value = waiting.popleft()
        if isinstance(value, _OPAQUE) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, GENERATOR_TYPES):
            if not _is_system(value):
                yield path, value
            continue
        watch(value)
        with suppress(Exception):  # an object that answers a question with an error of its own isn't looked through
            waiting.extend((f"{path}{step}", inner) for step, inner in _inside(value))


def _is_system(generator: Any) -> bool:
    """Whether it draws from the operating system, and can't be seeded."""
    return isinstance(generator, random.SystemRandom)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (type, types.ModuleType)):
        return
    if isinstance(value, Mapping):
        items = enumerate(_first_items(value.items()))
        yield from ((f"[{key!r}]" if isinstance(key, (str, int)) else f"[{n}]", item) for n, (key, item) in items)
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
    elif isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        yield from () if frame is None else ((f"<{name}>", inner) for name, inner in frame.f_locals.items())
        return
    yield from ((f".{name}", inner) for name, inner in sorted(getattr(value, "__dict__", {}).items(), key=_by_name))
    cls = type(value)
    for base in cls.__mro__:
        if _is_of_library(base):
            continue
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                mangled = f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") else name
                yield f".{name}", getattr(value, mangled, None)
        for name, member in sorted(base.__dict__.items(), key=_by_name):
            function = _function_of(member)
            if isinstance(function, types.FunctionType):
                yield from ((f".{name}{step}", inner) for step, inner in _of_function(function))
            elif isinstance(member, GENERATOR_TYPES):
                yield f".{name}", member


def _function_of(member: Any) -> Any:
    """The function of a static or class method or of a property; anything else as it is."""
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    return member.func if isinstance(member, functools.cached_property) else member


def _of_function(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """What a function has closed over, its defaults, and what it names of its globals."""
    code, closure = function.__code__, function.__closure__ or ()
    for name, cell in zip(code.co_freevars, closure, strict=False):
        try:
            yield f"<{name}>", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from ((f"<default {place}>", value) for place, value in enumerate(function.__defaults__ or ()))
    yield from ((f"<default {name}>", value) for name, value in (function.__kwdefaults__ or {}).items())
    if _is_of_library(function) or function.__module__.split(".")[0] == "mtf":
        return
    names = _names_in(code)
    for name in names:
        yield from _of_global(f"<global {name}>", function.__globals__.get(name), names)


def _names_in(code: types.CodeType) -> list[str]:
    """Names of globals and attributes in a function and in those inside it."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names_in(part)]
    return list(dict.fromkeys((*code.co_names, *inner)))


def _of_global(path: str, value: Any, names: list[str]) -> Iterator[tuple[str, Any]]:
    """What a function may use of a global.

    Args:
        path: Of the global.
        value: The global.
        names: All names in the function.
    """
    if isinstance(value, GENERATOR_TYPES):
        yield path, value
    elif isinstance(value, (type, types.ModuleType)):
        if not _is_of_library(value):
            members = vars(value)
            usable = (*GENERATOR_TYPES, types.FunctionType, staticmethod, classmethod, property)
            found = ((name, members.get(name)) for name in names)
            yield from (
                (f"{path}.{name}", _function_of(member))
                for name, member in found
                if isinstance(member, usable) or (isinstance(value, types.ModuleType) and _may_hold(member))
            )
    elif _may_hold(value):
        yield path, value


def _may_hold(value: Any) -> bool:
    """Whether a global, or a member of a module, may be a transform or a function that draws."""
    if isinstance(value, (*_OPAQUE, type, types.ModuleType, types.BuiltinFunctionType)):
        return False
    return isinstance(value, _HOLDERS) or not _is_of_library(
        value if isinstance(value, types.FunctionType) else type(value)
    )


def _is_of_library(thing: Any) -> bool:
    """Whether a function, class or module belongs to a library that holds no generator of a user's."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    package = (name or "builtins").split(".")[0]
    return package in _LIBRARIES or _is_standard(package)


@functools.cache
def _is_standard(package: str) -> bool:
    """Whether a module is one of the standard library, and not a user's of the same name, such as ``profile``."""
    file = getattr(sys.modules.get(package), "__file__", None)
    return package in sys.stdlib_module_names and (file is None or Path(file).is_relative_to(_STANDARD))


def _first_items(items: Any) -> list[Any]:
    """A container's items; the first ones only of a long one that doesn't begin with generators, which is data."""
    first, is_data = [], True
    for item in items:
        first.append(item)
        if isinstance(item[1] if isinstance(items, ItemsView) else item, GENERATOR_TYPES):
            is_data = False
        if len(first) == (_MAX_ITEMS if is_data else _MAX_OBJECTS):
            break
    return first


def _by_name(item: tuple[Any, Any]) -> str:
    return str(item[0])
