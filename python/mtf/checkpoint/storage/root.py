"""What a run's folder of checkpoints does: it lists them, writes, deletes and points at them. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.folder import LocalStorage
from mtf.checkpoint.storage.object_transaction import ObjectTransaction, delete_checkpoint, is_unfinished
from mtf.checkpoint.storage.registry import POINTERS, folder_of, open_storage, read_pointer
from mtf.checkpoint.storage.transaction import Transaction, has_manifest
from mtf.errors import CheckpointIOError


@dataclass(frozen=True)
class Entry:
    """Something in a run's folder that may be a checkpoint.

    Attributes:
        folder: its files.
        name: the name it was saved under, also when it was moved aside since.
        has_manifest: whether a checkpoint was written there, possibly damaged since.
    """

    folder: Storage
    name: str
    has_manifest: bool


class LocalRoot:
    """A run's folder on a file system. Pointers are symbolic links, which mtf never follows.

    Args:
        storage: its files.
    """

    def __init__(self, storage: LocalStorage) -> None:
        self.storage = storage
        self.place = Path(os.path.abspath(storage.root))

    def folder(self, name: str) -> LocalStorage:
        """The checkpoint ``name``, which needn't exist."""
        return LocalStorage(self.place / name)

    def clean(self) -> None:
        """Removes what killed saves left behind, and puts back a checkpoint that one had moved aside."""
        for entry in sorted(os.listdir(self.place)):
            path = self.place / entry
            hidden = local.parse_hidden_sibling(entry)
            if hidden is None or not local.is_stale(path, locked=True):
                continue
            target = self.place / hidden[0]
            with contextlib.suppress(OSError):
                if hidden[1] == local.ROLE_OLD and not target.exists():
                    os.rename(path, target)
                    local.sync_directory(self.place)
                else:
                    local.remove(path)

    def entries(self) -> list[Entry]:
        """Directories, and copies that a killed save moved aside. Links are never followed."""
        try:
            names = sorted(os.listdir(self.place))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointIOError(f"{self.place}: can't be listed: {error.strerror}") from error
        found = []
        for entry in names:
            path, name = self.place / entry, entry
            if (hidden := local.parse_hidden_sibling(entry)) is not None:
                # A save without an atomic exchange was killed between its two renames.
                if hidden[1] != local.ROLE_OLD or (self.place / hidden[0]).exists():
                    continue
                name = hidden[0]
            if not path.is_symlink() and path.is_dir():
                folder = LocalStorage(path)
                found.append(Entry(folder, name, has_manifest(folder)))
        return found

    def remove(self, folder: Storage) -> None:
        """Deletes a checkpoint."""
        assert isinstance(folder, LocalStorage)
        local.remove(folder.root)

    def point(self, pointer: str, name: str) -> None:
        """Points a symbolic link at a sibling in one step."""
        link = self.place / pointer
        if os.path.lexists(link) and not link.is_symlink():
            return
        if link.is_symlink() and os.readlink(link) == name:
            return
        temporary = local.hidden_sibling(link, local.ROLE_TEMP)
        os.symlink(name, temporary)
        os.rename(temporary, link)


class ObjectRoot:
    """A run's folder in any other storage; it does what :class:`LocalRoot` does. Pointers are objects that hold a name.

    Listings may lag behind: checkpoints that this process saved, and those that the pointers name, are looked for by
    name as well, and whatever a listing shows counts only when its manifest can be read.

    Args:
        storage: its files.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.place = storage.url
        self._known: set[str] = set()

    def folder(self, name: str) -> Storage:
        """The checkpoint ``name``, which needn't exist."""
        self._known.add(name)
        return folder_of(self.storage, name)

    def clean(self) -> None:
        """Removes what killed saves left behind."""
        for name in self.storage.list():
            folder = folder_of(self.storage, name.rstrip("/"))
            with contextlib.suppress(OSError):
                if name.endswith("/") and is_unfinished(folder):
                    delete_checkpoint(folder)

    def entries(self) -> list[Entry]:
        """Folders that have a manifest."""
        try:
            names = {name[:-1] for name in self.storage.list() if name.endswith("/")} | self._known
            names |= {name for pointer in POINTERS if (name := read_pointer(self.storage, pointer))}
            folders = {name: folder_of(self.storage, name) for name in sorted(names)}
            found = [Entry(folder, name, has_manifest(folder)) for name, folder in folders.items()]
        except OSError as error:
            raise CheckpointIOError(f"{self.place}: can't be listed: {error.strerror or error}") from error
        return [entry for entry in found if entry.has_manifest]

    def remove(self, folder: Storage) -> None:
        """Deletes a checkpoint."""
        self._known.discard(folder.url.rpartition("/")[2])
        delete_checkpoint(folder)

    def point(self, pointer: str, name: str) -> None:
        """Writes the object that holds the name."""
        if read_pointer(self.storage, pointer) != name:
            self.storage.write_atomic(pointer, [name.encode()])


Root = LocalRoot | ObjectRoot


def open_root(place: str | os.PathLike[str] | Storage) -> Root:
    """A run's folder of checkpoints, which needn't exist.

    Args:
        place: a path, a URL, or a storage.
    """
    storage = open_storage(place)
    return LocalRoot(storage) if isinstance(storage, LocalStorage) else ObjectRoot(storage)


def begin(place: str | Path | Storage) -> Transaction | ObjectTransaction:
    """A checkpoint to be written at a path, a URL or a storage.

    Raises:
        CheckpointError: something else is there.
        CheckpointIOError: it can't be begun.
    """
    storage = open_storage(place)
    return Transaction(storage.root) if isinstance(storage, LocalStorage) else ObjectTransaction(storage)
