"""Starts :mod:`cluster.worker` on hosts, reads what its ranks noted, and says what an uninterrupted run sees."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import models

import mtf
from cluster import hosts
from cluster.hosts import Host

WORKER = Path(__file__).parent / "worker.py"
PORT = 29400


@dataclass
class Attempt:
    """One start of all ranks.

    Attributes:
        ranks: how many.
        first: update at which it began.
        batches: update -> loader and sorted samples of the global batch; only updates that all ranks noted.
    """

    ranks: int
    first: int
    batches: dict[int, tuple[str, list[int]]]


@dataclass
class Launch:
    """A launch over several hosts.

    Attributes:
        processes: one per host.
        logs: what each printed.
        ended_at: process -> when it ended, in seconds since the epoch.
    """

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]
    ended_at: dict[int, float] = field(default_factory=dict)

    def wait(self, timeout_s: float) -> list[int | None]:
        """Exit codes, by process; None for what still runs after ``timeout_s``. Notes when each ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for index, process in enumerate(self.processes):
                if index not in self.ended_at and process.poll() is not None:
                    self.ended_at[index] = time.time()
            if len(self.ended_at) == len(self.processes):
                break
            time.sleep(0.1)
        return [process.poll() for process in self.processes]

    def text(self) -> str:
        """All that was printed, for messages of failed tests."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in self.logs)


def torchrun(
    machines: Sequence[Host], folder: Path, *options: str, per_host: int = 1, endpoint: Host | None = None,
    nodes: str | None = None, script: Sequence[str] = (str(WORKER),), **env: str,
) -> Launch:  # fmt: skip
    """The same torchrun on each host, with c10d rendezvous at ``endpoint`` (the first)."""
    folder.mkdir(parents=True, exist_ok=True)
    first = endpoint or machines[0]
    more = {"ROOT": str(folder / "ckpt"), "NOTES": str(folder / "notes"), **env}
    processes, logs = [], []
    for host in machines:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes or str(len(machines)),
            "--nproc-per-node", str(per_host), "--rdzv-backend", "c10d", "--rdzv-id", folder.name,
            "--rdzv-endpoint", f"{first.address}:{PORT}", *options, *script,
        ]  # fmt: skip
        logs.append(folder / f"log-{host.name}")
        processes.append(host.start(command, logs[-1], hosts.environment(**more), folder))
    return Launch(processes, logs)


def plain(
    machines: Sequence[Host], folder: Path, *, per_host: int = 1, script: Sequence[str] = (str(WORKER),),
    per_rank: dict[int, dict[str, str]] | None = None, **env: str,
) -> Launch:  # fmt: skip
    """The ranks themselves, with torchrun's variables but without its agents, which would end them early."""
    folder.mkdir(parents=True, exist_ok=True)
    processes, logs = [], []
    world = len(machines) * per_host
    for rank in range(world):
        host = machines[rank // per_host]
        more = {
            "ROOT": str(folder / "ckpt"), "NOTES": str(folder / "notes"), "RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank % per_host), "MASTER_ADDR": machines[0].address, "MASTER_PORT": str(PORT + 1),
            **env, **(per_rank or {}).get(rank, {}),
        }  # fmt: skip
        logs.append(folder / f"log-{rank}")
        processes.append(host.start([sys.executable, *script], logs[-1], hosts.environment(**more), folder))
    return Launch(processes, logs)


def attempts(folder: Path) -> list[Attempt]:
    """What the ranks noted in ``folder/notes``, in the order of their starts."""
    files: list[tuple[int, dict[str, Any], list[Any]]] = []
    for path in sorted((folder / "notes").glob("batches-*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith(("]", "}"))]
        if lines:
            files.append((int(path.name.split("-")[1]), lines[0], lines[1:]))
    found: list[list[tuple[int, dict[str, Any], list[Any]]]] = []
    for entry in files:
        # A rank that occurs again, or another number of ranks, begins the next attempt.
        last = found[-1] if found else []
        same = last and last[0][1]["ranks"] == entry[1]["ranks"] and last[0][1]["from"] == entry[1]["from"]
        if not same or any(other[1]["rank"] == entry[1]["rank"] for other in last):
            found.append([])
        found[-1].append(entry)
    return [_attempt(group) for group in found]


def _attempt(group: list[tuple[int, dict[str, Any], list[Any]]]) -> Attempt:
    ranks, first = int(group[0][1]["ranks"]), int(group[0][1]["from"])
    parts: dict[int, list[tuple[str, list[int]]]] = {}
    for _, _, lines in group:
        for update, name, ids in lines:
            parts.setdefault(update, []).append((name, ids))
    # A rank without samples of a last short batch repeats one at weight zero: a sample counts once.
    batches = {
        update: (shares[0][0], sorted({i for _, ids in shares for i in ids}))
        for update, shares in parts.items()
        if len(shares) == ranks
    }
    return Attempt(ranks, first, batches)


@functools.cache
def expected(steps: int) -> dict[int, tuple[str, list[int]]]:
    """Global batches of an uninterrupted run on one rank."""
    out: dict[int, tuple[str, list[int]]] = {}
    with mtf.MultiLoader(models.loaders(1), models.config().multi, seed=0) as multi:
        while len(out) < steps:
            for batch in multi:
                out[len(out)] = (batch.name, sorted(batch.data["id"].tolist()))
    return {update: out[update] for update in range(steps)}


def require_same_batches(folder: Path, steps: int) -> list[Attempt]:
    """Every attempt saw the batches of an uninterrupted run, and together they saw all of them.

    Returns:
        The attempts.
    """
    found = attempts(folder)
    whole = expected(steps)
    seen: dict[int, tuple[str, list[int]]] = {}
    for attempt in found:
        for update, batch in attempt.batches.items():
            assert batch == whole[update], (attempt.ranks, update, batch, whole[update])
        seen |= attempt.batches
    assert sorted(seen) == list(range(steps)), sorted(seen)
    assert models.digest([seen[u] for u in range(steps)]) == models.digest([whole[u] for u in range(steps)])
    return found


def weights(folder: Path) -> dict[str, list[float]]:
    """What the run ended with."""
    done = json.loads((folder / "notes" / "done.json").read_text())
    found: dict[str, list[float]] = done["weights"]
    return found


def require_weights(folder: Path, steps: int, tolerance: float = 3e-7) -> None:
    """The weights are those of a loop by hand over the global batches, up to the order of sums."""
    have = weights(folder)
    for name, value in models.by_hand(steps).items():
        difference = max(abs(a - b) for a, b in zip(have[name], value.flatten().tolist(), strict=True))
        assert difference <= tolerance, (name, difference)


def until_update(folder: Path, update: int, launch: Launch, *, attempt: int = 1, timeout_s: float = 90.0) -> None:
    """Waits until all ranks of the ``attempt``-th start are that far."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = attempts(folder) if (folder / "notes").exists() else []
        if len(found) >= attempt and found[attempt - 1].batches and max(found[attempt - 1].batches) >= update:
            return
        assert time.monotonic() < deadline, launch.text()
        time.sleep(0.1)


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
