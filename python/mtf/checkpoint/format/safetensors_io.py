"""Safetensors files: written here, so that the hash is of what was meant and not of what the disk gave back.

The file is eight bytes (little-endian length of the header), a JSON header padded with spaces to a multiple of eight,
and the elements. Reading is the library's work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

import torch
from safetensors import SafetensorError, safe_open

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


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor of a file in memory of its own, and the file's metadata.

    Raises:
        CheckpointError: not a valid safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {}
            for name in file.keys():  # noqa: SIM118
                with defer_signals():
                    # The library maps the file; a copy keeps tensors valid when rotation deletes it.
                    tensors[name] = file.get_tensor(name).clone()
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{os.fspath(path)}: is not a valid safetensors file: {error}") from error
