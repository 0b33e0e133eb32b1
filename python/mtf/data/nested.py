"""The nesting of a batch: containers that torch's pytree knows, and mappings and dataclasses besides."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

_ATOMS = (str, bytes, int, float, type(None))


def leaves(data: Any, is_leaf: Callable[[Any], bool] | None = None) -> Iterator[Any]:
    """What isn't a container, from left to right.

    Args:
        data: Tensors and other values in dicts, lists, tuples, named tuples, dataclasses, other mappings, and
            containers registered with ``torch.utils._pytree``, in any nesting.
        is_leaf: Whether a container counts as one value.
    """
    for value in pytree.tree_iter(data, is_leaf=is_leaf):
        inside = None if is_leaf is not None and is_leaf(value) else _parts(value)
        if inside is None:
            yield value
        else:
            yield from leaves(list(inside.values()), is_leaf)


def map_leaves(function: Callable[[Any], Any], data: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """The same nesting with ``function`` of each leaf; see ``leaves``.

    A container keeps its type where that can be made with other values; a mapping that can't be changed becomes a dict.
    """

    def convert(value: Any) -> Any:
        inside = None if is_leaf is not None and is_leaf(value) else _parts(value)
        if inside is None:
            return function(value)
        return _with_parts(value, {key: map_leaves(function, part, is_leaf) for key, part in inside.items()})

    return pytree.tree_map(convert, data, is_leaf=is_leaf)


def num_bytes(data: Any) -> int:
    """Bytes of the tensors and arrays in a batch; other objects count as nothing."""
    if isinstance(data, torch.Tensor):
        return data.nbytes
    return sum(int(getattr(value, "nbytes", 0)) for value in leaves(data, _has_bytes))


def _has_bytes(value: Any) -> bool:
    return getattr(value, "nbytes", None) is not None


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """What is inside a container that pytree takes for a leaf; None where it is one."""
    if isinstance(value, (*_ATOMS, torch.Tensor, type)):
        return None
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    return None


def _with_parts(value: Any, parts: dict[Any, Any]) -> Any:
    if isinstance(value, Mapping):
        return _refilled(value, parts)
    if isinstance(value, (list, tuple)):
        return list(parts.values()) if isinstance(value, list) else tuple(parts.values())
    other = copy.copy(value)
    for name, part in parts.items():
        object.__setattr__(other, name, part)  # frozen dataclasses and fields outside the constructor as well
    return other


def _refilled(data: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the type of ``data`` with other values; a plain dict where that type can't be changed."""
    try:
        other: Any = copy.copy(data)
        for key, value in items.items():
            other[key] = value
    except TypeError:
        return items
    return other
