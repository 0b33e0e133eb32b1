"""Reading a file of a checkpoint once: what is used is what was hashed. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

from mtf.checkpoint.storage.base import Storage
from mtf.errors import CheckpointError, CheckpointIOError

T = TypeVar("T")
_CHUNK_BYTES = 4 << 20


class HashingReader:
    """A file from its beginning, hashed as it is read.

    Args:
        file: open for reading, at its beginning.
        label: its name, for messages.
    """

    def __init__(self, file: BinaryIO, label: str) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.label = label
        self.position = 0

    def fill(self, view: memoryview) -> None:
        """Reads exactly as many bytes as ``view`` has.

        Raises:
            CheckpointError: the file ends before.
        """
        while len(view):
            count = self._file.readinto(view[:_CHUNK_BYTES])  # type: ignore[attr-defined]  # not in typing's BinaryIO
            if not count:
                raise CheckpointError(f"{self.label}: is damaged: it ends after {self.position} bytes")
            self._digest.update(view[:count])
            self.position += count
            view = view[count:]

    def take(self, num_bytes: int) -> bytes:
        """The next ``num_bytes`` bytes.

        Raises:
            CheckpointError: the file ends before.
        """
        buffer = bytearray(num_bytes)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def finish(self, expected: Mapping[str, Any]) -> None:
        """Reads what is left, and compares with what the manifest says.

        Raises:
            CheckpointError: another size or another SHA-256.
        """
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while count := self._file.readinto(buffer):  # type: ignore[attr-defined]  # not in typing's BinaryIO
            self._digest.update(buffer[:count])
            self.position += count
        if self.position != expected["size"]:
            raise _of_another_size(self.label, self.position, expected["size"])
        # guard: file digest
        if self._digest.hexdigest() != expected["sha256"]:
            raise CheckpointError(
                f"{self.label}: is damaged: its content doesn't have the SHA-256 that the manifest states"
            )


def _of_another_size(label: str, size: int, expected: int) -> CheckpointError:
    return CheckpointError(f"{label}: is damaged: {size} bytes long, the manifest says {expected}")


@contextmanager
def open_part(folder: Storage, name: str) -> Iterator[BinaryIO]:
    """A file of a checkpoint.

    Raises:
        CheckpointError: it is missing, or nothing that may be opened.
        CheckpointIOError: the storage can't give it.
    """
    label = f"{folder.url}/{name}"
    try:
        with folder.read(name) as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{label}: the file is missing") from None
    except OSError as error:
        raise CheckpointIOError(f"{label}: can't be read: {error.strerror or error}") from error


def read_verified(
    folder: Storage, name: str, expected: Mapping[str, Any], parse: Callable[[HashingReader, int], T]
) -> T:
    """What ``parse`` makes of a file, returned only when the file has the size and the SHA-256 it should have.

    Args:
        folder: the checkpoint.
        name: of the file, as the manifest lists it.
        expected: the manifest's entry: ``size`` and ``sha256``, and ``object`` where it is stored under another name.
        parse: (reader, size in bytes) -> value; it may stop reading anywhere.

    Raises:
        CheckpointError: it is missing, damaged or, though whole, nothing that ``parse`` reads.
    """
    with open_part(folder, expected.get("object", name)) as file:
        reader = HashingReader(file, f"{folder.url}/{name}")
        size = file.seek(0, os.SEEK_END)  # before memory is taken for what the manifest promises
        if size != expected["size"]:
            raise _of_another_size(reader.label, size, expected["size"])
        file.seek(0)
        failure: CheckpointError | None = None
        try:
            value = parse(reader, expected["size"])
        except CheckpointError as error:
            failure = error
        reader.finish(expected)  # damage says more than what it led to
    if failure is not None:
        raise failure
    return value


def bounded(limit_bytes: int) -> Callable[[HashingReader, int], bytes]:
    """A ``parse`` that gives the whole content of a file of at most ``limit_bytes``."""

    def parse(reader: HashingReader, num_bytes: int) -> bytes:
        if num_bytes > limit_bytes:
            raise CheckpointError(
                f"{reader.label}: {num_bytes} bytes, more than the {limit_bytes} that such a file may have"
            )
        return reader.take(num_bytes)

    return parse
