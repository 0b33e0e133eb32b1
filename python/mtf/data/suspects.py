"""What may keep a loader from giving the same batches again."""

from __future__ import annotations

import types
from typing import Any

from mtf.data.protocols import length_of
from mtf.data.rng.owned_generators import OwnedGenerators
from mtf.data.sources.base import Source
from mtf.data.sources.threaded import ThreadLoader
from mtf.data.sources.torch_map import TorchSource


def _parts_of(loader: Any) -> dict[str, Any]:
    """The user's own objects that make batches: dataset, transforms, collate function, by how they are called."""
    dataset = getattr(loader, "dataset", loader)
    parts = {type(dataset).__name__: dataset}
    for name, value in getattr(dataset, "__dict__", {}).items():
        if "transform" in name and hasattr(value, "__dict__"):
            parts[f"{type(dataset).__name__}.{name}"] = value
    collate = getattr(loader, "collate_fn", None)
    if hasattr(collate, "__dict__") and not isinstance(collate, types.FunctionType):
        parts["collate_fn"] = collate
    return parts


def plain_attributes(loader: Any) -> dict[str, Any]:
    """What the user's objects hold, to be compared with what they hold after reading.

    Plain values count as they are; of others only which object it is, and how many items it has.
    """
    return {
        f"{label}.{name}": value if isinstance(value, _PLAIN) else _Held(value)
        for label, part in _parts_of(loader).items()
        for name, value in getattr(part, "__dict__", {}).items()
    }


_PLAIN = (int, float, str, bool, type(None))


class _Held:
    """An object that was held, and its length."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._length = length_of(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self._value is other._value and self._length == other._length

    def __hash__(self) -> int:
        return id(self._value)

    def __repr__(self) -> str:
        length = "" if self._length is None else f" of length {self._length}"
        return f"a {type(self._value).__name__}{length}"


_MISSING = "nothing"


def suspects_of(loader: Any, source: Source, before: dict[str, Any]) -> list[str]:
    """What a difference between two readings may come from, and what to do.

    Args:
        loader: The user's.
        source: How it was read.
        before: Its ``plain_attributes`` before it was read.
    """
    suspects = []
    if not isinstance(source, TorchSource) or isinstance(source, ThreadLoader):
        for label, part in _parts_of(loader).items():
            suspects += [
                f"{label}{path[1:]} is a random generator that isn't seeded for each batch here: draw from the "
                "process-wide generators (from mtf.batch_rng() in a ThreadLoader)"
                for path in OwnedGenerators(part).paths
            ]
    after = plain_attributes(loader)
    if not isinstance(source, TorchSource):  # iterators and buffers of a loader that is read on change anyway
        before, after = ({n: v for n, v in held.items() if not isinstance(v, _Held)} for held in (before, after))
    for name in sorted({*before, *after}):
        there, here = (repr(held[name]) if name in held else _MISSING for held in (before, after))
        if name not in before or name not in after or before[name] != after[name]:
            suspects.append(
                f"{name} changed while reading, from {there} to {here}: compute it from the index, or define "
                "state_dict and load_state_dict and use num_workers=0"
            )
    for attribute in ("batch_sampler", "sampler"):
        sampler = getattr(loader, attribute, None)
        if sampler is not None and type(sampler).__module__.split(".")[0] not in ("torch", "torchdata", "builtins"):
            suspects.append(
                f"the {attribute} {type(sampler).__name__} may depend on what happened before: it should be a function "
                "of its generators and set_epoch, or have state_dict and load_state_dict"
            )
    if not suspects:
        suspects.append(
            "something that reading depends on besides the index and the process-wide generators: time, the worker's "
            "id, the order of a set (PYTHONHASHSEED under spawn), the order in which threads are done, a generator "
            "inside compiled code, a cache filled at random, a file that changes"
        )
    return suspects
