"""Which rank is missing: asked of the key-value store that the ranks share, when a collective has failed.

Collectives say that something went wrong, never with whom. So each rank that fails writes why, each rank whose
collective failed answers that it is still there, and who did neither within moments is the one that died or hangs.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from mtf.checkpoint.storage.local import host_name, process_alive

_POLL_S = 0.05

#: torchrun sets it where its agent, and not rank 0, holds the store.
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


class Store(Protocol):
    """What is used of ``torch.distributed.Store``."""

    def set(self, key: str, value: str) -> None:
        """Writes a value."""

    def get(self, key: str) -> bytes:
        """Reads a value that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""


class RankMonitor:
    """Notes of the ranks about themselves.

    Args:
        store: shared by all ranks.
        rank: this process among ``world_size``.
        grace_s: how long a rank may take to answer.
    """

    def __init__(self, store: Store, rank: int, world_size: int, grace_s: float) -> None:
        self._store = store
        self._rank, self._world_size = rank, world_size
        self._grace_s = grace_s

    def register(self) -> None:
        """Says where this rank runs; before its first collective."""
        self._store.set(f"place/{self._rank}", json.dumps({"host": host_name(), "pid": os.getpid()}))

    def report(self, error: BaseException, where: str) -> None:
        """Says why this rank stops, so that the others can name the cause. Never raises."""
        text = f"{type(error).__name__}: {error}"
        try:
            self._store.set(f"failed/{self._rank}", f"{where}: {text}"[:2000])
        except Exception:
            return  # the store's host is gone as well

    def absent(self) -> list[int]:
        """Ranks that never registered."""
        return [rank for rank in range(self._world_size) if not self._has(f"place/{rank}")]

    def find_failure(self) -> str | None:
        """Who made a collective fail, in words; None if all ranks answer and none reported an error.

        Waits until every rank has answered, reported or is known to be dead, for ``grace_s`` at most.
        """
        try:
            self._store.set(f"answer/{self._rank}", "here")
            waiting = {rank for rank in range(self._world_size) if rank != self._rank}
            deadline = time.monotonic() + self._grace_s
            while True:
                for rank in sorted(waiting):
                    if self._has(f"failed/{rank}"):
                        return f"rank {rank} failed {self._read(f'failed/{rank}')}"
                    if self._has(f"answer/{rank}"):
                        waiting.discard(rank)
                dead = [rank for rank in sorted(waiting) if self._is_dead(rank)]
                if dead:
                    return " and ".join(f"rank {rank} ({self._place(rank)}) was killed or exited" for rank in dead)
                if not waiting:
                    return None
                if time.monotonic() > deadline:
                    return " and ".join(
                        f"rank {rank} ({self._place(rank)}) doesn't answer: it hangs, or its machine is gone"
                        for rank in sorted(waiting)
                    )
                time.sleep(_POLL_S)
        except Exception as error:
            holder = "torchrun's agent" if os.environ.get(AGENT_STORE) == "True" else "rank 0"
            return f"{holder}, which holds the store of the process group, is gone ({str(error).splitlines()[0]})"

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _read(self, key: str) -> str:
        return self._store.get(key).decode("utf-8", "replace")

    def _facts(self, rank: int) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._read(f"place/{rank}")) if self._has(f"place/{rank}") else {}
        return facts

    def _place(self, rank: int) -> str:
        facts = self._facts(rank)
        return f"process {facts['pid']} on {facts['host']}" if facts else "never started"

    def _is_dead(self, rank: int) -> bool:
        facts = self._facts(rank)
        return bool(facts) and facts["host"] == host_name() and not _runs(int(facts["pid"]))


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs. One that has ended and that nobody has waited for yet doesn't."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return process_alive(pid)
    return state != "Z"


def grace_s(timeout_s: float) -> float:
    """How long ranks wait for each other's answers: they notice a broken collective at nearly the same time."""
    return min(30.0, max(2.0, timeout_s / 4))
