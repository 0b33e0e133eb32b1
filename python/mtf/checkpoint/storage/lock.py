"""The lock of a run's directory: two runs writing into one would prune each other's checkpoints. Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtf.checkpoint.storage.local import host_name, make_directories, process_alive, replace_file
from mtf.errors import CheckpointError

LOCK_NAME = ".mtf-lock"

_BEAT_EVERY_S = 30.0
_DEAD_AFTER_S = 120.0

# Directories locked by this process: a process can't see its own other locks by process id.
_held: dict[str, weakref.ref[DirectoryLock]] = {}
_held_guard = threading.Lock()


class DirectoryLock:
    """One run's claim on a directory, kept in a file with process id and host.

    A claim whose process is gone is taken over: on this machine that is certain (process id and start time). A run on
    another machine, or in another container, touches its lock every 30 seconds; one that hasn't done so for two
    minutes, by the clock of the file system that both share, is taken for dead. The same Slurm job takes over at once.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.abspath(root))
        self._path = self.root / LOCK_NAME
        self._owner: dict[str, Any] | None = None
        self._finalizer: weakref.finalize[..., DirectoryLock] | None = None
        self._heart: _Heartbeat | None = None
        self._seen: tuple[str, float] | None = None  # whose heartbeat, and when it was when it was first looked at

    @property
    def token(self) -> str:
        """What tells this claim from every other one; in the lock's file, so all that share the directory can read it.
        Empty while nothing is claimed."""
        return str(self._owner["token"]) if self._owner is not None else ""

    def holder_token(self) -> str:
        """The token of the claim that is in the directory, as this process sees it; empty where there is none."""
        return str((_read(self._path) or {}).get("token", ""))

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
            # guard: directory lock
            self._refuse_if_taken(owner)
            replace_file(self._path, json.dumps(owner).encode())
            self._owner = owner
            _held[key] = weakref.ref(self)
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._heart is not None:
            self._heart.stopped.set()
        self._heart = _Heartbeat(self._path, owner)
        self._finalizer = weakref.finalize(self, _release, self._path, owner, self._heart)

    def waiting_for(self) -> str | None:
        """Why :meth:`acquire` would refuse now and needn't in a while, in words; None if it should be called now.

        A claim from another machine whose run was killed still has a young heartbeat. If it beats once more, the run
        is alive, and ``acquire`` says so.
        """
        holder, owner = _read(self._path), _identity()
        if holder is None or not _is_elsewhere(holder, owner) or "heartbeat_s" not in holder:
            return None
        beat, age_s = _heartbeat(self._path, self.root)
        if beat is None or age_s > _DEAD_AFTER_S:
            return None
        if self._seen is None or self._seen[0] != holder.get("token"):
            self._seen = (str(holder.get("token")), beat)
        if self._seen[1] != beat:
            return None
        return (
            f"{self.root} is locked by process {holder.get('pid')} on host {holder.get('host')}; if that run is dead, "
            f"this one begins in {max(0.0, _DEAD_AFTER_S - age_s):.0f} s"
        )

    def release(self) -> None:
        """Gives the lock back. Idempotent; in a forked child it does nothing."""
        if self._owner is not None and self._heart is not None:
            _release(self._path, self._owner, self._heart)
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
        elif (owner["job"] and holder.get("job") == owner["job"]) or self._is_silent(holder):
            return
        raise CheckpointError(
            f"{self.root}: process {holder.get('pid')} on host {holder.get('host')} writes its checkpoints here; "
            f"two runs in one directory would delete each other's. If that run is gone, delete {self._path}"
        )

    def _is_silent(self, holder: dict[str, Any]) -> bool:
        """Whether the holder ought to touch its lock and hasn't done so for long."""
        return "heartbeat_s" in holder and _heartbeat(self._path, self.root)[1] > _DEAD_AFTER_S


class _Heartbeat:
    """Touches the lock's file while its process lives, on a thread."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        self.stopped = threading.Event()
        self._path, self._owner = path, owner
        threading.Thread(target=self._beat, name="mtf-lock", daemon=True).start()

    def _beat(self) -> None:
        while not self.stopped.wait(_BEAT_EVERY_S):
            if _read(self._path) != self._owner:
                continue  # taken over, which the next save finds
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _heartbeat(path: Path, root: Path) -> tuple[float | None, float]:
    """When the lock was touched last, and how long ago, by the clock of the file system, which all machines see."""
    try:
        beat = os.stat(path).st_mtime
        fd, name = tempfile.mkstemp(prefix=".mtf-clock-", dir=root)
        try:
            os.utime(fd)
            return beat, os.fstat(fd).st_mtime - beat
        finally:
            os.close(fd)
            os.unlink(name)
    except OSError:
        return None, 0.0


def _is_elsewhere(holder: dict[str, Any], owner: dict[str, Any]) -> bool:
    """Whether the holder's process can't be looked at from here, and isn't of the same job."""
    if holder.get("host") == owner["host"] and holder.get("namespace") == owner["namespace"]:
        return False
    return not (owner["job"] and holder.get("job") == owner["job"])


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
        "heartbeat_s": _BEAT_EVERY_S,  # locks of older versions have none, and are never taken over from elsewhere
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


def _release(path: Path, owner: dict[str, Any], heart: _Heartbeat) -> None:
    heart.stopped.set()
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
