"""How much memory a batch holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def num_bytes(data: Any) -> int:
    """Bytes of the tensors and arrays in a batch; other objects count as nothing."""
    nbytes = getattr(data, "nbytes", None)
    if nbytes is not None:
        return int(nbytes)
    if isinstance(data, Mapping):
        return sum(map(num_bytes, data.values()))
    if isinstance(data, (list, tuple)):
        return sum(map(num_bytes, data))
    return 0
