"""The lock of a run's directory: two runs writing into one would prune each other's checkpoints. Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtf.checkpoint.storage.local import host_name, make_directories, process_alive, replace_file
from mtf.errors import CheckpointError

LOCK_NAME = ".mtf-lock"

# Directories locked by this process: a process can't see its own other locks by process id.
_held: dict[str, weakref.ref[DirectoryLock]] = {}
_held_guard = threading.Lock()


class DirectoryLock:
    """One run's claim on a directory, kept in a file with process id and host.

    A claim whose process is gone is taken over: on this machine that is certain (process id and start time); from
    another machine only the same Slurm job may take over, since nobody else can know whether the run there still lives.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.abspath(root))
        self._path = self.root / LOCK_NAME
        self._owner: dict[str, Any] | None = None
        self._finalizer: weakref.finalize[..., DirectoryLock] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock in this process (a forked child doesn't)."""
        return self._owner is not None and self._owner["pid"] == os.getpid()

    def acquire(self) -> None:
        """Takes the lock; nothing if it is held already. Creates the directory.

        Raises:
            CheckpointError: another run holds it; names process and host, and what to do if it is gone.
            OSError: the directory can't be written.
        """
        if self.held and _read(self._path) == self._owner:
            return
        make_directories(self.root)
        with _held_guard, _exclusive(self.root):
            key = os.path.realpath(self.root)
            other = _held.get(key)
            holder = None if other is None else other()
            if holder is not None and holder is not self and holder.held:
                raise CheckpointError(
                    f"{self.root}: another trainer in this process writes its checkpoints here; "
                    "give each its own checkpoint.root_dir"
                )
            owner = _identity()
            self._refuse_if_taken(owner)
            replace_file(self._path, json.dumps(owner).encode())
            self._owner = owner
            _held[key] = weakref.ref(self)
        if self._finalizer is not None:
            self._finalizer.detach()
        self._finalizer = weakref.finalize(self, _release, self._path, owner)

    def release(self) -> None:
        """Gives the lock back. Idempotent; in a forked child it does nothing."""
        if self._owner is not None:
            _release(self._path, self._owner)
        self._owner = None

    def _refuse_if_taken(self, owner: dict[str, Any]) -> None:
        holder = _read(self._path)
        if holder is None:
            return
        if holder.get("host") == owner["host"] and holder.get("namespace") == owner["namespace"]:
            pid = holder.get("pid")
            # Our own id is a leftover: a live holder in this process was found before.
            if type(pid) is not int or pid == owner["pid"] or not process_alive(pid):
                return
            if holder.get("started") != _start_time(pid):
                return  # the id was given to a new process
        elif owner["job"] and holder.get("job") == owner["job"]:
            return
        raise CheckpointError(
            f"{self.root}: process {holder.get('pid')} on host {holder.get('host')} writes its checkpoints here; "
            f"two runs in one directory would delete each other's. If that run is gone, delete {self._path}"
        )


def _identity() -> dict[str, Any]:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    pid = os.getpid()
    return {
        "pid": pid,
        "host": host_name(),
        "namespace": namespace,  # process ids of another container mean nothing here
        "started": _start_time(pid),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "token": secrets.token_hex(8),  # tells two claims of one process apart
    }


def _start_time(pid: int) -> str:
    """When a process began, in the kernel's ticks since boot; empty where that can't be known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes()[:65536])
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _release(path: Path, owner: dict[str, Any]) -> None:
    if owner["pid"] == os.getpid() and _read(path) == owner:
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def _exclusive(root: Path) -> Iterator[None]:
    """Holds the kernel's lock on the directory itself for the moment of deciding; where there is none, goes without."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
