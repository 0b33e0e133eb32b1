"""Content hashes of batches: what two fetches of one batch must agree in if the source is deterministic."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from mtf.errors import SourceError

_Path = tuple[object, ...]


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...


def content_hash(batch: Any) -> str:
    """SHA-256, in hexadecimal, of a nested batch's content.

    Counted: structure, types, keys in their order, dtype, shape and bits of every tensor and array. Not counted:
    whether a sequence is a list or a tuple, strides, device, aliasing, ``requires_grad``. So a batch hashes the same
    whatever its memory format is and wherever it was loaded.

    Args:
        batch: tensors, numpy arrays, numbers, strings, bytes and None in dicts, lists, tuples, sets, dataclasses,
            images, or objects that hold such values as attributes.

    Raises:
        SourceError: a value of which no content can be taken; names its path.
    """
    digest = hashlib.sha256()
    _feed(digest, batch, ("batch",))
    return digest.hexdigest()


def _header(digest: _Digest, kind: str, *numbers: int) -> None:
    """A prefix that no other value shares, so that no two structures give the same bytes."""
    digest.update(f"{kind}:{','.join(map(str, numbers))};".encode())


def _feed(digest: _Digest, value: Any, path: _Path) -> None:
    if len(path) > 100:
        raise SourceError(f"{_where(path[:4])}...: nested deeper than 100 levels")
    if isinstance(value, torch.Tensor):
        _feed_tensor(digest, value, path)
    elif isinstance(value, (np.ndarray, np.generic)) or hasattr(type(value), "__array_interface__"):
        array = np.asarray(value)
        if array.dtype.hasobject:
            _header(digest, "objects", *array.shape)
            for i, item in enumerate(array.reshape(-1)):
                _feed(digest, item, (*path, i))
        else:
            _header(digest, f"array {array.dtype.str}", *array.shape)
            digest.update(np.ascontiguousarray(array).tobytes())
    elif value is None or isinstance(value, (bool, int)):
        _header(digest, f"{type(value).__name__} {value!r}")
    elif isinstance(value, float):
        _header(digest, "float")
        digest.update(struct.pack("<d", value))
    elif isinstance(value, complex):
        _header(digest, "complex")
        digest.update(struct.pack("<dd", value.real, value.imag))
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        _header(digest, "str", len(raw))
        digest.update(raw)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        raw = bytes(value)
        _header(digest, "bytes", len(raw))
        digest.update(raw)
    elif isinstance(value, Mapping):
        _header(digest, f"mapping {type(value).__qualname__}", len(value))
        for key, item in value.items():
            _feed(digest, key, path)
            _feed(digest, item, (*path, key))
    elif isinstance(value, (list, tuple)):
        # Pinning and workers may turn a tuple into a list.
        plain = type(value) in (list, tuple)
        _header(digest, "sequence" if plain else f"sequence {type(value).__qualname__}", len(value))
        for i, item in enumerate(value):
            _feed(digest, item, (*path, i))
    elif isinstance(value, (set, frozenset)):
        _header(digest, f"set {type(value).__qualname__}", len(value))
        for text in sorted(content_hash(item) for item in value):
            digest.update(text.encode())
    else:
        _feed_object(digest, value, path)


def _feed_tensor(digest: _Digest, tensor: torch.Tensor, path: _Path) -> None:
    if tensor.layout is not torch.strided:
        if tensor.layout is not torch.sparse_coo:
            raise SourceError(f"{_where(path)}: a tensor of layout {tensor.layout} can't be hashed")
        sparse = tensor.detach().coalesce()
        _header(digest, "sparse", *sparse.shape)
        _feed_tensor(digest, sparse.indices(), path)
        _feed_tensor(digest, sparse.values(), path)
        return
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    _header(digest, f"tensor {plain.dtype}", *plain.shape)
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _feed_object(digest: _Digest, value: Any, path: _Path) -> None:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        try:
            fields = vars(value)
        except TypeError:
            raise SourceError(f"{_where(path)}: a {kind} can't be hashed") from None
    _header(digest, f"object {kind}", len(fields))
    for name, item in fields.items():
        _feed(digest, name, path)
        _feed(digest, item, (*path, name))


def _where(path: _Path) -> str:
    """``batch['x'][0]`` for ``("batch", "x", 0)``."""
    return f"{path[0]}" + "".join(f"[{part!r}]" for part in path[1:])
