"""A tree of Python values as JSON plus named tensors, and back, losing nothing.

Kept exactly: None, bool, int of any size, float (every bit, also of NaN), complex, str, bytes, list, tuple, dict in its
order and with keys of these types, Counter, OrderedDict, defaultdict of a builtin type, set, frozenset, numpy scalars
and arrays, and tensors with dtype, shape, dense memory format and aliasing (one tensor in two places stays one; views
that share elements go on sharing them). Everything else is refused with its path in the tree. Nothing is executed on
the way back.

JSON forms (a dict with str keys that don't begin with ``$`` is a plain object, a list a plain array)::

    {"$float": "7ff8000000000000"}                 IEEE 754 bits of a float that isn't finite
    {"$int": "-0x1f"}                              an int beyond 2^53
    {"$str": hex}                                  UTF-8 of a str with lone surrogates in it
    {"$complex": [re, im]}  {"$bytes": base64}
    {"$tuple": [...]}  {"$set": [...]}  {"$frozenset": [...]}
    {"$dict": [[key, value], ...]}                 also $counter, $ordered
    {"$defaultdict": ["list", [[key, value], ...]]}
    {"$numpy": ["float32", hex]}                   a numpy scalar, little-endian
    {"$tensor": i}                                 entry i of the tensor table
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from mtf.checkpoint.format import tensor_codec
from mtf.checkpoint.format.tree_path import TreePath, format_path
from mtf.errors import CheckpointError

MAX_DEPTH = 100
_JSON_EXACT_INT = 2**53
_INLINE_BYTES = 4096
_FACTORIES: dict[str, Callable[[], Any]] = {
    t.__name__: t for t in (bool, int, float, str, list, dict, set, tuple, bytes)
}
_NUMPY_DTYPES = """
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128
"""
NUMPY_DTYPES = frozenset(_NUMPY_DTYPES.split())


def split(
    tree: Any,
    *,
    copy: bool = False,
    path: TreePath = ("state",),
    spare: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Splits a tree into a JSON-able object and the tensors it refers to.

    Args:
        tree: what this module's first paragraph lists.
        copy: True copies every tensor into host memory that nothing else refers to; False may return the given tensors.
        path: what messages and tensor names begin with.
        spare: tensors of an earlier result that nobody needs any more; copies take their memory where they fit.

    Returns:
        ``{"tree": ..., "tensors": [...]}`` and tensors by name, all contiguous and on the CPU.

    Raises:
        CheckpointError: a value of another type, deeper nesting than ``MAX_DEPTH``, or a cycle; names the path.
    """
    table = tensor_codec.TableWriter()
    encoded = _Encoder(table).encode(tree, path)
    entries, tensors = table.finish(copy=copy, spare=spare or {})
    return {"tree": encoded, "tensors": entries}, tensors


def join(encoded: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], path: TreePath = ("state",)) -> Any:
    """The inverse of :func:`split`. The result may share memory with ``tensors``.

    Raises:
        CheckpointError: the object isn't one that :func:`split` makes; names the place.
    """
    if (
        not isinstance(encoded, Mapping)
        or set(encoded) != {"tree", "tensors"}
        or not isinstance(encoded["tensors"], list)
    ):
        raise CheckpointError("state: expected an object with 'tree' and a list 'tensors'")
    return _Decoder(tensor_codec.read_table(encoded["tensors"], tensors)).decode(encoded["tree"], path)


def copy_tree(tree: Any) -> Any:
    """A deep copy of a tree with every tensor in host memory and aliasing kept.

    Raises:
        CheckpointError: as :func:`split`.
    """
    return join(*split(tree, copy=True))


class _Encoder:
    def __init__(self, table: tensor_codec.TableWriter) -> None:
        self._table = table

    def encode(self, value: Any, path: TreePath) -> Any:
        if len(path) > MAX_DEPTH:
            raise CheckpointError(
                f"{format_path(path[:4])}...: nested deeper than {MAX_DEPTH} levels (does it contain itself?)"
            )
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return value if _is_unicode(value) else {"$str": value.encode("utf-8", "surrogatepass").hex()}
        if kind is int:
            return value if -_JSON_EXACT_INT <= value <= _JSON_EXACT_INT else {"$int": hex(value)}
        if kind is float:
            return value if value - value == 0.0 else {"$float": struct.pack(">d", value).hex()}
        if kind is list:
            return [self.encode(item, (*path, i)) for i, item in enumerate(value)]
        if kind is dict:
            if all(type(key) is str and not key.startswith("$") and _is_unicode(key) for key in value):
                return {key: self.encode(item, (*path, key)) for key, item in value.items()}
            return {"$dict": self._pairs(value, path)}
        if isinstance(value, torch.Tensor):
            return {"$tensor": self._table.add(value, path, "tensor")}
        return self._rare(value, kind, path)

    def _rare(self, value: Any, kind: type, path: TreePath) -> Any:
        if kind is tuple:
            return {"$tuple": [self.encode(item, (*path, i)) for i, item in enumerate(value)]}
        if kind is bytes:
            if len(value) <= _INLINE_BYTES:
                return {"$bytes": base64.b64encode(value).decode("ascii")}
            data = torch.frombuffer(bytearray(value), dtype=torch.uint8)
            return {"$tensor": self._table.add(data, path, "bytes")}
        if kind is complex:
            return {"$complex": [self.encode(value.real, path), self.encode(value.imag, path)]}
        if kind is Counter:
            return {"$counter": self._pairs(value, path)}
        if kind is OrderedDict:
            return {"$ordered": self._pairs(value, path)}
        if kind is defaultdict:
            factory = value.default_factory
            name = None if factory is None else getattr(factory, "__name__", "")
            if name is not None and _FACTORIES.get(name) is not factory:
                raise CheckpointError(
                    f"{format_path(path)}: a defaultdict whose default_factory {factory!r} is no builtin type"
                )
            return {"$defaultdict": [name, self._pairs(value, path)]}
        if kind is set or kind is frozenset:
            # Sets have no order of their own; sorted by representation, equal sets give equal files.
            items = [self._key(item, path) for item in value]
            return {f"${kind.__name__}": sorted(items, key=repr)}
        if isinstance(value, np.generic) and value.dtype.name in NUMPY_DTYPES:
            return {"$numpy": [value.dtype.name, value.astype(value.dtype.newbyteorder("<")).tobytes().hex()]}
        if kind is np.ndarray:
            if value.dtype.name not in NUMPY_DTYPES or not value.dtype.isnative:
                raise CheckpointError(
                    f"{format_path(path)}: a numpy array of dtype {value.dtype}, which no checkpoint holds"
                )
            return {"$tensor": self._table.add(_as_tensor(value), path, "numpy", key=value)}
        raise CheckpointError(
            f"{format_path(path)}: a {kind.__module__}.{kind.__qualname__}, which no checkpoint holds; "
            "turn it into numbers, strings, bytes, lists, dicts or tensors (state_dict)"
        )

    def _pairs(self, value: Mapping[Any, Any], path: TreePath) -> list[list[Any]]:
        return [[self._key(key, path), self.encode(item, (*path, key))] for key, item in value.items()]

    def _key(self, key: Any, path: TreePath) -> Any:
        if not _is_key(key):
            raise CheckpointError(f"{format_path(path)}: a key of type {type(key).__module__}.{type(key).__qualname__}")
        return self.encode(key, path)


def _is_unicode(text: str) -> bool:
    """False with lone surrogates in it, two of which JSON would take for one character."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_key(key: Any) -> bool:
    if type(key) in (tuple, frozenset):
        return all(_is_key(item) for item in key)
    return key is None or type(key) in (bool, int, float, complex, str, bytes) or isinstance(key, np.generic)


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A tensor with the array's elements and, where torch can express it, its memory layout."""
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy(order="K")
    if any(stride % max(array.itemsize, 1) or stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(array)


class _Decoder:
    def __init__(self, table: list[Any]) -> None:
        self._table = table
        self._tags: dict[str, Callable[[Any, TreePath], Any]] = {
            "$float": self._float,
            "$int": self._int,
            "$str": self._str,
            "$complex": lambda v, p: complex(*self._typed(v, p, float, 2)),
            "$bytes": self._bytes,
            "$tuple": lambda v, p: tuple(self._items(v, p)),
            "$set": lambda v, p: self._hashed(set, self._items(v, p), p),
            "$frozenset": lambda v, p: self._hashed(frozenset, self._items(v, p), p),
            "$dict": lambda v, p: dict(self._pairs(v, p)),
            "$counter": self._counter,
            "$ordered": lambda v, p: OrderedDict(self._pairs(v, p)),
            "$defaultdict": self._defaultdict,
            "$numpy": self._numpy,
            "$tensor": self._tensor,
        }

    def decode(self, value: Any, path: TreePath) -> Any:
        if len(path) > MAX_DEPTH:
            raise CheckpointError(f"{format_path(path[:4])}...: nested deeper than {MAX_DEPTH} levels")
        kind = type(value)
        if kind is list:
            return self._items(value, path)
        if kind is not dict:
            return value
        tagged = [key for key in value if key.startswith("$")]
        if not tagged:
            return {key: self.decode(item, (*path, key)) for key, item in value.items()}
        if len(value) != 1 or tagged[0] not in self._tags:
            raise self._bad(path, f"unknown form {tagged[0]!r}")
        return self._tags[tagged[0]](value[tagged[0]], path)

    @staticmethod
    def _bad(path: TreePath, reason: str) -> CheckpointError:
        return CheckpointError(f"{format_path(path)}: {reason}")

    def _items(self, value: Any, path: TreePath) -> list[Any]:
        if type(value) is not list:
            raise self._bad(path, "expected a list")
        return [self.decode(item, (*path, i)) for i, item in enumerate(value)]

    def _typed(self, value: Any, path: TreePath, kind: type, count: int) -> list[Any]:
        items = self._items(value, path)
        if len(items) != count or any(type(item) is not kind for item in items):
            raise self._bad(path, f"expected {count} values of type {kind.__name__}")
        return items

    def _pairs(self, value: Any, path: TreePath) -> list[tuple[Any, Any]]:
        if type(value) is not list or any(type(pair) is not list or len(pair) != 2 for pair in value):
            raise self._bad(path, "expected a list of pairs")
        result = []
        seen = set()
        for encoded_key, item in value:
            key = self.decode(encoded_key, path)
            if not _is_key(key):
                raise self._bad(path, f"a key of type {type(key).__name__}")
            seen.add(key)
            result.append((key, self.decode(item, (*path, key))))
        if len(seen) != len(result):
            raise self._bad(path, "a key occurs twice")
        return result

    def _hashed(self, kind: Callable[[list[Any]], Any], items: list[Any], path: TreePath) -> Any:
        if not all(_is_key(item) for item in items):
            raise self._bad(path, "a set of values that can't be in a set")
        return kind(items)

    def _float(self, value: Any, path: TreePath) -> float:
        return float(struct.unpack(">d", self._hex(value, path, 8))[0])

    def _hex(self, value: Any, path: TreePath, num_bytes: int) -> bytes:
        try:
            raw = bytes.fromhex(value)
        except (TypeError, ValueError):
            raise self._bad(path, "expected hexadecimal digits") from None
        if len(raw) != num_bytes:
            raise self._bad(path, f"expected {num_bytes} bytes in hexadecimal, got {len(raw)}")
        return raw

    def _int(self, value: Any, path: TreePath) -> int:
        try:
            return int(value, 16)
        except (TypeError, ValueError):
            raise self._bad(path, "expected a hexadecimal integer") from None

    def _str(self, value: Any, path: TreePath) -> str:
        try:
            return bytes.fromhex(value).decode("utf-8", "surrogatepass")
        except (TypeError, ValueError):
            raise self._bad(path, "expected UTF-8 in hexadecimal") from None

    def _bytes(self, value: Any, path: TreePath) -> bytes:
        try:
            return base64.b64decode(value, validate=True)
        except (TypeError, ValueError, binascii.Error):
            raise self._bad(path, "expected base64") from None

    def _counter(self, value: Any, path: TreePath) -> Counter[Any]:
        result: Counter[Any] = Counter()
        # `Counter(pairs)` would count the pairs; item assignment keeps values and order.
        for key, count in self._pairs(value, path):
            result[key] = count
        return result

    def _defaultdict(self, value: Any, path: TreePath) -> defaultdict[Any, Any]:
        if type(value) is not list or len(value) != 2 or value[0] not in (None, *_FACTORIES):
            raise self._bad(path, "expected the name of a builtin type and a list of pairs")
        factory = None if value[0] is None else _FACTORIES[value[0]]
        return defaultdict(factory, self._pairs(value[1], path))

    def _numpy(self, value: Any, path: TreePath) -> np.generic:
        if type(value) is not list or len(value) != 2 or value[0] not in (*NUMPY_DTYPES,):
            raise self._bad(path, "expected a numpy dtype and hexadecimal digits")
        dtype = np.dtype(value[0]).newbyteorder("<")
        scalar = np.frombuffer(self._hex(value[1], path, dtype.itemsize), dtype=dtype)[0]
        result: np.generic = np.dtype(value[0]).type(scalar)
        return result

    def _tensor(self, value: Any, path: TreePath) -> Any:
        if type(value) is not int or not 0 <= value < len(self._table):
            raise self._bad(path, "refers to no entry of the tensor table")
        return self._table[value]
