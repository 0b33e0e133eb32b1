"""FSDPStrategy tensors in a checkpoint: one safetensors file per rank, which any number of ranks reads back.

The files have the layout of ``torch.distributed.checkpoint``'s safetensors storage (a tensor's name, its piece, and
the piece's offsets in the file's metadata), so ``HuggingFaceStorageReader`` reads them. They are written here, so that
each is durable and hashed as it is written, and nothing is ever unpickled. Ranks meet through the key-value store
of the process group, not through collectives, so a background thread can do it while training continues.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch.distributed.tensor import DTensor

from mtf.checkpoint.format.hashing import HashingReader, open_part, read_verified
from mtf.checkpoint.format.manifest import Part
from mtf.checkpoint.format.safetensors_io import (
    DTYPES,
    FILE_DTYPES,
    TensorEntry,
    host_block,
    read_header,
    tensor_chunks,
)
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.object_transaction import ObjectTransaction, write_part
from mtf.checkpoint.storage.signals import defer_signals
from mtf.checkpoint.storage.transaction import Transaction
from mtf.errors import CheckpointError, CheckpointIOError

FOLDER = "sharded"
AnyTransaction = Transaction | ObjectTransaction
_MARK = "mtf.sharded"
_CHUNK_BYTES = 1 << 20
_POLL_S = 0.01
_OBJECTS = "objects"  # what rank 0 says in place of a directory where there is no rename

#: ``(shape, dtype) -> tensor``: where a sharded tensor is loaded to.
Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]


class Store(Protocol):
    """What is used of ``torch.distributed.Store``."""

    def set(self, key: str, value: str) -> None:
        """Writes a value."""

    def get(self, key: str) -> bytes:
        """Reads a value that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""

    def delete_key(self, key: str) -> bool:
        """Forgets a key; returns whether it was there."""


@dataclass(frozen=True)
class Pieces:
    """This rank's pieces of all sharded tensors of a tree."""

    blocks: dict[str, torch.Tensor]
    offsets: dict[str, list[int]]

    def chunks(self) -> Any:
        """The bytes of this rank's file."""
        info = {name: {"saved_offsets": offsets} for name, offsets in self.offsets.items()}
        return tensor_chunks(self.blocks, {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(info)})


def split_shards(tree: Any, *, copy: bool) -> tuple[Any, Pieces]:
    """Splits ``tree`` into a tree without sharded tensors, equal on all ranks, and this rank's pieces.

    Args:
        tree: nested dicts, lists and tuples; ``DTensor`` leaves sharded over one mesh dimension, or replicated.
        copy: pieces get memory of their own, so that training may go on.

    Raises:
        CheckpointError: a tensor sharded in a way that isn't contiguous in one dimension; names its path.
    """
    pieces = Pieces({}, {})

    def visit(node: Any, path: str) -> Any:
        if isinstance(node, DTensor):
            _add_piece(pieces, path, node, copy=copy)
            return {_MARK: path, "shape": list(node.shape), "dtype": FILE_DTYPES[node.dtype]}
        if type(node) is dict:
            return {key: visit(value, f"{path}/{key}") for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(visit(value, f"{path}/{i}") for i, value in enumerate(node))
        return node

    return visit(tree, ""), pieces


def _add_piece(pieces: Pieces, path: str, tensor: DTensor, *, copy: bool) -> None:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if tensor.dtype not in FILE_DTYPES or any(p.is_partial() for p in tensor.placements):
        raise CheckpointError(f"{path}: a sharded tensor of {tensor.dtype}, {tensor.placements} can't be saved")
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    local = tensor.to_local().detach()
    if tuple(local.shape) != tuple(shape):
        raise CheckpointError(f"{path}: this rank's piece has shape {tuple(local.shape)}, expected {tuple(shape)}")
    replicated = all(p.is_replicate() for p in tensor.placements)
    if local.numel() and not (replicated and torch.distributed.get_rank() != 0):
        pieces.blocks[path] = host_block(local, copy=copy)
        pieces.offsets[path] = list(offset)


def holds_pieces(manifest: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has sharded tensors."""
    return any(str(name).startswith(f"{FOLDER}/") for name in manifest.get("files", ()))


def copy_pieces(folder: Storage, manifest: Mapping[str, Any], transaction: AnyTransaction) -> None:
    """Takes the pieces of another checkpoint over, as they are.

    Args:
        folder: the other checkpoint; each of its pieces is read once, and verified meanwhile.
        manifest: its manifest.
        transaction: the new one.

    Raises:
        CheckpointError: a piece is missing or damaged.
    """
    _make_folder(transaction)
    for name, entry in manifest["files"].items():
        if name.startswith(f"{FOLDER}/"):
            read_verified(folder, name, entry, partial(_copy_piece, transaction, name))
    _sync_folder(transaction)


def _copy_piece(transaction: AnyTransaction, name: str, reader: HashingReader, num_bytes: int) -> None:
    transaction.add(name, _chunks(reader, num_bytes))


def _chunks(reader: HashingReader, num_bytes: int) -> Iterator[bytes]:
    while reader.position < num_bytes:
        yield reader.take(min(_CHUNK_BYTES, num_bytes - reader.position))


def _make_folder(transaction: AnyTransaction) -> None:
    if isinstance(transaction, Transaction):
        os.mkdir(transaction.directory / FOLDER)


def _sync_folder(transaction: AnyTransaction) -> None:
    if isinstance(transaction, Transaction):
        local.sync_directory(transaction.directory / FOLDER)


def put_together(tree: Any, folder: Storage, manifest: Mapping[str, Any], allocate: Callable[[str], Allocate]) -> Any:
    """The opposite of :func:`split_shards` on any number of ranks; each reads what it needs, without collectives.

    Args:
        tree: as read from the checkpoint.
        folder: the checkpoint, every file of it verified.
        manifest: its manifest.
        allocate: path in the tree -> how its tensor is made; a ``DTensor`` gets this rank's piece only.

    Raises:
        CheckpointError: pieces are missing, or don't fit each other.
    """
    wanted: dict[str, torch.Tensor] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, dict):
            if _MARK in node:
                name = str(node[_MARK])
                wanted[name] = allocate(name)(tuple(map(int, node["shape"])), DTYPES[node["dtype"]])
                return wanted[name]
            return {key: visit(value) for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(visit(value) for value in node)
        return node

    result = visit(tree)
    covered = dict.fromkeys(wanted, 0)
    for name, entry in manifest["files"].items():
        if name.startswith(f"{FOLDER}/") and wanted:
            with open_part(folder, entry.get("object", name)) as file:
                reader = HashingReader(file, f"{folder.url}/{name}")
                _read_pieces(reader, entry["size"], file, wanted, covered)
    for name, tensor in wanted.items():
        if covered[name] != tensor.numel():
            raise CheckpointError(f"{folder.url}/{FOLDER}: {name} has {covered[name]} of {tensor.numel()} elements")
    return result


def _read_pieces(
    reader: HashingReader, size: int, file: BinaryIO, wanted: Mapping[str, torch.Tensor], covered: dict[str, int]
) -> None:
    """Copies what one file has of each wanted tensor's local part."""
    entries, metadata = read_header(reader, size)
    elements_at = reader.position
    try:
        offsets = {name: info["saved_offsets"] for name, info in json.loads(metadata["DCP_SHARDING_INFO"]).items()}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{reader.label}: doesn't say where its pieces belong") from None
    for entry in entries:
        tensor, begin = wanted.get(entry.name), offsets.get(entry.name)
        if tensor is None:
            continue
        fits = isinstance(begin, list) and len(begin) == len(entry.shape) == tensor.dim()
        if (
            not fits
            or tensor.dtype != entry.dtype
            or any(
                type(b) is not int or not 0 <= b <= b + n <= whole
                for b, n, whole in zip(begin or [], entry.shape, tensor.shape, strict=False)
            )
        ):
            raise CheckpointError(f"{reader.label}: the piece of {entry.name} doesn't fit")
        assert begin is not None
        covered[entry.name] += math.prod(entry.shape)
        _copy_overlap(reader, file, elements_at, entry, begin, tensor)


def _copy_overlap(
    reader: HashingReader, file: BinaryIO, elements_at: int, entry: TensorEntry, begin: list[int], tensor: torch.Tensor
) -> None:
    """Reads the rows of a piece that this rank's part of ``tensor`` has, and copies what overlaps."""
    local, at = _local_part(tensor)
    low = [max(b, a) for b, a in zip(begin, at, strict=True)]
    high = [min(b + n, a + m) for b, n, a, m in zip(begin, entry.shape, at, local.shape, strict=True)]
    if any(lo >= hi for lo, hi in zip(low, high, strict=True)):
        return
    first, rows = (low[0] - begin[0], high[0] - low[0]) if entry.shape else (0, 1)
    block = torch.empty((rows, *entry.shape[1:]) if entry.shape else (), dtype=entry.dtype)
    row_bytes = (entry.end - entry.begin) // (entry.shape[0] if entry.shape else 1)
    file.seek(elements_at + entry.begin + first * row_bytes)
    with defer_signals():
        elements: Any = block.reshape(-1).view(torch.uint8).numpy()
    reader.fill(memoryview(elements))
    inner = [slice(lo - b, hi - b) for lo, hi, b in zip(low[1:], high[1:], begin[1:], strict=True)]
    source = tuple([slice(None), *inner] if entry.shape else [])
    target = tuple(slice(lo - a, hi - a) for lo, hi, a in zip(low, high, at, strict=True))
    local[target].copy_(block[source])


def _local_part(tensor: torch.Tensor) -> tuple[torch.Tensor, Sequence[int]]:
    """What this rank has of a tensor, and where it begins."""
    if not isinstance(tensor, DTensor):
        return tensor, [0] * tensor.dim()
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, at = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), at


class SaveCoordinator:
    """One save of all ranks: rank 0 makes the directory, each rank writes its file, rank 0 publishes.

    Args:
        store: shared by all ranks.
        number: the save's number, the same on all ranks.
        rank: this process among ``world_size``.
        timeout_s: how long ranks wait for each other.
        is_broken: whether a rank is known to have failed, so that waiting makes no sense.
    """

    def __init__(
        self,
        store: Store,
        number: int,
        rank: int,
        world_size: int,
        timeout_s: float,
        is_broken: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._key = f"save/{number}"
        self._rank, self._world_size, self._timeout_s = rank, world_size, timeout_s
        self._is_broken = is_broken

    def lead(self, transaction: AnyTransaction, pieces: Pieces) -> None:
        """Rank 0: its own pieces, then those of all others are taken in.

        Raises:
            CheckpointIOError: a rank couldn't write, or didn't within the timeout; names it.
        """
        _make_folder(transaction)
        place = str(transaction.directory) if isinstance(transaction, Transaction) else _OBJECTS
        self._store.set(f"{self._key}/directory", place)
        transaction.add(file_name(0), pieces.chunks())
        for rank in range(1, self._world_size):
            answer = json.loads(self._wait(f"{self._key}/{rank}", f"rank {rank} hasn't written its part"))
            self._store.delete_key(f"{self._key}/{rank}")
            if "error" in answer:
                raise CheckpointIOError(f"rank {rank} can't write its part of the checkpoint: {answer['error']}")
            part = Part(int(answer["size"]), str(answer["sha256"]), answer.get("object"))
            transaction.adopt_part(file_name(rank), part)
        _sync_folder(transaction)

    def follow(self, folder: Storage, pieces: Pieces) -> None:
        """Every other rank: writes its file and says so.

        Args:
            folder: the checkpoint, as this rank reaches it.
            pieces: what it writes.

        Raises:
            CheckpointIOError: it can't be written; rank 0 has been told.
        """
        directory = self._wait(f"{self._key}/directory", "rank 0 hasn't begun the checkpoint")
        if not directory:
            return  # rank 0 gave the save up, and says why
        try:
            if directory == _OBJECTS:
                part = write_part(folder, file_name(self._rank), pieces.chunks())
            else:
                part = self._write_file(Path(directory) / file_name(self._rank), pieces)
        except CheckpointIOError as error:
            self._store.set(f"{self._key}/{self._rank}", json.dumps({"error": str(error)}))
            raise
        self._store.set(f"{self._key}/{self._rank}", json.dumps(part.to_dict()))

    @staticmethod
    def _write_file(path: Path, pieces: Pieces) -> Part:
        try:
            size, digest = local.write_file(path, pieces.chunks())
            local.sync_directory(path.parent)
        except OSError as error:
            hint = "" if path.parent.is_dir() else "; all ranks must see checkpoint.root_dir, on a shared file system"
            raise CheckpointIOError(f"{path}: can't be written: {error.strerror}{hint}") from error
        return Part(size, digest)

    def give_up(self) -> None:
        """Rank 0: the save ended before it had a directory; the others stop waiting for one."""
        from mtf.distributed.bounded_store import StoreLost

        with contextlib.suppress(StoreLost):  # then they don't wait for it, either
            if not self._store.check([f"{self._key}/directory"]):
                self._store.set(f"{self._key}/directory", "")

    def _wait(self, key: str, complaint: str) -> str:
        from mtf.distributed.bounded_store import StoreLost

        try:
            return self._wait_in_store(key, complaint)
        except StoreLost as error:
            raise CheckpointIOError(f"{complaint}: {error}; the checkpoint doesn't count") from error

    def _wait_in_store(self, key: str, complaint: str) -> str:
        deadline = time.monotonic() + self._timeout_s
        while not self._store.check([key]):
            if self._is_broken():
                raise CheckpointIOError(f"{complaint}, and a rank has failed; the checkpoint doesn't count")
            if time.monotonic() > deadline:
                raise CheckpointIOError(f"{complaint} within {self._timeout_s:g} s; the checkpoint doesn't count")
            time.sleep(_POLL_S)
        return self._store.get(key).decode()


def file_name(rank: int) -> str:
    """Name of a rank's file inside the checkpoint."""
    return f"{FOLDER}/rank-{rank:05d}.safetensors"
