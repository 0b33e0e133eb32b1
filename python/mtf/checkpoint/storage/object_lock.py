"""The lock of a run's folder where there are no processes or links to look at: an object with a heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import weakref
from typing import Any

from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.local import process_alive
from mtf.checkpoint.storage.lock import LOCK_NAME, _identity, _start_time
from mtf.errors import CheckpointError

BEAT_EVERY_S = 30.0
DEAD_AFTER_S = 120.0
_MAX_BYTES = 65536

_held: dict[str, weakref.ref[ObjectLock]] = {}
_held_guard = threading.Lock()


class ObjectLock:
    """One run's claim on a storage, kept in an object that the run writes anew every 30 seconds.

    A claim without a heartbeat for two minutes, by the clocks of the machines, is taken over; so is one of a process
    of this machine that is gone, and one of the same Slurm job. Stores have no exchange of two writers in general:
    after it has written its claim, a run waits a moment and looks whether the claim is still its own.

    Args:
        storage: what is claimed.
        settle_s: how long it waits, in seconds.
    """

    def __init__(self, storage: Storage, settle_s: float = 0.2) -> None:
        self._storage = storage
        self._settle_s = settle_s
        self._owner: dict[str, Any] | None = None
        self._stopped = threading.Event()
        self._seen: tuple[Any, Any] | None = None  # token and heartbeat of the holder, as first looked at

    def __repr__(self) -> str:
        """What is claimed, and whether it is."""
        return f"ObjectLock({self._storage!r}, held={self.held})"

    @property
    def held(self) -> bool:
        """Whether this object holds the lock in this process."""
        return self._owner is not None and self._owner["pid"] == os.getpid()

    @property
    def token(self) -> str:
        """What tells this claim from every other one; empty while nothing is claimed."""
        return "" if self._owner is None else str(self._owner["token"])

    def holder_token(self) -> str:
        """The token of the claim that is in the storage; empty where there is none."""
        return str((self._read() or {}).get("token", ""))

    def waiting_for(self) -> str | None:
        """Why :meth:`acquire` would refuse now and needn't in a while, in words; None if it should be called now."""
        holder = self._read()
        age_s = self._age_s(holder)
        if holder is None or age_s > DEAD_AFTER_S or self._is_gone(holder, _identity()) or self.held:
            return None
        if self._seen is None or self._seen[0] != holder.get("token"):
            self._seen = (holder.get("token"), holder.get("time_s"))
        if self._seen[1] != holder.get("time_s"):
            return None  # it has beaten since: that run is alive, and acquire says so
        return (
            f"{self._storage.url} is locked by process {holder.get('pid')} on host {holder.get('host')}; if that run "
            f"is dead, this one begins in {DEAD_AFTER_S - age_s:.0f} s"
        )

    def acquire(self) -> None:
        """Takes the lock; nothing if it is held already.

        Raises:
            CheckpointError: another run holds it; names process and host, and what to do if it is gone.
            OSError: the storage can't be written.
        """
        if self.held and self.holder_token() == self.token:
            return
        with _held_guard:
            other = _held.get(self._storage.url)
            holder = None if other is None else other()
            if holder is not None and holder is not self and holder.held:
                raise CheckpointError(
                    f"{self._storage.url}: another trainer in this process writes its checkpoints here; "
                    "give each its own checkpoint.root_dir"
                )
            owner = _identity()
            self._refuse_if_taken(owner)
            self._write(owner)
            time.sleep(self._settle_s)
            self._refuse_if_taken(owner)
            self._owner = owner
            _held[self._storage.url] = weakref.ref(self)
        self._stopped.set()
        self._stopped = threading.Event()
        beat = threading.Thread(
            target=_beat, args=(weakref.ref(self), owner, self._stopped), name="mtf-lock-heartbeat", daemon=True
        )
        beat.start()
        weakref.finalize(self, self._stopped.set)

    def release(self) -> None:
        """Gives the lock back. Idempotent; in a forked child it does nothing."""
        self._stopped.set()
        with contextlib.suppress(OSError):  # without a heartbeat it is taken over
            if self.held and self.holder_token() == self.token:
                self._storage.delete(LOCK_NAME)
        self._owner = None

    def _refuse_if_taken(self, owner: dict[str, Any]) -> None:
        holder = self._read()
        if holder is None or holder.get("token") in (owner["token"], self.token) or self._is_gone(holder, owner):
            return
        if self._age_s(holder) > DEAD_AFTER_S:
            return
        raise CheckpointError(
            f"{self._storage.url}: process {holder.get('pid')} on host {holder.get('host')} writes its checkpoints "
            f"here; two runs in one folder would delete each other's. If that run is gone, wait {DEAD_AFTER_S:.0f} s, "
            f"or delete {self._storage.url}/{LOCK_NAME}"
        )

    @staticmethod
    def _is_gone(holder: dict[str, Any], owner: dict[str, Any]) -> bool:
        """Whether the holder is known to have ended, whatever its heartbeat says."""
        if holder.get("host") == owner["host"] and holder.get("namespace") == owner["namespace"]:
            pid = holder.get("pid")
            if type(pid) is not int or pid == owner["pid"] or not process_alive(pid):
                return True
            return holder.get("started") != _start_time(pid)  # the id was given to a new process
        return bool(owner["job"]) and holder.get("job") == owner["job"]

    @staticmethod
    def _age_s(holder: dict[str, Any] | None) -> float:
        beat = (holder or {}).get("time_s")
        return abs(time.time() - beat) if isinstance(beat, (int, float)) else float("inf")

    def _read(self) -> dict[str, Any] | None:
        try:
            with self._storage.read(LOCK_NAME) as file:
                content = json.loads(file.read(_MAX_BYTES))
        except (FileNotFoundError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _write(self, owner: dict[str, Any]) -> None:
        self._storage.write_atomic(LOCK_NAME, [json.dumps({**owner, "time_s": time.time()}).encode()])


def _beat(lock: weakref.ref[ObjectLock], owner: dict[str, Any], stopped: threading.Event) -> None:
    while not stopped.wait(BEAT_EVERY_S):
        held = lock()
        if held is None or held.token != owner["token"]:
            return
        with contextlib.suppress(OSError, CheckpointError):  # the next one may come through
            if held.holder_token() == owner["token"]:
                held._write(owner)
        del held
