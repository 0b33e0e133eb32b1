"""Writers of token files, from the layouts as their projects document them; and what rows should hold."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEGATRON_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def write_megatron(
    prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16", modes: bool = False
) -> None:
    """Documents of sequences of tokens as ``prefix.bin`` and ``prefix.idx``.

    The index: ``MMIDIDX\\0\\0``, version 1 (u64), code of the dtype (u8), number of sequences (u64), number of document
    entries (u64); then all little-endian: length of each sequence (i32), first byte of each sequence (i64), first
    sequence of each document and the number of sequences (i64), and per sequence a mode (i8) where there are modes.
    """
    sequences = [np.asarray(sequence, dtype) for document in documents for sequence in document]
    entries = np.cumsum([0, *(len(document) for document in documents)])
    lengths = [len(sequence) for sequence in sequences]
    pointers = np.cumsum([0, *lengths])[:-1] * np.dtype(dtype).itemsize
    with open(f"{prefix}.bin", "wb") as file:
        for sequence in sequences:
            file.write(sequence.tobytes())
    with open(f"{prefix}.idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00")
        file.write(struct.pack("<Q", 1))
        file.write(struct.pack("<B", MEGATRON_CODES[dtype]))
        file.write(struct.pack("<Q", len(sequences)))
        file.write(struct.pack("<Q", len(entries)))
        file.write(np.asarray(lengths, "<i4").tobytes())
        file.write(np.asarray(pointers, "<i8").tobytes())
        file.write(np.asarray(entries, "<i8").tobytes())
        if modes:
            file.write(np.zeros(len(sequences), "i1").tobytes())


def some_documents(num: int, longest: int, seed: int, eos: int = 0, vocabulary: int = 50_000) -> list[NDArray[Any]]:
    """Documents of 1 to ``longest`` tokens, each ending with ``eos``, which is nowhere else."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, num)
    return [np.append(rng.integers(eos + 1, vocabulary, size - 1), eos) for size in lengths]


def expected_row(
    inputs: NDArray[Any], labels: NDArray[Any], begins: NDArray[np.bool_], ends: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """A row with boundaries: ``begins[t]`` where input t begins a document, ``ends[t]`` where it ends one."""
    positions = np.zeros(len(inputs), np.int32)
    for t in range(1, len(inputs)):
        positions[t] = 0 if begins[t] else positions[t - 1] + 1
    return {
        "input_ids": inputs.astype(np.int64),
        "labels": np.where(ends, -100, labels).astype(np.int64),
        "position_ids": positions,
        "loss_mask": ~ends,
    }
