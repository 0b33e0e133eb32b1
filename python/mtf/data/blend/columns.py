"""How gathered rows become tensors: one column per field of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mtf.data.sources.array import DLPACK, RAW, import_dlpack

Column = tuple[Sequence[int], int, int, Callable[[Any], torch.Tensor]]


def columns_of(fields: Sequence[tuple[str, str, tuple[int, ...], bool]]) -> list[Column]:
    """What the core needs to make tensors of ``fields``, as ``RowSource.fields`` lists them: shape of a row, DLPack's
    type code and bits, and what makes a tensor of a capsule."""
    return [_column(shape, getattr(torch, dtype)) for _, dtype, shape, _ in fields]


def _column(shape: tuple[int, ...], dtype: torch.dtype) -> Column:
    if dtype in DLPACK:
        return shape, *DLPACK[dtype], import_dlpack
    raw = DLPACK[RAW[dtype.itemsize]]
    return shape, *raw, lambda capsule: import_dlpack(capsule).view(dtype)
