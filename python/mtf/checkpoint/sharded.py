"""FSDPStrategy tensors in a checkpoint: one safetensors file per rank, which any number of ranks reads back.

The files have the layout of ``torch.distributed.checkpoint``'s safetensors storage (a tensor's name, its piece, and
the piece's offsets in the file's metadata), so ``HuggingFaceStorageReader`` reads them. They are written here, so that
each is durable and hashed as it is written, and nothing is ever unpickled. Ranks meet through the key-value store
of the process group, not through collectives, so a background thread can do it while training goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.tensor import DTensor

from mtf.checkpoint.format.safetensors_io import DTYPES, FILE_DTYPES, host_block, tensor_chunks
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.transaction import Transaction
from mtf.errors import CheckpointError, CheckpointIOError

FOLDER = "sharded"
_MARK = "mtf.sharded"
_POLL_S = 0.01

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


def put_together(tree: Any, path: Path, allocate: Callable[[str], Allocate]) -> Any:
    """The opposite of :func:`split_shards` on any number of ranks; each reads what it needs, without collectives.

    Args:
        tree: as read from the checkpoint.
        path: the checkpoint, every file of it verified.
        allocate: path in the tree -> how its tensor is made; a ``DTensor`` gets this rank's piece only.

    Raises:
        CheckpointError: pieces are missing, or don't fit each other.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

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

    reader = HuggingFaceStorageReader(str(path / FOLDER))
    known = reader.read_metadata().state_dict_metadata
    result = visit(tree)
    for name, tensor in wanted.items():
        saved: Any = known.get(name)
        covered = sum(torch.Size(chunk.sizes).numel() for chunk in saved.chunks) if saved is not None else 0
        if saved is None or torch.Size(saved.size) != tensor.shape or covered != tensor.numel():
            raise CheckpointError(f"{path / FOLDER}: {name} has {covered} of {tensor.numel()} elements")
    if wanted:
        with warnings.catch_warnings():
            # It says that no process group is used, which is what was asked for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            load(dict(wanted), storage_reader=HuggingFaceStorageReader(str(path / FOLDER)), no_dist=True)
    return result


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

    def lead(self, transaction: Transaction, pieces: Pieces) -> None:
        """Rank 0: its own pieces, then those of all others are taken in.

        Raises:
            CheckpointError: a rank couldn't write, or didn't within the timeout; names it.
        """
        os.mkdir(transaction.directory / FOLDER)
        self._store.set(f"{self._key}/directory", str(transaction.directory))
        transaction.add(file_name(0), pieces.chunks())
        for rank in range(1, self._world_size):
            answer = json.loads(self._wait(f"{self._key}/{rank}", f"rank {rank} hasn't written its part"))
            self._store.delete_key(f"{self._key}/{rank}")
            if "error" in answer:
                raise CheckpointIOError(f"rank {rank} can't write its part of the checkpoint: {answer['error']}")
            transaction.adopt_hashed(file_name(rank), int(answer["size"]), str(answer["sha256"]))
        local.sync_directory(transaction.directory / FOLDER)

    def follow(self, pieces: Pieces) -> None:
        """Every other rank: writes its file and says so.

        Raises:
            CheckpointError: it can't be written; rank 0 has been told.
        """
        directory = self._wait(f"{self._key}/directory", "rank 0 hasn't begun the checkpoint")
        if not directory:
            return  # rank 0 gave the save up, and says why
        path = Path(directory) / file_name(self._rank)
        try:
            size, digest = local.write_file(path, pieces.chunks())
            local.sync_directory(path.parent)
        except OSError as error:
            hint = "" if path.parent.is_dir() else "; all ranks must see checkpoint.root_dir, on a shared file system"
            self._store.set(f"{self._key}/{self._rank}", json.dumps({"error": f"{path}: {error.strerror}{hint}"}))
            raise CheckpointIOError(f"{path}: can't be written: {error.strerror}{hint}") from error
        self._store.set(f"{self._key}/{self._rank}", json.dumps({"size": size, "sha256": digest}))

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
