"""Safetensors files: written here, so that the hash is of what was meant and not of what the disk gave back.

The file is eight bytes (little-endian length of the header), a JSON header padded with spaces to a multiple of eight,
and the elements. Both directions are here, because the file is hashed as it is written and as it is read, in one pass
over memory that is the tensors' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mtf.checkpoint.format.hashing import HashingReader
from mtf.checkpoint.format.json_io import MAX_JSON_BYTES, load_json
from mtf.checkpoint.storage.signals import defer_signals
from mtf.errors import CheckpointError

# torch dtype -> its name in the file. Older releases of the library know exactly these.
FILE_DTYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

DTYPES = {name: dtype for dtype, name in FILE_DTYPES.items()}


def host_block(tensor: torch.Tensor, *, copy: bool, spare: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor's elements in row-major order in host memory.

    Args:
        tensor: on any device, in any memory layout.
        copy: the result shares no memory with the tensor.
        spare: memory that a copy may be put into if dtype and shape are the same. Fresh memory costs several times
            more: the system has to find and clear every page of it.
    """
    if not copy:
        return tensor.cpu().contiguous()
    if spare is None or spare.dtype != tensor.dtype or spare.shape != tensor.shape or not spare.is_contiguous():
        spare = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return spare.copy_(tensor)


def tensor_chunks(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece, without a second copy of the tensors.

    Args:
        tensors: CPU tensors of the dtypes in ``FILE_DTYPES``; any memory layout.
        metadata: the file's free-form text entries.
    """
    # Wide elements first: every tensor then begins at a multiple of its element size.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": FILE_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    raw += b" " * (-len(raw) % 8)
    yield len(raw).to_bytes(8, "little")
    yield raw
    for name in names:
        if tensors[name].numel():
            yield tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor's elements lie in a file: bytes [begin, end) after the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_tensors(reader: HashingReader, num_bytes: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor of a file in memory of its own, and the file's metadata. Nothing is held twice.

    Args:
        reader: at the file's beginning.
        num_bytes: of the whole file.

    Raises:
        CheckpointError: not a valid safetensors file.
    """
    entries, metadata = read_header(reader, num_bytes)
    tensors = {}
    for entry in entries:
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.end > entry.begin:
            # torch makes a ValueError of what a signal's handler raises inside a conversion.
            with defer_signals():
                elements: Any = tensor.reshape(-1).view(torch.uint8).numpy()
                view = memoryview(elements)
            reader.fill(view)
        tensors[entry.name] = tensor
    return tensors, metadata


def read_header(reader: HashingReader, num_bytes: int) -> tuple[list[TensorEntry], dict[str, str]]:
    """The tensors of a file in the order of their elements, which fill the file, and its metadata.

    Raises:
        CheckpointError: not a valid safetensors file.
    """
    length = int.from_bytes(reader.take(8), "little") if num_bytes >= 8 else -1
    if not 0 < length <= min(num_bytes - 8, MAX_JSON_BYTES):
        raise _invalid(reader, f"a header of {length} bytes in a file of {num_bytes}")
    try:
        header = load_json(reader.take(length), reader.label)
    except CheckpointError as error:
        raise _invalid(reader, str(error)) from None
    if not isinstance(header, dict):
        raise _invalid(reader, "its header is no object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(reader, "its metadata isn't text")
    entries = sorted((_entry(reader, name, value) for name, value in header.items()), key=lambda e: (e.begin, e.end))
    position = 0
    for entry in entries:
        if entry.begin != position or entry.end - entry.begin != math.prod(entry.shape) * entry.dtype.itemsize:
            raise _invalid(reader, f"{entry.name!r} has bytes {entry.begin} to {entry.end}")
        position = entry.end
    if position != num_bytes - 8 - length:
        raise _invalid(reader, f"{num_bytes - 8 - length} bytes of elements, the header says {position}")
    return entries, metadata


def _entry(reader: HashingReader, name: str, value: Any) -> TensorEntry:
    try:
        begin, end = value["data_offsets"]
        dtype, shape = DTYPES[value["dtype"]], value["shape"]
    except (TypeError, KeyError, ValueError):
        raise _invalid(reader, f"the entry of {name!r} is not valid") from None
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise _invalid(reader, f"the entry of {name!r} is not valid")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _invalid(reader: HashingReader, reason: str) -> CheckpointError:
    return CheckpointError(f"{reader.label}: is not a valid safetensors file: {reason}")
