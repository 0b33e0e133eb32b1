"""Tensors of a tree as plain data: contiguous named blocks, and a table that says how each tensor lies in its block.

A table entry is ``{"data": name, "dtype": "float32", "shape": [...]}`` with optionally ``"kind"`` (``numpy`` or
``bytes``; a tensor without it), ``"stride"`` (in elements, when it isn't the row-major one) and ``"offset"`` (in bytes,
for a view of a shared block). The block holds the elements in row-major order, unless the entry has an ``offset``: then
the block is raw bytes (uint8), and stride and offset address elements in it. A dtype that the file format doesn't know
is stored as raw bytes as well, in row-major order and without an offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mtf.checkpoint.format.safetensors_io import FILE_DTYPES, host_block
from mtf.checkpoint.format.tree_path import TreePath, format_path
from mtf.errors import CheckpointError

TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)
_KINDS = ("tensor", "numpy", "bytes")
_REQUIRED = {"data", "dtype", "shape"}
_ALLOWED = _REQUIRED | {"kind", "stride", "offset"}
# Not every release of torch has every one of these.
_KNOWN_DTYPES = """
    bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64
    complex32 complex64 complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
"""
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in _KNOWN_DTYPES.split() if hasattr(torch, name)}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides, in elements, of a contiguous tensor of this shape."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return strides


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill a block without gaps or overlap, in whatever order of dimensions."""
    expected = 1
    for step, size in sorted((s, n) for s, n in zip(stride, shape, strict=True) if n > 1):
        if step != expected:
            return False
        expected *= size
    return True


@dataclass
class _Item:
    """One tensor object of the tree and where its elements lie in its storage."""

    tensor: torch.Tensor
    path: TreePath
    kind: str
    begin: int  # bytes from the start of the storage to the first element
    end: int  # one past the last byte of the last element

    @property
    def layout(self) -> tuple[Any, ...]:
        tensor = self.tensor
        return (self.begin, tensor.dtype, tuple(tensor.shape), tensor.stride())


class TableWriter:
    """Collects the tensors of a tree, then lays them out."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._index: dict[int, int] = {}
        self._keys: list[Any] = []  # keeps every id() in the index alive and hence unique

    def add(self, tensor: torch.Tensor, path: TreePath, kind: str, key: Any = None) -> int:
        """Table index of a tensor; the same object (``key``, or the tensor itself) gets the same index.

        Raises:
            CheckpointError: a sparse, quantised, meta or subclassed tensor; names its path.
        """
        owner = tensor if key is None else key
        if (known := self._index.get(id(owner))) is not None:
            return known
        if type(tensor) not in TENSOR_TYPES:
            raise CheckpointError(
                f"{format_path(path)}: a {type(tensor).__name__}, a tensor subclass, which no checkpoint holds; "
                "take its plain tensor"
            )
        if tensor.layout is not torch.strided or tensor.device.type == "meta" or tensor.dtype not in _DTYPE_NAMES:
            raise CheckpointError(
                f"{format_path(path)}: a tensor of layout {tensor.layout}, dtype {tensor.dtype} on {tensor.device}, "
                "which no checkpoint holds; only dense tensors with data are kept"
            )
        plain = tensor.detach().resolve_conj().resolve_neg()
        size = plain.element_size()
        begin = int(plain.storage_offset()) * size
        last = int(sum((n - 1) * s for n, s in zip(plain.shape, plain.stride(), strict=True))) if plain.numel() else -1
        self._items.append(_Item(plain, path, kind, begin, begin + (last + 1) * size))
        self._keys.append(owner)
        self._index[id(owner)] = len(self._items) - 1
        return len(self._items) - 1

    def finish(
        self, *, copy: bool, spare: Mapping[str, torch.Tensor]
    ) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        """The table and the blocks.

        Args:
            copy: no block shares memory with a tensor that was added.
            spare: blocks of an earlier tree, whose memory copies may take.
        """
        entries: list[dict[str, Any]] = [{} for _ in self._items]
        blocks: dict[str, torch.Tensor] = {}
        for group in self._aliases():
            first = self._items[group[0]]
            name = _block_name(first.path, blocks)
            if all(self._items[i].layout == first.layout for i in group):
                blocks[name] = _block(first.tensor, copy, spare.get(name))
                for i in group:
                    entries[i] = _entry(self._items[i], name)
                continue
            # Rounded down so that every dtype in the group stays aligned to its element size.
            begin = min(self._items[i].begin for i in group) // 16 * 16
            end = max(self._items[i].end for i in group)
            bytes_ = torch.empty(0, dtype=torch.uint8, device=first.tensor.device)
            span = bytes_.set_(first.tensor.untyped_storage(), begin, (end - begin,), (1,))
            blocks[name] = _block(span, copy, spare.get(name))
            for i in group:
                item = self._items[i]
                entries[i] = _entry(item, name) | {"stride": list(item.tensor.stride()), "offset": item.begin - begin}
        return entries, blocks

    def _aliases(self) -> list[list[int]]:
        """Indices of the items, grouped by shared elements; in order of first appearance."""
        by_storage: dict[Any, list[int]] = {}
        groups: list[list[int]] = []
        for i, item in enumerate(self._items):
            elements = (item.end - item.begin) // item.tensor.element_size()
            if item.tensor.numel() == 0 or item.tensor.numel() > elements or item.begin % item.tensor.element_size():
                groups.append([i])  # empty, or expanded: kept by value
            else:
                storage = item.tensor.untyped_storage()
                by_storage.setdefault((item.tensor.device, storage.data_ptr()), []).append(i)
        for members in by_storage.values():
            members.sort(key=lambda i: self._items[i].begin)
            reach = -1
            for i in members:
                if self._items[i].begin < reach:
                    groups[-1].append(i)
                else:
                    groups.append([i])
                reach = max(reach, self._items[i].end)
        for group in groups:
            group.sort()
        return sorted(groups)


def _block(tensor: torch.Tensor, copy: bool, spare: torch.Tensor | None) -> torch.Tensor:
    """The elements in row-major order on the CPU, in a dtype that the file format knows."""
    block = host_block(tensor, copy=copy, spare=spare)
    return block if tensor.dtype in FILE_DTYPES else block.reshape(-1).view(torch.uint8)


def _entry(item: _Item, name: str) -> dict[str, Any]:
    tensor = item.tensor
    entry: dict[str, Any] = {"data": name, "dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape)}
    if item.kind != "tensor":
        entry["kind"] = item.kind
    if not tensor.is_contiguous() and is_dense(tensor.shape, tensor.stride()):
        entry["stride"] = list(tensor.stride())
    return entry


def _block_name(path: TreePath, taken: Mapping[str, Any]) -> str:
    # Lone surrogates can't be in a file's JSON header.
    base = "/".join(str(key) for key in path).encode("utf-8", "replace").decode("utf-8") or "value"
    name, number = base, 1
    while name in taken or name == "__metadata__":
        number += 1
        name = f"{base}#{number}"
    return name


def read_table(entries: Sequence[Any], blocks: Mapping[str, torch.Tensor]) -> list[Any]:
    """The tensors, arrays and bytes of a table, in its order; views of one block share its memory.

    Raises:
        CheckpointError: an entry that doesn't fit its block; names the entry.
    """
    result: list[Any] = []
    shared: dict[tuple[Any, ...], torch.Tensor] = {}
    for i, entry in enumerate(entries):
        try:
            result.append(_read_entry(entry, blocks, shared))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"tensor table, entry {i}: {error}") from None
    return result


def _read_entry(entry: Any, blocks: Mapping[str, torch.Tensor], shared: dict[tuple[Any, ...], torch.Tensor]) -> Any:
    if type(entry) is not dict or not _REQUIRED <= set(entry) <= _ALLOWED:
        raise ValueError("expected an object with data, dtype and shape")
    name, kind = entry["data"], entry.get("kind", "tensor")
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}")
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r} is unknown to this version of torch")
    dtype = _DTYPES[entry["dtype"]]
    shape = _sizes(entry["shape"], "shape")
    stride = _sizes(entry["stride"], "stride") if "stride" in entry else row_major(shape)
    if len(stride) != len(shape):
        raise ValueError("shape and stride differ in length")
    if name not in blocks:
        raise ValueError(f"there is no tensor named {name!r}")
    block = blocks[name]
    offset = _sizes([entry["offset"]], "offset")[0] if "offset" in entry else None
    # One block read by several entries without offset is one memory, whatever order of dimensions it is put in.
    key = (name, entry["dtype"], tuple(shape), tuple(stride))
    if offset is not None:
        tensor = _view_of_bytes(block, dtype, shape, stride, offset)
    elif key in shared:
        tensor = shared[key].view_as(shared[key])
    else:
        tensor = shared[key] = _whole_block(block, dtype, shape, stride)
    if kind == "bytes":
        return bytes(tensor.numpy())
    return tensor.numpy() if kind == "numpy" else tensor


def _sizes(value: Any, what: str) -> list[int]:
    if type(value) is not list or any(type(n) is not int or not 0 <= n < 2**62 for n in value):
        raise ValueError(f"{what} must be non-negative integers")
    return value


def _whole_block(block: torch.Tensor, dtype: torch.dtype, shape: list[int], stride: list[int]) -> torch.Tensor:
    if block.dtype != dtype:
        if block.dtype != torch.uint8 or block.dim() != 1 or dtype in FILE_DTYPES:
            raise ValueError(f"dtype {dtype} doesn't fit the stored {block.dtype}")
        block = block.clone().view(dtype).reshape(shape)
    if list(block.shape) != shape:
        raise ValueError(f"shape {shape} doesn't fit the stored {list(block.shape)}")
    if stride == row_major(shape):
        return block
    if not is_dense(shape, stride):
        raise ValueError(f"stride {stride} leaves gaps or overlaps")
    result = torch.empty_strided(shape, stride, dtype=dtype)
    result.copy_(block)
    return result


def _view_of_bytes(
    block: torch.Tensor, dtype: torch.dtype, shape: list[int], stride: list[int], offset: int
) -> torch.Tensor:
    if block.dtype != torch.uint8 or block.dim() != 1:
        raise ValueError("a view needs a block of raw bytes")
    size = dtype.itemsize
    last = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if math.prod(shape) == 0 or math.prod(shape) > last + 1 or offset + (last + 1) * size > block.numel():
        raise ValueError("a view reaches outside its block")
    if offset % size:
        raise ValueError(f"offset {offset} is no multiple of the element size {size}")
    empty = torch.empty(0, dtype=dtype)
    return empty.set_(block.untyped_storage(), block.storage_offset() // size + offset // size, shape, stride)
