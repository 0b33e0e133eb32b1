"""From a path or a URL to the storage of that folder. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from mtf.checkpoint.storage.base import Storage, SubStorage
from mtf.checkpoint.storage.folder import LocalStorage
from mtf.errors import CheckpointIOError, ConfigError

POINTERS = ("latest", "best")

_MAX_POINTER_BYTES = 1024
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_registered: dict[str, Callable[[str], Storage]] = {}


def register_storage(scheme: str, make: Callable[[str], Storage]) -> None:
    """Lets ``checkpoint.root_dir`` and every path of a checkpoint begin with ``scheme://``.

    Args:
        scheme: letters, digits, ``+``, ``-`` and ``.``, beginning with a letter. A scheme that fsspec has too is yours
            from then on.
        make: URL -> the storage of that folder.

    Raises:
        ConfigError: the scheme isn't one.
    """
    if not isinstance(scheme, str) or _SCHEME.fullmatch(f"{scheme}://") is None:
        raise ConfigError(f"scheme must be a name such as 's3', without '://', it is {scheme!r}")
    _registered[scheme] = make


def is_url(place: object) -> bool:
    """Whether a place is a URL and no path of the local file system."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def open_storage(place: str | os.PathLike[str] | Storage) -> Storage:
    """The storage of a folder: a local path, a URL, or a storage as it is.

    Raises:
        ConfigError: a URL of a scheme that neither fsspec nor ``register_storage`` knows, or whose package isn't
            installed.
    """
    if isinstance(place, os.PathLike):
        return LocalStorage(Path(place))
    if not isinstance(place, str):
        return place
    match = _SCHEME.match(place)
    if match is None:
        return LocalStorage(Path(place))
    if match[1] in _registered:
        return _registered[match[1]](place)
    if match[1] == "file":
        return LocalStorage(Path(place[len("file://") :]))
    from mtf.checkpoint.storage.object_store import FsspecStorage

    return FsspecStorage(place)


def folder_of(storage: Storage, folder: str) -> Storage:
    """The storage of a folder inside another."""
    return LocalStorage(storage.root / folder) if isinstance(storage, LocalStorage) else SubStorage(storage, folder)


def place_of(storage: Storage) -> Path | str:
    """A storage's root as users name it: a path, or a URL."""
    return storage.root if isinstance(storage, LocalStorage) else storage.url


def open_checkpoint(place: str | os.PathLike[str] | Storage) -> Storage:
    """The storage of a checkpoint, which ``latest`` or ``best`` of a storage without links may lead to.

    Raises:
        ConfigError: as :func:`open_storage`.
        CheckpointIOError: the storage can't give it.
    """
    storage = open_storage(place)
    head, _, last = storage.url.rpartition("/")
    if isinstance(storage, LocalStorage) or last not in POINTERS or not isinstance(place, str):
        return storage
    parent = open_storage(head)
    try:
        name = read_pointer(parent, last)
    except OSError as error:
        raise CheckpointIOError(f"{storage.url}: can't be read: {error.strerror or error}") from error
    return storage if name is None else folder_of(parent, name)


def read_pointer(storage: Storage, pointer: str) -> str | None:
    """The name in ``latest`` or ``best``; None where there is no such object.

    Raises:
        OSError: the storage can't be read.
    """
    try:
        with storage.read(pointer) as file:
            name = file.read(_MAX_POINTER_BYTES).decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    return name if name and "/" not in name and not name.startswith(".") else None
