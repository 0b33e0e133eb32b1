"""What loaders, datasets and samplers of other libraries can be asked: length, state, epoch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

_ENDLESS = 2**40  # no run has as many steps; libraries say 2**60, sys.maxsize or infinity for "without end"


def length_of(loader: Any) -> int | None:
    """``len(loader)``; None where it has none, where asking raises, or where it says that it never ends."""
    try:
        length = len(loader)
    except Exception:  # libraries raise anything, RuntimeError before the first epoch for one
        return None
    return length if length < _ENDLESS else None


def known_length(loader: Any) -> int:
    """What ``len()`` of a wrapper of ``loader`` gives.

    Raises:
        TypeError: the length isn't known.
    """
    length = length_of(loader)
    if length is None:
        raise TypeError("the dataset has no len()")
    return length


def has_state_methods(value: Any) -> bool:
    """Whether ``value`` follows the Stateful protocol: ``state_dict()`` and ``load_state_dict(state)``.

    Mappings, TensorDicts and modules have methods of these names that mean their data, and some libraries' take
    arguments of their own: neither is a position.
    """
    cls = type(value)
    if isinstance(value, (torch.nn.Module, Mapping, torch.Tensor)):
        return False
    if any(base.__name__ in ("TensorDictBase", "TensorCollection") for base in cls.__mro__):
        return False
    save, load = getattr(value, "state_dict", None), getattr(value, "load_state_dict", None)
    return callable(save) and callable(load) and _takes(save, 0) and _takes(load, 1)


def _takes(function: Callable[..., Any], number: int) -> bool:
    """Whether it can be called with that many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:  # no signature is known
        return True
    return True


def copy_state(state: Any) -> Any:
    """A copy that doesn't change when the source continues.

    Made for every batch of a loader with a state, so plain containers are copied here, several times faster than by
    ``copy.deepcopy``, which copies the rest; what is held twice is copied once by either.
    """
    return state if type(state) in _ATOMS else _copied(state, {})


_ATOMS = frozenset({int, float, str, bytes, bool, complex, type(None)})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    cls = type(value)
    if cls is dict and all(type(key) in _ATOMS for key in value):
        mapping: dict[Any, Any] = {}
        memo[id(value)] = mapping
        for key, inner in value.items():
            mapping[key] = inner if type(inner) in _ATOMS else _copied(inner, memo)
        return mapping
    if cls is list:
        items: list[Any] = []
        memo[id(value)] = items
        items.extend(inner if type(inner) in _ATOMS else _copied(inner, memo) for inner in value)
        return items
    return copy.deepcopy(value, memo)


def set_epoch(loader: Any, pass_: int) -> None:
    """Gives the pass to the loader, its dataset and its samplers, each where it has ``set_epoch``."""
    called: set[int] = set()
    for attribute in ("", "dataset", "sampler", "batch_sampler"):
        target = getattr(loader, attribute, None) if attribute else loader
        method = getattr(target, "set_epoch", None)
        if callable(method) and id(target) not in called:
            called.add(id(target))
            method(pass_)
    _set_webdataset_epoch(getattr(loader, "dataset", loader), pass_)


def _set_webdataset_epoch(dataset: Any, pass_: int) -> None:
    """Stages of webdataset count their passes in ``epoch``, each copy from -1, and have no ``set_epoch``."""
    if not any(base.__module__.startswith("webdataset.") for base in type(dataset).__mro__):
        return
    for stage in getattr(dataset, "pipeline", ()):
        if type(getattr(stage, "epoch", None)) is int:
            stage.epoch = pass_ - 1


def epoch_setters(dataset: Any) -> list[Callable[[int], Any]]:
    """``set_epoch`` of a dataset and of those inside it (``Subset``, ``ConcatDataset`` and their like)."""
    return [target.set_epoch for target in _nested(dataset, set()) if callable(getattr(target, "set_epoch", None))]


def _nested(dataset: Any, seen: set[int]) -> Iterator[Any]:
    if id(dataset) in seen or len(seen) > 1000:
        return
    seen.add(id(dataset))
    yield dataset
    inner = getattr(dataset, "__dict__", {})
    several = inner.get("datasets")
    for part in [inner.get("dataset"), *(several if isinstance(several, (list, tuple)) else ())]:
        if part is not None:
            yield from _nested(part, seen)
