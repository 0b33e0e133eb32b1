"""Batches of rows of arrays in memory or on disk, gathered by native threads without the GIL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtf import _core
from mtf.config.checks import whole_number
from mtf.config.keywords import checked_keywords
from mtf.data.sources.row_loader import RowLoader
from mtf.errors import ConfigError
from mtf.formatting import shortened

Transform = Callable[[Any, np.random.Generator], Any]

# DLPack's (type code, bits) of what torch takes over directly.
DLPACK: dict[torch.dtype, tuple[int, int]] = {
    torch.int8: (0, 8),
    torch.int16: (0, 16),
    torch.int32: (0, 32),
    torch.int64: (0, 64),
    torch.uint8: (1, 8),
    torch.uint16: (1, 16),
    torch.uint32: (1, 32),
    torch.uint64: (1, 64),
    torch.float16: (2, 16),
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.bfloat16: (4, 16),
    torch.complex32: (5, 32),
    torch.complex64: (5, 64),
    torch.complex128: (5, 128),
    torch.bool: (6, 8),
}

# What numpy can hold the bytes of any torch item in.
RAW: dict[int, torch.dtype] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

import_dlpack: Callable[[Any], torch.Tensor] = torch._C._from_dlpack


@dataclass(frozen=True)
class ArrayColumn:
    """One array as the native source sees it, and how its gathered rows become a tensor."""

    path: str
    array: NDArray[Any]
    torch_name: str
    dlpack: tuple[int, int]
    importer: Callable[[Any], torch.Tensor]


class ArrayLoader(RowLoader):
    """Batches of rows of one or several arrays, as torch tensors.

    The arrays may be tensors on the CPU, numpy arrays and memory maps of any dtype that torch has, any row shape and
    any strides, alone or nested in dicts, lists, tuples and named tuples; a batch has the same structure. Nothing is
    copied but the rows of a batch, so a memory map may be larger than memory. Rows are read on other threads while the
    loop runs: what is written into the arrays meanwhile may or may not be seen by batches ahead.

    Shuffling is a keyed permutation of each pass, computed where it is needed: it takes no memory and opens anywhere at
    once. The global batches don't depend on the number of ranks. Iterated alone it gives one pass per ``iter``, each in
    an order of its own; in a ``MultiLoader`` or ``Trainer`` the schedule decides.
    """

    @checked_keywords(words={"num_workers": "num_threads", "dataset": "data", "collate_fn": "transform"})
    def __init__(
        self,
        data: Any,
        batch_size: int | None = None,
        *,
        global_batch_size: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Transform | None = None,
        seed: int = 0,
        num_threads: int = 1,
        prefetch_batches: int = 8,
        prefetch_bytes: int | None = None,
    ) -> None:
        """Describes the batches; reads no data.

        Args:
            data: Arrays with rows in their first dimension, all with the same number of them.
            batch_size: Rows per batch on each rank.
            global_batch_size: Rows per batch on all ranks together; give this or ``batch_size``.
            shuffle: Each pass in an order of its own, which depends on the key and the pass only.
            drop_last: Leave out an incomplete last batch.
            transform: ``transform(batch, rng)`` makes the batch that is handed out, on the thread that takes it;
                ``rng`` is a numpy generator that belongs to this batch, so results don't depend on threads.
            seed: For iteration without a mixture, which has its own seed.
            num_threads: Threads that fetch ahead. In a mixture: the largest of its sources' counts, unless
                ``prefetch_workers`` is configured. With 0 a batch is fetched when it is asked for.
            prefetch_batches: Batches held ahead when iterated alone.
            prefetch_bytes: Bytes held ahead when iterated alone, or None.

        Raises:
            ConfigError: No array, unequal numbers of rows, a dtype that torch doesn't have, an array on another device,
                or not exactly one batch size.
        """
        self._columns, self._build = flatten_arrays(data)
        self._window: tuple[int, int] | None = None
        self._transform = transform
        if batch_size is None and global_batch_size is None:
            raise ConfigError(
                "give either batch_size (per rank) or global_batch_size, "
                f"but they are {batch_size} and {global_batch_size}"
            )
        self._prepare_rows(
            common_rows(self._columns),
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            seed=seed,
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
            prefetch_bytes=prefetch_bytes,
        )

    @classmethod
    def windows(cls, tokens: Any, length: int, stride: int | None = None, **options: Any) -> ArrayLoader:
        """Batches of windows of a stream: window ``i`` is ``tokens[i * stride : i * stride + length]``.

        Args:
            tokens: One or several arrays of equal length, as for the constructor; a memory map works as well.
            length: Entries of a window; a batch has shape ``[rows, length, ...]``.
            stride: Entries from one window's start to the next one's; None means ``length``, so windows don't overlap.
                Entries after the last whole window aren't seen.
            **options: As for the constructor, ``batch_size`` or ``global_batch_size`` among them.
        """
        loader = cls(tokens, **options)
        window = (
            whole_number("length", length, 1),
            whole_number("stride", length if stride is None else stride, 1),
        )
        loader._window = window
        loader._num_rows = _core.count_windows(loader._num_rows, *window)
        return loader

    def native(self, key: int) -> _core.NativeSource:
        transform, build = self._transform, self._build
        rank, world_size = self._rank, self._world_size

        def finish(tensors: list[torch.Tensor], pass_: int, batch: int) -> Any:
            data = build(tensors)
            if transform is None:
                return data
            batch_key = _core.fold_in(_core.fold_in(key, pass_), batch * world_size + rank)
            return transform(data, np.random.Generator(np.random.Philox(key=batch_key)))

        is_plain = transform is None and self._columns[0].path == ""
        return _core.ArraySource(
            [column.array for column in self._columns],
            [column.dlpack for column in self._columns],
            [column.importer for column in self._columns],
            None if is_plain else finish,
            batch_size=self.global_batch_size,
            key=key,
            shuffle=self._shuffle,
            drop_last=self._drop_last,
            rank=rank,
            world_size=world_size,
            windows=self._window,
            rest=None if self._rest is None else self._rest.to_list(),
        )

    def __repr__(self) -> str:
        """Rows and batches."""
        name = f"{self.name!r}, " if self.name else ""
        order = ", shuffled" if self._shuffle else ""
        batches = f"{self.num_batches()} batches of {self.global_batch_size}"
        return f"ArrayLoader({name}{self.num_rows} rows in {batches}{order})"


def common_rows(columns: list[ArrayColumn]) -> int:
    """The arrays' number of rows, which must be the same."""
    first = columns[0]
    for column in columns:
        if len(column.array) != len(first.array):
            raise ConfigError(
                f"all arrays must have the same number of rows, but {first.path} has {len(first.array)} and "
                f"{column.path} has {len(column.array)}"
            )
    return len(first.array)


def flatten_arrays(data: Any) -> tuple[list[ArrayColumn], Callable[[list[torch.Tensor]], Any]]:
    """The arrays inside ``data`` in order, and a function that puts tensors in their places."""
    columns: list[ArrayColumn] = []

    def visit(node: Any, path: str) -> Callable[[list[torch.Tensor]], Any]:
        if isinstance(node, Mapping):
            keys = list(node)
            values = [visit(node[key], f"{path}[{key!r}]") for key in keys]
            return lambda tensors: {key: value(tensors) for key, value in zip(keys, values, strict=True)}
        if isinstance(node, list | tuple):
            items = [visit(item, f"{path}[{number}]") for number, item in enumerate(node)]
            if isinstance(node, list):
                return lambda tensors: [item(tensors) for item in items]
            make = getattr(type(node), "_make", tuple)  # a named tuple stays one
            return lambda tensors: make([item(tensors) for item in items])
        place = len(columns)
        columns.append(_column(node, path))
        return lambda tensors: tensors[place]

    build = visit(data, "")
    if not columns:
        raise ConfigError("data must hold at least one array, but it is an empty container")
    return columns, build


def _column(leaf: Any, path: str) -> ArrayColumn:
    where = f"data{path}"
    if isinstance(leaf, torch.Tensor):
        array, dtype = _from_tensor(leaf, where)
    elif isinstance(leaf, np.ndarray):
        array, dtype = _from_numpy(leaf, where)
    else:
        raise ConfigError(
            f"{where} must be a tensor or a numpy array, but is {shortened(repr(leaf))}; "
            "numpy.asarray or numpy.memmap makes one"
        )
    if array.ndim == 0:
        raise ConfigError(f"{where} must have rows in its first dimension, but is a scalar")
    name = str(dtype).removeprefix("torch.")
    if dtype in DLPACK:
        return ArrayColumn(path, array, name, DLPACK[dtype], import_dlpack)
    return ArrayColumn(
        path, array, name, DLPACK[RAW[dtype.itemsize]], lambda capsule: import_dlpack(capsule).view(dtype)
    )


def _from_tensor(tensor: torch.Tensor, where: str) -> tuple[NDArray[Any], torch.dtype]:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        raise ConfigError(
            f"{where} must be a dense tensor on the CPU, but is {tensor.layout} {tensor.dtype} on {tensor.device}; "
            "batches are moved to the device when they are taken"
        )
    plain = tensor.detach().resolve_conj().resolve_neg()
    raw = RAW.get(plain.dtype.itemsize)
    if raw is not None and not plain.dtype.is_complex:
        plain = plain.view(raw)
    elif plain.dtype == torch.complex32:
        plain = plain.view(torch.int32)
    return plain.numpy(), tensor.dtype


def _from_numpy(array: NDArray[Any], where: str) -> tuple[NDArray[Any], torch.dtype]:
    if isinstance(array, np.ma.MaskedArray):
        raise ConfigError(f"{where} must be an array without a mask; pass its .data and .mask as two arrays")
    dtype = getattr(torch, "bool" if array.dtype.kind == "b" else array.dtype.name, None)
    if not isinstance(dtype, torch.dtype) or array.dtype.hasobject:
        hint = "; .view('int64') keeps the numbers" if array.dtype.kind in "mM" else ""
        raise ConfigError(f"{where} must have a dtype that torch has, but has {array.dtype!r}{hint}")
    if not array.dtype.isnative:
        raise ConfigError(
            f"{where} must be in this machine's byte order, but has {array.dtype.str!r}; "
            ".astype(array.dtype.newbyteorder('=')) converts it"
        )
    return (array if dtype in DLPACK and array.dtype.kind != "V" else array.view(f"u{array.dtype.itemsize}")), dtype
