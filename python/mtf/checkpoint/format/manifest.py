"""``manifest.json``: what a checkpoint is, and size and SHA-256 of every other file in it. Imports no torch.

The manifest protects itself as well: its first member ``"sha256"`` is the SHA-256 of the manifest's own bytes with
those 64 digits replaced by zeros. So a flipped bit anywhere in a checkpoint is found before anything in it is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtf.checkpoint.format.hashing import HashingReader, open_part, read_verified
from mtf.checkpoint.format.json_io import dump_json, load_json
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.folder import LocalStorage
from mtf.checkpoint.storage.registry import open_checkpoint
from mtf.errors import CheckpointError

MANIFEST_NAME = "manifest.json"
MODEL_FILE = "model.safetensors"
STATE_TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
SCHEDULE_FILE = "schedule.mtf"
KIND = "mtf-checkpoint"
FORMAT = 2
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
        # guard: file names
        or not all(_COMPONENT.fullmatch(part) for part in parts)
        or name == MANIFEST_NAME
    ):
        raise CheckpointError(f"{label}: the file name {name!r} is not allowed in a checkpoint")


@dataclass(frozen=True)
class Part:
    """A file of a checkpoint.

    Attributes:
        size: in bytes.
        sha256: of its content.
        object: the name it is stored under; None: its own.
    """

    size: int
    sha256: str
    object: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        stored = {} if self.object is None else {"object": self.object}
        return {"size": self.size, "sha256": self.sha256, **stored}


def seal_manifest(fields: Mapping[str, Any], files: Mapping[str, Part]) -> bytes:
    """The bytes of a manifest.

    Args:
        fields: the caller's members (``step`` is required), JSON-able.
        files: every other file of the checkpoint, by name.
    """
    if taken := [name for name in _RESERVED if name in fields]:
        raise CheckpointError(f"{MANIFEST_NAME}: the member {taken[0]!r} is the format's own")
    _check_step(fields.get("step"), MANIFEST_NAME)
    body = {"sha256": "0" * 64, "kind": KIND, "format": FORMAT, **fields}
    body["files"] = {name: part.to_dict() for name, part in files.items()}
    raw = dump_json(body, MANIFEST_NAME, indent=1) + b"\n"
    if len(raw) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{MANIFEST_NAME}: {len(raw)} bytes, more than the limit of {MAX_MANIFEST_BYTES}")
    digest = hashlib.sha256(raw).hexdigest().encode("ascii")
    return raw[:_SEAL_BEGIN] + digest + raw[_SEAL_END:]


def read_manifest(path: str | Path | Storage) -> dict[str, Any]:
    """The manifest of the checkpoint in ``path``, itself verified; the other files are not looked at.

    Args:
        path: a directory, a URL, or the checkpoint's storage.

    Raises:
        CheckpointError: missing, damaged, of another kind or of a newer format; names the file and the reason.
    """
    folder = open_checkpoint(path)
    if isinstance(folder, LocalStorage):
        _check_is_checkpoint(folder.root)
    label = f"{folder.url}/{MANIFEST_NAME}"
    with open_part(folder, MANIFEST_NAME) as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{label}: more than the {MAX_MANIFEST_BYTES} bytes that such a file may have")
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
    # guard: manifest seal
    if not raw.startswith(_SEAL_PREFIX) or stated != actual:
        raise CheckpointError(f"{label}: is damaged: its content doesn't have the SHA-256 it states")
    _check_step(manifest.get("step"), label)
    _check_files(manifest.get("files"), label)
    return manifest


def verify(path: str | Path | Storage) -> dict[str, Any]:
    """Reads the manifest and checks presence, size and SHA-256 of every file it lists, in constant memory.

    Args:
        path: a directory, a URL, or the checkpoint's storage.

    Returns:
        The manifest.

    Raises:
        CheckpointError: names the first file that is wrong and the reason.
    """
    folder = open_checkpoint(path)
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        verify_file(folder, name, expected)
    return manifest


def verify_file(folder: Storage, name: str, expected: Mapping[str, Any]) -> None:
    """Compares one file with its entry in the manifest, in constant memory.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    read_verified(folder, name, expected, _nothing)


def _nothing(reader: HashingReader, num_bytes: int) -> None:
    """Nothing is made of the content."""


def _check_is_checkpoint(path: Path) -> None:
    """A plain word about what ``path`` is when it is no checkpoint."""
    if not path.exists():
        meant = "; the newest of root_dir is called 'latest'" if path.name == "last" else ""
        raise CheckpointError(f"{path}: there is no checkpoint of that name{meant}")
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
            or not isinstance(entry.get("object", name), str)
        ):
            raise CheckpointError(f"{label}: the entry of file {name!r} is not valid")
        check_file_name(str(entry.get("object", name)), label)
