"""Exact comparison of two state trees: every bit counts, and each difference has a path."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from mtf.checkpoint.format.tree_path import TreePath, format_path

CLOCK_METRICS = ("throughput/", "memory/")
"""What the names of metrics begin with that depend on the machine and not on the run."""


@dataclass(frozen=True)
class Difference:
    """One place where two trees differ."""

    path: TreePath
    reason: str

    def __str__(self) -> str:
        return f"{format_path(self.path)}: {self.reason}"


def first_differences(a: Any, b: Any, limit: int = 20) -> list[Difference]:
    """The first ``limit`` differences in the order of ``a``; empty exactly when the trees are equal."""
    return list(islice(differences(a, b), limit))


def differences(a: Any, b: Any, path: TreePath = ("state",)) -> Iterator[Difference]:
    """Every difference of two trees.

    Types must be the same. Floats and tensors are equal when their bits are (a NaN equals itself, 0.0 isn't -0.0),
    tensors also need equal dtype and shape; their memory format and device don't count. Order of keys doesn't count.
    """
    if type(a) is not type(b) and not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        yield Difference(path, f"{_brief(a)} against {_brief(b)}")
    elif isinstance(a, torch.Tensor):
        if reason := tensor_difference(a, b):
            yield Difference(path, reason)
    elif isinstance(a, np.ndarray):
        if reason := tensor_difference(_numpy_bits(a), _numpy_bits(b), str(a.dtype), str(b.dtype)):
            yield Difference(path, reason)
    elif isinstance(a, Mapping):
        for key in a:
            if key in b:
                yield from differences(a[key], b[key], (*path, key))
            else:
                yield Difference((*path, key), f"{_brief(a[key])} against nothing")
        for key in b:
            if key not in a:
                yield Difference((*path, key), f"nothing against {_brief(b[key])}")
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            yield Difference(path, f"length {len(a)} against {len(b)}")
        for i, (left, right) in enumerate(zip(a, b, strict=False)):
            yield from differences(left, right, (*path, i))
    elif _scalar_bits(a) != _scalar_bits(b):
        yield Difference(path, f"{_brief(a)} against {_brief(b)}")


def tensor_difference(a: torch.Tensor, b: torch.Tensor, a_dtype: str = "", b_dtype: str = "") -> str | None:
    """In words, how two tensors differ in dtype, shape or bits; None if they don't."""
    a_dtype, b_dtype = a_dtype or str(a.dtype), b_dtype or str(b.dtype)
    if a_dtype != b_dtype:
        return f"dtype {a_dtype} against {b_dtype}"
    if a.shape != b.shape:
        return f"shape {list(a.shape)} against {list(b.shape)}"
    if a.numel() == 0:
        return None
    left, right = _bits(a), _bits(b)
    if torch.equal(left, right):
        return None
    unequal = (left != right).reshape(a.numel(), -1).any(dim=1)
    first = int(unequal.nonzero()[0])
    index = [int(i) for i in np.unravel_index(first, tuple(a.shape))]
    values = f"{a.detach().reshape(-1)[first].item()!r} against {b.detach().reshape(-1)[first].item()!r}"
    return f"{int(unequal.sum())} of {a.numel()} elements differ, first at {index}: {values}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8)


def _numpy_bits(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C", copy=True))


def _scalar_bits(value: Any) -> Any:
    if type(value) is float:
        return struct.pack("<d", value)
    if type(value) is complex:
        return struct.pack("<dd", value.real, value.imag)
    if isinstance(value, np.generic):
        return value.tobytes()
    return value


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of dtype {value.dtype}, shape {list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype}, shape {list(value.shape)}"
    if isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
