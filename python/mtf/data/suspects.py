"""What may keep a loader from giving the same batches again."""

from __future__ import annotations

import types
from typing import Any

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
    """What the user's objects hold of plain values, to be compared with what they hold after reading."""
    plain = (int, float, str, bool, type(None))
    return {
        f"{label}.{name}": value
        for label, part in _parts_of(loader).items()
        for name, value in getattr(part, "__dict__", {}).items()
        if isinstance(value, plain)
    }


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
    for name in sorted(name for name in before if after.get(name) != before[name]):
        suspects.append(
            f"{name} changed while reading, from {before[name]!r} to {after.get(name)!r}: compute it from the "
            "index, or define state_dict and load_state_dict and use num_workers=0"
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
