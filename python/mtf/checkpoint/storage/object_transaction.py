"""Writing a checkpoint where there is no rename: parts named by their content, then the manifest. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mtf.checkpoint.format.manifest import MANIFEST_NAME, Part, check_file_name, read_manifest, seal_manifest
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.transaction import CheckpointFiles
from mtf.errors import CheckpointError, CheckpointIOError

_PART = re.compile(r".*-[0-9a-f]{32}(\.[A-Za-z0-9]+)?")


class ObjectTransaction(CheckpointFiles):
    """A checkpoint being written to a storage; as :class:`mtf.checkpoint.Transaction`, without a rename.

    The checkpoint counts from the moment its manifest is there. What replaces a checkpoint has parts of other names,
    so the old one is whole until then; its parts are deleted afterwards. Not thread-safe.

    Args:
        folder: the checkpoint.

    Raises:
        CheckpointError: something else is in ``folder``.
        CheckpointIOError: the storage can't be read.
    """

    def __init__(self, folder: Storage) -> None:
        super().__init__(folder.url)
        self._folder = folder
        with _failures(folder.url):
            self._refuse_other_content()

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Uploads a file.

        Raises:
            CheckpointError: the name isn't allowed or taken.
            CheckpointIOError: the upload fails.
        """
        self._require_new(name)
        self._files[name] = write_part(self._folder, name, chunks)

    def commit(self, fields: Mapping[str, Any]) -> None:
        """Writes the manifest, last. Durable when this returns.

        Args:
            fields: members of the manifest; ``step`` is required.

        Raises:
            CheckpointIOError: it can't be written; the checkpoint that was here before still is.
        """
        raw = seal_manifest(fields, self._files)
        with _failures(self._folder.url):
            self._folder.write_atomic(MANIFEST_NAME, [raw])
        self._open = False
        with contextlib.suppress(OSError):  # what is left over costs space and nothing else
            _delete_parts(self._folder, {part.object for part in self._files.values()})

    def abort(self) -> None:
        """Deletes what was uploaded; nothing after a commit. Idempotent."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(OSError, CheckpointError):
            _delete_parts(self._folder, _listed(self._folder), among={part.object for part in self._files.values()})

    def _refuse_other_content(self) -> None:
        names = _files_in(self._folder)
        if MANIFEST_NAME not in names and any(not _PART.fullmatch(name) for name in names):
            raise CheckpointError(f"{self._folder.url}: has other content; it is not replaced by a checkpoint")


def write_part(folder: Storage, name: str, chunks: Iterable[bytes | memoryview]) -> Part:
    """Uploads a file of a checkpoint under a name that its content makes.

    Raises:
        CheckpointError: the name isn't allowed.
        CheckpointIOError: the upload fails.
    """
    check_file_name(name)
    pieces = list(chunks)  # views of memory that the caller keeps: nothing is copied
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += memoryview(piece).nbytes
    stem, dot, suffix = name.rpartition(".")
    stored = f"{stem if dot else suffix}-{digest.hexdigest()[:32]}{dot + suffix if dot else ''}"
    with _failures(f"{folder.url}/{name}"):
        folder.write_atomic(stored, pieces)
    return Part(size, digest.hexdigest(), stored)


def delete_checkpoint(folder: Storage) -> None:
    """Deletes a checkpoint: it stops to count before the first of its parts disappears."""
    folder.delete(MANIFEST_NAME)
    _delete_parts(folder, set())


def is_unfinished(folder: Storage) -> bool:
    """Whether nothing but parts of a save that was killed is in ``folder``."""
    names = _files_in(folder)
    if not names or MANIFEST_NAME in names or any(not _PART.fullmatch(name) for name in names):
        return False
    try:  # listings may lag behind, a read doesn't
        with folder.read(MANIFEST_NAME):
            return False
    except FileNotFoundError:
        return True


def _delete_parts(folder: Storage, kept: set[str | None], among: set[str | None] | None = None) -> None:
    for name in _files_in(folder) if among is None else among:
        if name is not None and name not in kept and _PART.fullmatch(name):
            folder.delete(name)


def _listed(folder: Storage) -> set[str | None]:
    """Names of the parts of the checkpoint that is here; none where there is none."""
    try:
        with folder.read(MANIFEST_NAME):
            pass
    except FileNotFoundError:
        return set()
    return {entry.get("object", name) for name, entry in read_manifest(folder)["files"].items()}


def _files_in(folder: Storage) -> list[str]:
    """Every file of a checkpoint, those one level down included."""
    found = []
    for name in folder.list():
        found += [name + inner for inner in folder.list(name.rstrip("/"))] if name.endswith("/") else [name]
    return found


@contextlib.contextmanager
def _failures(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointIOError(
            f"{label}: the checkpoint can't be written: {error.strerror or error}; what was there before is untouched"
        ) from error
