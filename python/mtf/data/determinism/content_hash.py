"""Content hashes of batches: what two fetches of one batch must agree in if the source is deterministic."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import struct
import types
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from mtf.call_site import user_level
from mtf.errors import SourceError

_Path = tuple[object, ...]


_SAMPLE = 4096  # bytes of a large value that `short_hash` looks at, from both its ends


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...


def content_hash(batch: Any) -> str:
    """SHA-256, in hexadecimal, of a nested batch's content.

    Counted: structure, types, keys in their order, dtype, shape and bits of every tensor and array. Not counted:
    whether a sequence is a list or a tuple, strides, device, aliasing, ``requires_grad``. So a batch hashes the same
    whatever its memory format is and wherever it was loaded.

    Args:
        batch: tensors, numpy arrays, numbers, strings, bytes and None in dicts, lists, tuples, sets, dataclasses,
            images, or objects that hold such values as attributes. Classes and functions count by their names; objects
            in which nothing can be read by their type, which the log says once.

    Raises:
        SourceError: a tensor of a layout that isn't known, or nesting without end; names its path.
    """
    digest = hashlib.sha256()
    _feed(digest, batch, ("batch",))
    return digest.hexdigest()


def short_hash(batch: Any) -> str:
    """A hash of a batch's structure and of both ends of its large values, in a few microseconds.

    It tells whether a loader was put back to where it was, and isn't a proof of equality. Empty where no hash can be
    taken.
    """
    digest = _EndsOnly()
    try:
        _feed(digest, batch, ("batch",))
    except SourceError:
        return ""
    return digest.hexdigest()


class _EndsOnly:
    """A digest that reads the first and last bytes of what is long."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)

    def update(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        if len(view) > _SAMPLE:
            self._digest.update(view[: _SAMPLE // 2])
            self._digest.update(view[-_SAMPLE // 2 :])
        else:
            self._digest.update(view)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _header(digest: _Digest, kind: str, *numbers: int) -> None:
    """A prefix that no other value shares, so that no two structures give the same bytes."""
    digest.update(f"{kind}:{','.join(map(str, numbers))};".encode())


def _feed(digest: _Digest, value: Any, path: _Path) -> None:
    if len(path) > 100:  # also an object that holds itself
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
    elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, enum.Enum)):
        _header(digest, f"named {_name_of(value)}")
    elif isinstance(value, (set, frozenset)):
        _header(digest, f"set {type(value).__qualname__}", len(value))
        for text in sorted(content_hash(item) for item in value):
            digest.update(text.encode())
    else:
        _feed_object(digest, value, path)


def _name_of(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _feed_tensor(digest: _Digest, tensor: torch.Tensor, path: _Path) -> None:
    if tensor.is_nested or tensor.layout is not torch.strided:
        parts = _parts_of(tensor.detach())
        if parts is None:
            raise SourceError(f"{_where(path)}: a tensor of layout {tensor.layout} can't be hashed")
        kind, inner = parts
        _header(digest, kind, *([] if tensor.is_nested else tensor.shape))
        for part in inner:
            _feed_tensor(digest, part, path)
        return
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    _header(digest, f"tensor {plain.dtype}", *plain.shape)
    if plain.numel():
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _parts_of(tensor: torch.Tensor) -> tuple[str, Sequence[torch.Tensor]] | None:
    """The plain tensors that a nested or sparse tensor is made of."""
    if tensor.is_nested:
        return "nested", tensor.unbind()
    if tensor.layout is torch.sparse_coo:
        sparse = tensor.coalesce()
        return "sparse", (sparse.indices(), sparse.values())
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return str(tensor.layout), (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return str(tensor.layout), (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    return None


def _feed_object(digest: _Digest, value: Any, path: _Path) -> None:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    fields = _fields_of(value)
    if fields is None:
        # Nothing in it can be read: a weak reference, a lock, an object of compiled code. Its kind counts.
        if kind not in _left_out:
            _left_out.add(kind)
            warnings.warn(
                f"{_where(path)}: a {kind} has no content that can be hashed, so only its type counts: a difference in "
                "it is not noticed. Give it attributes, or keep it out of the batch",
                stacklevel=user_level(),
            )
        fields = {}
    _header(digest, f"object {kind}", len(fields))
    for name, item in fields.items():
        _feed(digest, name, path)
        _feed(digest, item, (*path, name))


_left_out: set[str] = set()  # kinds of objects, each reported once


def _fields_of(value: Any) -> dict[str, Any] | None:
    """What an object holds: fields, attributes, slots, or what it would be pickled by; None where nothing is known."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, weakref.ref):
        return {}
    fields = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                fields.setdefault(name, getattr(value, name))
    if fields or hasattr(value, "__dict__"):
        return fields
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # it can't be pickled
        return None
    if isinstance(reduced, str):
        return {"name": reduced}
    return {"arguments": reduced[1], "state": reduced[2] if len(reduced) > 2 else None} if reduced[1:] else None


def _where(path: _Path) -> str:
    """``batch['x'][0]`` for ``("batch", "x", 0)``."""
    return f"{path[0]}" + "".join(f"[{part!r}]" for part in path[1:])
