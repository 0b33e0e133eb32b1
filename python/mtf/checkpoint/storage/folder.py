"""A folder of a local or shared file system as a storage. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mtf.checkpoint.storage.base import Lock
from mtf.checkpoint.storage.local import make_directories, open_inside, replace_file
from mtf.checkpoint.storage.lock import DirectoryLock


class LocalStorage:
    """A folder of a local or shared file system; see :class:`mtf.checkpoint.storage.base.Storage`.

    Checkpoints in it are directories that get their name when they are whole (:class:`Transaction`). No link inside
    the folder is ever followed.

    Args:
        root: the folder; it needn't exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def __repr__(self) -> str:
        """The folder."""
        return f"LocalStorage({self.url!r})"

    @contextlib.contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        """The file ``name``, open for reading and seeking.

        Raises:
            CheckpointError: it is missing, is a link or lies behind one, or is no regular file.
        """
        with open_inside(self.root, name) as fd, open(fd, "rb", buffering=0, closefd=False) as file:
            yield file

    def write_atomic(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Writes or replaces a file; it is durable when this returns."""
        path = self.root / name
        make_directories(path.parent)
        replace_file(path, chunks)

    def list(self, folder: str = "") -> list[str]:
        """Names directly in ``folder``; those of directories end with ``/``. A link is no directory."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(e.name + "/" * e.is_dir(follow_symlinks=False) for e in entries)
        except FileNotFoundError:
            return []

    def delete(self, name: str) -> None:
        """Deletes a file; nothing where it is missing."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root / name)

    def lock(self) -> Lock:
        """The claim of a run on the folder."""
        return DirectoryLock(self.root)
