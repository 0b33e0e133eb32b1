"""Which rank is missing: asked of the key-value store that the ranks share, when a collective has failed.

Collectives say that something went wrong, never with whom. So each rank that fails writes why, each rank whose
collective failed answers that it is still there, and a rank that did neither within moments is the one that died or
hangs.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from mtf.checkpoint.storage.local import host_name, process_alive
from mtf.distributed.bounded_store import Store

_POLL_S = 0.05
_WATCH_S = 1.0

#: torchrun sets it where its agent, and not rank 0, holds the store.
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def holds_store(rank: int) -> bool:
    """Whether the store ends with this process."""
    return rank == 0 and os.environ.get(AGENT_STORE) != "True"


class RankMonitor:
    """Notes of the ranks about themselves.

    Args:
        store: shared by all ranks; its calls end within a bound.
        rank: this process among ``world_size``.
        grace_s: how long a rank may take to answer.
        first: where rank 0 runs, as ``place`` says it; known without the store, which may be gone.
    """

    def __init__(
        self, store: Store, rank: int, world_size: int, grace_s: float, first: dict[str, Any] | None = None
    ) -> None:
        self._store = store
        self._rank, self._world_size = rank, world_size
        self._grace_s = grace_s
        self._first = first
        self._cause: str | None = None
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None

    def register(self) -> None:
        """Says where this rank runs; before its first collective."""
        self._store.set(f"place/{self._rank}", json.dumps(place()))

    def watch(self) -> None:
        """Looks for ranks that report an error, once a second or less often, on a thread.

        Rank 0 may hold the store, which then ends with it: what it reports must have been read before.
        """
        if self._watcher is None and self._world_size > 1:
            self._watcher = threading.Thread(target=self._watch, name="mtf-ranks", daemon=True)
            self._watcher.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        if self._watcher is not None:
            self._watcher.join(2.0)

    def _watch(self) -> None:
        is_asked = False
        while not self._stopped.wait(self._pause_s):
            try:
                if not self._has("news"):
                    continue
                if not is_asked:
                    self._store.set(f"alive/{self._rank}", "")
                    is_asked = True
                if self._has("cause"):
                    self._cause = self._read("cause")
                    self._store.add("read", 1)
                    return
            except Exception:
                continue  # the network may come back

    @property
    def _pause_s(self) -> float:
        """All ranks together ask the store a thousand times a second at most."""
        return max(_WATCH_S, self._world_size / 1000)

    def report(self, error: BaseException, where: str) -> None:
        """Says why this rank stops, so that the others can name the cause. Never raises."""
        text = f"rank {self._rank} failed {where}: {_first_line(error)}"[:2000]
        try:
            self._store.set(f"failed/{self._rank}", text)
        except Exception:
            return  # the store's host is gone as well
        self.publish(text)

    def publish(self, cause: str) -> None:
        """Tells all ranks the cause, unless another rank has told them one. Never raises.

        Where the store ends with this process, the others get a moment to read it.
        """
        try:
            if self._store.add("causes", 1) == 1:
                self._store.set("cause", cause)
                self._store.set("news", "")
            if holds_store(self._rank):
                limit = time.monotonic() + 2 * self._pause_s + 0.5
                while self._store.add("read", 0) < self._world_size - 1 and time.monotonic() < limit:
                    time.sleep(_POLL_S)
        except Exception:
            return

    def absent(self) -> list[int]:
        """Ranks that never registered."""
        return [rank for rank in range(self._world_size) if not self._has(f"place/{rank}")]

    def find_failure(self) -> str | None:
        """Who made a collective fail, in words; None if all ranks answer and none reported an error.

        Waits until every rank has answered, reported or is known to be dead, for ``grace_s`` at most.
        """
        if self._cause is not None:
            return self._cause
        try:
            return self._ask()
        except Exception as error:
            # The watcher may have read the cause a moment before the store ended.
            return self._cause or self._store_is_gone(error)

    def _ask(self) -> str | None:
        self._store.set(f"answer/{self._rank}", "here")
        self._store.set("news", "")
        waiting = {rank for rank in range(self._world_size) if rank != self._rank}
        deadline = time.monotonic() + self._grace_s
        while True:
            if self._has("cause"):
                return self._read("cause")
            for rank in sorted(waiting):
                if self._has(f"failed/{rank}"):
                    return self._read(f"failed/{rank}")
                if self._has(f"answer/{rank}"):
                    waiting.discard(rank)
            dead = [rank for rank in sorted(waiting) if self._is_dead(rank)]
            if dead:
                return " and ".join(f"rank {rank} ({self._place(rank)}) was killed or exited" for rank in dead)
            if not waiting:
                return None
            if time.monotonic() > deadline:
                return " and ".join(
                    f"rank {rank} ({self._place(rank)}) {self._silence(rank)}" for rank in sorted(waiting)
                )
            time.sleep(_POLL_S)

    def _silence(self, rank: int) -> str:
        if self._has(f"alive/{rank}"):
            return "doesn't answer, but its process is alive: its step hangs, or takes longer than ddp.timeout_s"
        return "doesn't answer: its machine or network is gone, or the process is stopped"

    def _store_is_gone(self, error: Exception) -> str:
        where = f" ({_place_text(self._first)})" if self._first else ""
        if os.environ.get(AGENT_STORE) == "True":
            return f"torchrun's agent, which holds the store of the process group, is gone ({_first_line(error)})"
        return (
            f"rank 0{where}, which holds the store of the process group, was killed, exited, or its machine or network "
            f"is gone ({_first_line(error)})"
        )

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _read(self, key: str) -> str:
        return self._store.get(key).decode("utf-8", "replace")

    def _facts(self, rank: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._read(f"place/{rank}")) if self._has(f"place/{rank}") else {}
        return facts

    def _place(self, rank: int) -> str:
        facts = self._facts(rank)
        return _place_text(facts) if facts else "never started"

    def _is_dead(self, rank: int) -> bool:
        facts, here = self._facts(rank), place()
        is_here = facts and (facts["host"], facts.get("namespace")) == (here["host"], here["namespace"])
        return bool(is_here) and not _runs(int(facts["pid"]))


def place() -> dict[str, Any]:
    """Where this process runs: host name, process id, and the container in which that number means something."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return {"host": host_name(), "pid": os.getpid(), "namespace": namespace}


def _place_text(facts: dict[str, Any]) -> str:
    return f"process {facts['pid']} on {facts['host']}"


def _first_line(error: BaseException) -> str:
    name, text = type(error).__name__, str(error).strip()
    return f"{name}: {text.splitlines()[0]}" if text else name


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs. One that has ended and that no process has waited for yet doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return process_alive(pid)
    return state != "Z"


def grace_s(timeout_s: float) -> float:
    """How long ranks wait for each other's answers: they notice a broken collective at nearly the same time."""
    return min(4.0, max(2.0, timeout_s / 4))
