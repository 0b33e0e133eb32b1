"""The checkpoints that a run has kept, in a folder or an object store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mtf.checkpoint.format.manifest import MANIFEST_NAME
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.folder import LocalStorage
from mtf.checkpoint.storage.registry import POINTERS, open_storage, read_pointer
from mtf.checkpoint.storage.root import open_root


@dataclass(frozen=True)
class KeptCheckpoint:
    """One of them, whole or damaged.

    Attributes:
        name: of its folder.
        folder: its files.
        links: which of ``latest`` and ``best`` lead to it.
        saved_s: when its manifest was written, in seconds since the epoch; None where the storage doesn't say.
    """

    name: str
    folder: Storage
    links: list[str]
    saved_s: float | None


def kept_at(paths: Iterable[Path]) -> list[KeptCheckpoint]:
    """Checkpoints by their folders."""
    found = []
    for path in paths:
        links = [link for link in POINTERS if _leads_to(path.parent / link, path)]
        saved_s = (path / MANIFEST_NAME).stat().st_mtime
        found.append(KeptCheckpoint(path.name, LocalStorage(path), links, saved_s))
    return found


def kept_in(url: str) -> list[KeptCheckpoint]:
    """Checkpoints below a URL, by name; none where nothing is there.

    Raises:
        CheckpointIOError: the store can't be listed.
        ConfigError: nothing knows the URL's scheme.
    """
    storage = open_storage(url)
    targets = {link: read_pointer(storage, link) for link in POINTERS}
    found = []
    for entry in open_root(storage).entries():
        links = [link for link, target in targets.items() if target == entry.name]
        found.append(KeptCheckpoint(entry.name, entry.folder, links, _written_s(storage, entry.name)))
    return found


def _written_s(storage: Storage, name: str) -> float | None:
    written_s = getattr(storage, "written_s", None)  # of fsspec's; the protocol doesn't ask for it
    if written_s is None:
        return None
    with contextlib.suppress(OSError):
        found: float | None = written_s(f"{name}/{MANIFEST_NAME}")
        return found
    return None


def _leads_to(link: Path, path: Path) -> bool:
    return link.is_symlink() and os.path.basename(os.readlink(link)) == path.name
