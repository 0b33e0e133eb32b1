"""Where checkpoints are kept: five operations on files, which a local folder and an object store both have.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol, runtime_checkable


class Lock(Protocol):
    """One run's claim on a storage."""

    @property
    def held(self) -> bool:
        """Whether this object holds it in this process."""

    def acquire(self) -> None:
        """Takes it; nothing if it is held already.

        Raises:
            CheckpointError: another run holds it; names that run, and what to do if it is gone.
            OSError: the storage can't be written.
        """

    def release(self) -> None:
        """Gives it back. Idempotent."""

    @property
    def token(self) -> str:
        """What tells this claim from every other one; empty while nothing is claimed."""

    def holder_token(self) -> str:
        """The token of the claim that is in the storage, as this process sees it; empty where there is none."""

    def waiting_for(self) -> str | None:
        """Why :meth:`acquire` would refuse now and needn't in a while, in words; None if it should be called now."""


@runtime_checkable
class Storage(Protocol):
    """Files under one root. Names are relative, joined by ``/``.

    An implementation retries what may pass by itself, within a bound, and raises ``OSError`` when it gives up. Every
    method may be called from any thread.

    Attributes:
        url: the root, for messages.
    """

    url: str

    def read(self, name: str) -> AbstractContextManager[BinaryIO]:
        """The file ``name``, open for reading and seeking.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it can't be read.
        """

    def write_atomic(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Writes or replaces a file: a reader finds the old content or the new, also after a kill. Durable on return.

        Args:
            name: of the file.
            chunks: its content, in order.

        Raises:
            OSError: it can't be written; what was there is still there.
        """

    def list(self, folder: str = "") -> list[str]:
        """Names directly in ``folder``, in order; those of folders end with ``/``. Empty where there is no such folder.

        Raises:
            OSError: it can't be listed.
        """

    def delete(self, name: str) -> None:
        """Deletes a file; nothing where it is missing.

        Raises:
            OSError: it can't be deleted.
        """

    def lock(self) -> Lock:
        """The claim of a run on the whole storage, not yet taken; ``ObjectLock(self)`` is one for any storage."""


class SubStorage:
    """A folder of a storage as a storage of its own.

    Args:
        storage: that has the folder.
        folder: its name there.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self.storage = storage
        self.folder = folder
        self.url = f"{storage.url}/{folder}"

    def __repr__(self) -> str:
        """The root."""
        return f"SubStorage({self.url!r})"

    def read(self, name: str) -> AbstractContextManager[BinaryIO]:
        """See :class:`Storage`."""
        return self.storage.read(f"{self.folder}/{name}")

    def write_atomic(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """See :class:`Storage`."""
        self.storage.write_atomic(f"{self.folder}/{name}", chunks)

    def list(self, folder: str = "") -> list[str]:
        """See :class:`Storage`."""
        return self.storage.list(f"{self.folder}/{folder}" if folder else self.folder)

    def delete(self, name: str) -> None:
        """See :class:`Storage`."""
        self.storage.delete(f"{self.folder}/{name}")

    def lock(self) -> Lock:
        """See :class:`Storage`."""
        return self.storage.lock()
