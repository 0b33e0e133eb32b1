"""``manifest.json``: what a checkpoint is, and size and SHA-256 of every other file in it. Imports no torch.

The manifest protects itself as well: its first member ``"sha256"`` is the SHA-256 of the manifest's own bytes with
those 64 digits replaced by zeros. So a flipped bit anywhere in a checkpoint is found before anything in it is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf.checkpoint.format.json_io import dump_json, load_json
from mtf.checkpoint.storage.local import hash_open_file, open_inside, read_bounded
from mtf.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
MODEL_FILE = "model.safetensors"
STATE_TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
SCHEDULE_FILE = "schedule.mtf"
KIND = "mtf-checkpoint"
FORMAT = 1
MAX_MANIFEST_BYTES = 16 << 20

_SEAL_PREFIX = b'{\n "sha256": "'
_SEAL_BEGIN = len(_SEAL_PREFIX)
_SEAL_END = _SEAL_BEGIN + 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_RESERVED = ("sha256", "kind", "format", "files")


def check_file_name(name: str, label: str = MANIFEST_NAME) -> None:
    """Refuses names that could lead out of the directory or hide in it.

    Raises:
        CheckpointError: not one to four components of letters, digits, ``_``, ``.`` and ``-``, none beginning with
            ``.`` or ``-``.
    """
    parts = name.split("/")
    if (
        len(parts) > 4
        or len(name) > 255
        or not all(_COMPONENT.fullmatch(part) for part in parts)
        or name == MANIFEST_NAME
    ):
        raise CheckpointError(f"{label}: the file name {name!r} is not allowed in a checkpoint")


def seal_manifest(fields: Mapping[str, Any], files: Mapping[str, tuple[int, str]]) -> bytes:
    """The bytes of a manifest.

    Args:
        fields: the caller's members (``step`` is required), JSON-able.
        files: size in bytes and SHA-256 of every other file of the checkpoint, by name.
    """
    if taken := [name for name in _RESERVED if name in fields]:
        raise CheckpointError(f"{MANIFEST_NAME}: the member {taken[0]!r} is the format's own")
    _check_step(fields.get("step"), MANIFEST_NAME)
    body = {"sha256": "0" * 64, "kind": KIND, "format": FORMAT, **fields}
    body["files"] = {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()}
    raw = dump_json(body, MANIFEST_NAME, indent=1) + b"\n"
    if len(raw) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{MANIFEST_NAME}: {len(raw)} bytes, more than the limit of {MAX_MANIFEST_BYTES}")
    digest = hashlib.sha256(raw).hexdigest().encode("ascii")
    return raw[:_SEAL_BEGIN] + digest + raw[_SEAL_END:]


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of the checkpoint in directory ``path``, itself verified; the other files are not looked at.

    Raises:
        CheckpointError: missing, damaged, of another kind or of a newer format; names the file and the reason.
    """
    path = Path(path)
    _check_is_checkpoint(path)
    label = str(path / MANIFEST_NAME)
    with open_inside(path, MANIFEST_NAME) as fd:
        raw = read_bounded(fd, MAX_MANIFEST_BYTES, label)
    if not raw:
        raise CheckpointError(f"{label}: is empty")
    manifest = load_json(raw, label)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise CheckpointError(f"{label}: is not the manifest of an mtf checkpoint")
    version = manifest.get("format")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{label}: the format version {version!r} is not valid")
    if version > FORMAT:
        raise CheckpointError(
            f"{label}: has format version {version}, this mtf reads up to {FORMAT}; "
            f"load it with the mtf that wrote it or a newer one"
        )
    stated = raw[_SEAL_BEGIN:_SEAL_END]
    actual = hashlib.sha256(raw[:_SEAL_BEGIN] + b"0" * 64 + raw[_SEAL_END:]).hexdigest().encode("ascii")
    if not raw.startswith(_SEAL_PREFIX) or stated != actual:
        raise CheckpointError(f"{label}: is damaged: its content doesn't have the SHA-256 it states")
    _check_step(manifest.get("step"), label)
    _check_files(manifest.get("files"), label)
    return manifest


def verify(path: str | Path) -> dict[str, Any]:
    """Reads the manifest and checks presence, size and SHA-256 of every file it lists, in constant memory.

    Returns:
        The manifest.

    Raises:
        CheckpointError: names the first file that is wrong and the reason.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        label = path / name
        with open_inside(path, name) as fd:
            size, digest = hash_open_file(fd)
        if size != expected["size"]:
            raise CheckpointError(f"{label}: is damaged: {size} bytes long, the manifest says {expected['size']}")
        if digest != expected["sha256"]:
            raise CheckpointError(f"{label}: is damaged: its content doesn't have the SHA-256 that the manifest states")
    return manifest


def _check_is_checkpoint(path: Path) -> None:
    """A plain word about what ``path`` is when it is no checkpoint."""
    if not path.exists():
        raise CheckpointError(f"{path}: there is no checkpoint of that name")
    if not path.is_dir():
        with open(path, "rb") as file:
            start = file.read(8)
        kind = (
            "a zip archive (torch.save?)"
            if start.startswith(b"PK")
            else "a pickle"
            if start.startswith(b"\x80")
            else "a file"
        )
        raise CheckpointError(
            f"{path}: is {kind}; an mtf checkpoint is a directory with a {MANIFEST_NAME}, nothing else is opened"
        )
    if not (path / MANIFEST_NAME).is_symlink() and not (path / MANIFEST_NAME).exists():
        hint = " (it looks like one of torch.distributed.checkpoint)" if (path / ".metadata").exists() else ""
        raise CheckpointError(f"{path}: is not an mtf checkpoint{hint}: the file {MANIFEST_NAME} is missing")


def _check_step(step: Any, label: str) -> None:
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{label}: the member 'step' must be a non-negative integer, got {step!r}")


def _check_files(files: Any, label: str) -> None:
    if not isinstance(files, dict):
        raise CheckpointError(f"{label}: the member 'files' is missing")
    for name, entry in files.items():
        check_file_name(name, label)
        if (
            not isinstance(entry, dict)
            or type(entry.get("size")) is not int
            or not isinstance(entry.get("sha256"), str)
            or not _DIGEST.fullmatch(entry["sha256"])
        ):
            raise CheckpointError(f"{label}: the entry of file {name!r} is not valid")
