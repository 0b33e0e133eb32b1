"""The checkpoint directory: weights, state tree, schedule, manifest; written atomically, read only when verified."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtf.call_site import user_level
from mtf.checkpoint.format import codec
from mtf.checkpoint.format.hashing import bounded, read_verified
from mtf.checkpoint.format.json_io import MAX_JSON_BYTES, dump_json, load_json
from mtf.checkpoint.format.manifest import (
    MODEL_FILE,
    SCHEDULE_FILE,
    STATE_FILE,
    STATE_TENSORS_FILE,
    read_manifest,
    verify_file,
)
from mtf.checkpoint.format.safetensors_io import FILE_DTYPES, host_block, read_tensors, tensor_chunks
from mtf.checkpoint.format.tensor_codec import TENSOR_TYPES
from mtf.checkpoint.format.upgrade import upgrade_state
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.folder import LocalStorage
from mtf.checkpoint.storage.object_transaction import ObjectTransaction
from mtf.checkpoint.storage.registry import open_checkpoint, open_storage, place_of
from mtf.checkpoint.storage.root import begin
from mtf.checkpoint.storage.transaction import Transaction
from mtf.errors import CheckpointError

MAX_SCHEDULE_BYTES = 64 << 20
_OWN_FILES = (MODEL_FILE, STATE_TENSORS_FILE, STATE_FILE, SCHEDULE_FILE)


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """What a checkpoint holds; every tensor is in host memory of its own."""

    path: Path | str  # a URL where it isn't on a file system
    manifest: dict[str, Any]
    model: dict[str, Any]  # the model's state_dict: tensors, and whatever `get_extra_state` gave
    state: Any
    schedule: bytes

    def __repr__(self) -> str:
        """Path, position and the number of weights."""
        step, epoch = self.manifest.get("step"), self.manifest.get("epoch")
        return f"Checkpoint({str(self.path)!r}, step={step}, epoch={epoch}, {len(self.model)} entries of the model)"


@dataclass(frozen=True)
class CheckpointPayload:
    """Everything a save writes, already split into JSON and tensors; with ``copy`` it is independent of the run."""

    model: dict[str, torch.Tensor]
    tied: dict[str, str]  # name of a weight -> name of the weight that it is
    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    schedule: bytes

    @classmethod
    def take(
        cls,
        model: Mapping[str, Any],
        state_tree: Any,
        schedule: bytes,
        *,
        copy: bool,
        spare: CheckpointPayload | None = None,
    ) -> CheckpointPayload:
        """
        Args:
            model: a module's ``state_dict()``; entries that aren't tensors are kept with the state.
            state_tree: see :mod:`mtf.checkpoint.format.codec`.
            schedule: the native scheduler's bytes.
            copy: True copies every tensor to host memory, so that training may go on while it is written.
            spare: an earlier payload that nobody needs any more; the copies take its memory.

        Raises:
            CheckpointError: a value that no checkpoint holds; names its path.
        """
        weights, tied, extra = _plain_weights(model, copy=copy, spare={} if spare is None else spare.model)
        encoded, tensors = codec.split(
            {"state": state_tree, "model_extra": extra},
            copy=copy,
            path=(),
            spare=None if spare is None else spare.tensors,
        )
        return cls(weights, tied, encoded, tensors, schedule)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        blocks = (*self.model.values(), *self.tensors.values())
        return sum(block.numel() * block.element_size() for block in blocks)


def write(
    path: str | Path | Storage,
    *,
    model: Mapping[str, Any],
    state_tree: Any,
    schedule: bytes,
    manifest: Mapping[str, Any],
) -> Path | str:
    """Writes a checkpoint directory; an older checkpoint of that name is replaced in one atomic step.

    Args:
        path: the directory's final name, a URL, or a storage.
        model: the model's ``state_dict()``.
        state_tree: everything else, see :mod:`mtf.checkpoint.format.codec`.
        schedule: the native scheduler's bytes.
        manifest: members of the manifest: ``step`` is required; floats may be NaN or infinite, tensors aren't allowed.

    Returns:
        The directory's absolute name, or the URL. It is durable.

    Raises:
        CheckpointError: it holds something that no checkpoint holds.
        CheckpointIOError: it can't be written.
    """
    return write_payload(path, CheckpointPayload.take(model, state_tree, schedule, copy=False), manifest)


def write_payload(path: str | Path | Storage, payload: CheckpointPayload, manifest: Mapping[str, Any]) -> Path | str:
    """:func:`write` for a payload taken before."""
    with begin(path) as transaction:
        fill(transaction, payload)
        transaction.commit(manifest_fields(manifest))
    return place_of(open_storage(path)) if not isinstance(transaction, Transaction) else transaction.path


def fill(transaction: Transaction | ObjectTransaction, payload: CheckpointPayload) -> None:
    """Writes the four files of a payload into a transaction."""
    metadata = {"format": "pt"} | payload.tied
    transaction.add(MODEL_FILE, tensor_chunks(payload.model, metadata))
    transaction.add(STATE_TENSORS_FILE, tensor_chunks(payload.tensors, {"format": "pt"}))
    transaction.add(STATE_FILE, [dump_json(payload.state, STATE_FILE)])
    transaction.add(SCHEDULE_FILE, [payload.schedule])


def manifest_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's members of a manifest as plain JSON, with the versions that wrote it."""
    from mtf import __version__

    encoded, tensors = codec.split(dict(fields), path=("manifest",))
    if tensors:
        raise CheckpointError(f"manifest: holds a tensor ({next(iter(tensors))}); tensors belong into the state")
    result: dict[str, Any] = {"mtf_version": __version__, "torch_version": str(torch.__version__)}
    result.update(encoded["tree"])
    # Counters stay plain numbers, which the tree's encoding doesn't keep above 2^53.
    result.update({name: fields[name] for name in ("step", "epoch") if type(fields.get(name)) is int})
    return result


def decode_fields(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its encoded values (NaN, tuples) as Python values again."""
    result: dict[str, Any] = codec.join({"tree": dict(manifest), "tensors": []}, {}, ("manifest",))
    return result


def read(path: str | Path | Storage, *, verify_shards: bool = True) -> Checkpoint:
    """Reads a checkpoint. Each file is read once, and nothing is returned unless every file is what was written.

    Where ``path`` is missing because a save was killed while it replaced it, the copy set aside by that save is read.

    Args:
        path: a directory, a URL, or the checkpoint's storage.
        verify_shards: also compare files that aren't read here, which are those of sharded tensors.

    Raises:
        CheckpointError: missing, damaged, of a newer format, or no checkpoint at all; names the file and the reason.
        CheckpointIOError: the storage can't give it.
    """
    folder = _find(open_checkpoint(path))
    manifest = read_manifest(folder)
    files = manifest["files"]
    for name in _OWN_FILES:
        if name not in files:
            raise CheckpointError(
                f"{folder.url}/{name}: the manifest doesn't list this file, which every checkpoint has"
            )
    label = f"{folder.url}/{STATE_FILE}"
    encoded = load_json(read_verified(folder, STATE_FILE, files[STATE_FILE], bounded(MAX_JSON_BYTES)), label)
    schedule = read_verified(folder, SCHEDULE_FILE, files[SCHEDULE_FILE], bounded(MAX_SCHEDULE_BYTES))
    weights, metadata = read_verified(folder, MODEL_FILE, files[MODEL_FILE], read_tensors)
    tensors, _ = read_verified(folder, STATE_TENSORS_FILE, files[STATE_TENSORS_FILE], read_tensors)
    for name in files if verify_shards else ():
        if name not in _OWN_FILES:
            verify_file(folder, name, files[name])
    try:
        parts = codec.join(encoded, tensors, ())
        if (
            not isinstance(parts, dict)
            or set(parts) != {"state", "model_extra"}
            or not isinstance(parts["model_extra"], dict)
        ):
            raise CheckpointError("expected the members 'state' and 'model_extra'")
        manifest = decode_fields(manifest)
    except CheckpointError as error:
        raise CheckpointError(f"{label}: {error}") from error
    model: dict[str, Any] = dict(weights)
    for name, twin in metadata.items():
        if name != "format" and twin in weights and name not in weights:  # it is "pt", and so may a weight's name be
            model[name] = weights[twin]
    model |= parts["model_extra"]
    state = upgrade_state(parts["state"], manifest["format"])
    return Checkpoint(place_of(folder), manifest, model, state, schedule)


def _find(folder: Storage) -> Storage:
    """The checkpoint, or its copy that a save moved aside and couldn't put back."""
    if not isinstance(folder, LocalStorage) or folder.root.exists() or not (aside := local.set_aside(folder.root)):
        return folder
    warnings.warn(
        f"{folder.url}: a save was killed while it replaced this; reading {aside[-1].name}",
        local.CheckpointWarning,
        stacklevel=user_level(),
    )
    return LocalStorage(aside[-1])


def _plain_weights(
    model: Mapping[str, Any], *, copy: bool, spare: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """Splits a state_dict into weights that any tool opens, names of tied weights, and the rest.

    Tied weights are stored once, under the first name, and the file's metadata maps the others to it: what
    ``safetensors.torch.save_model`` writes, so that its ``load_model`` understands the file.
    """
    weights: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    extra: dict[str, Any] = {}
    seen: dict[Any, str] = {}
    for name, value in model.items():
        if not isinstance(name, str):
            raise CheckpointError(f"model: the name {name!r} is no string")
        if not _is_plain_weight(value) or name in ("__metadata__", "format"):
            extra[name] = value
            continue
        tensor = value.detach()
        if tensor.numel():
            where = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
            key = (*where, tensor.dtype, tensor.shape, tensor.stride())
            if key in seen:
                tied[name] = seen[key]
                continue
            seen[key] = name
        weights[name] = host_block(tensor, copy=copy, spare=spare.get(name))
    return weights, tied, extra


def _is_plain_weight(value: Any) -> bool:
    return (
        type(value) in TENSOR_TYPES
        and value.layout is torch.strided
        and value.dtype in FILE_DTYPES
        and value.device.type != "meta"
    )
