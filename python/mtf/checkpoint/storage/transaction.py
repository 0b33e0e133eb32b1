"""Writing one checkpoint directory so that a kill at any instant leaves the old one or the new one.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mtf.checkpoint.format.manifest import KIND, MANIFEST_NAME, Part, check_file_name, seal_manifest
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.folder import LocalStorage
from mtf.errors import CheckpointError, CheckpointIOError

if TYPE_CHECKING:
    from typing_extensions import Self


class CheckpointFiles:
    """The bookkeeping of a checkpoint that is being written: each file once, and a clean-up on every way out.

    Args:
        label: the checkpoint, for messages.
    """

    def __init__(self, label: object) -> None:
        self._label = label
        self._files: dict[str, Part] = {}
        self._open = True

    def __repr__(self) -> str:
        """The checkpoint, and whether files can still be added."""
        state = "open" if self._open else "closed"
        return f"{type(self).__name__}({str(self._label)!r}, {len(self._files)} files, {state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Deletes what was written; nothing after a commit. Idempotent."""
        raise NotImplementedError

    def adopt_part(self, name: str, part: Part) -> None:
        """Takes in a file that another rank has written, hashed and made durable: nothing is read here."""
        check_file_name(name)
        self._files[name] = part

    def _require_new(self, name: str) -> None:
        check_file_name(name)
        if name in self._files:
            raise CheckpointError(f"{self._label}: the file {name} is written twice")


class Transaction(CheckpointFiles):
    """A checkpoint being written: files go into a hidden sibling of ``path``, and :meth:`commit` gives it the name.

    Usage::

        with Transaction(path) as transaction:
            transaction.add("state.json", [data])
            transaction.commit({"step": 100})

    Leaving the block without a commit deletes what was written. Not thread-safe.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: the checkpoint's final name. What exists there is replaced if it is a checkpoint, else refused.

        Raises:
            CheckpointError: ``path`` exists and is no checkpoint, or the hidden directory can't be made.
        """
        self.path = Path(os.path.abspath(path))
        super().__init__(self.path)
        try:
            check_replaceable(self.path)
            local.make_directories(self.path.parent)
            self.directory = local.hidden_sibling(self.path, local.ROLE_TEMP)
            local.claim_hidden(self.directory)
            os.mkdir(self.directory)
        except OSError as error:
            raise _failure(self.path, error) from error

    def add(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Writes a file and fsyncs it.

        Raises:
            CheckpointError: the name isn't allowed or taken.
            CheckpointIOError: the write fails.
        """
        self._require_new(name)
        try:
            target = self.directory / name
            if "/" in name:
                local.make_directories(target.parent)
            self._files[name] = Part(*local.write_file(target, chunks))
        except OSError as error:
            raise _failure(self.path / name, error) from error

    def adopt(self, name: str) -> None:
        """Takes in a file that somebody else (another rank, another library) has written into :attr:`directory`."""
        check_file_name(name)
        try:
            with local.open_inside(self.directory, name) as fd:
                os.fsync(fd)
                self._files[name] = Part(*local.hash_open_file(fd))
            local.sync_directory((self.directory / name).parent)
        except OSError as error:
            raise _failure(self.path / name, error) from error

    def commit(self, fields: Mapping[str, Any]) -> None:
        """Writes the manifest, last, and publishes the directory under its name. Durable when this returns.

        Args:
            fields: members of the manifest; ``step`` is required.

        Raises:
            CheckpointIOError: it can't be written; what had the name before is still there.
        """
        raw = seal_manifest(fields, self._files)
        try:
            local.write_file(self.directory / MANIFEST_NAME, [raw])
            local.sync_directory(self.directory)
            local.publish(self.directory, self.path)
        except OSError as error:
            raise _failure(self.path, error) from error
        self._open = False

    def abort(self) -> None:
        """Deletes what was written; nothing after a commit. Idempotent."""
        local.release_hidden(self.directory)
        if self._open:
            self._open = False
            with contextlib.suppress(OSError):
                local.remove(self.directory)


def check_replaceable(path: Path) -> None:
    """Refuses to replace anything that isn't a checkpoint.

    Raises:
        CheckpointError: ``path`` is a file, a link, or a directory with something else in it.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise CheckpointError(f"{path}: exists and is no checkpoint directory; it is not replaced")
    if path.is_dir() and os.listdir(path) and not is_checkpoint(path):
        raise CheckpointError(f"{path}: is a directory with other content; it is not replaced by a checkpoint")


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a directory that an mtf checkpoint was written to, possibly damaged since."""
    if path.is_symlink() or not path.is_dir():
        return False
    return has_manifest(LocalStorage(path))


def has_manifest(folder: Storage) -> bool:
    """Whether a checkpoint's manifest is in a folder, possibly damaged.

    Raises:
        OSError: the storage can't be read.
    """
    try:
        with folder.read(MANIFEST_NAME) as file:
            start = file.read(4096)
    except (CheckpointError, FileNotFoundError):
        return False
    return f'"kind": "{KIND}"'.encode() in start


def _failure(path: Path, error: OSError) -> CheckpointIOError:
    return CheckpointIOError(
        f"{path}: the checkpoint can't be written: {error.strerror or error}; what was there before is untouched"
    )
