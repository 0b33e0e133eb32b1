"""Batches as the trainer sees them: nested containers of tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def num_samples(batch: Any) -> int:
    """First dimension of the first tensor (or array) found in ``batch``; 1 where there is none."""
    found = _first_dimension(batch)
    return 1 if found is None else found


def _first_dimension(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, (str, bytes)):
        return None
    if isinstance(batch, (list, tuple)):
        parts: Any = batch
    elif isinstance(batch, Mapping):
        parts = batch.values()
    elif dataclasses.is_dataclass(batch):
        parts = (getattr(batch, f.name) for f in dataclasses.fields(batch))
    else:
        shape = getattr(batch, "shape", None)
        return int(shape[0]) if shape else None
    for part in parts:
        found = _first_dimension(part)
        if found is not None:
            return found
    return None


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with every tensor on ``device``: nested dicts, lists, tuples, dataclasses, anything with ``.to``.

    What is there already is returned as it is.
    """
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        moved = {key: to_device(value, device) for key, value in batch.items()}
        return moved if type(batch) is dict else _like(batch, moved)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **changed)
    to = getattr(batch, "to", None)
    return to(device) if callable(to) else batch


def _like(batch: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    """``moved`` as the kind of mapping that ``batch`` is; one that knows its own way to a device goes it."""
    copied: Any = copy.copy(batch)
    copied.update(moved)
    return copied


def length_of(loader: Any) -> int | None:
    """``len(loader)``, or None where it has none."""
    try:
        return len(loader)
    except TypeError:
        return None
