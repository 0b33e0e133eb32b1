"""Starts worker scripts on several ranks, as torchrun would, and collects what they found."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Run:
    """A launch that has ended.

    Attributes:
        codes: exit code of each rank (negative: the signal that ended it).
        results: what each rank wrote, by rank; empty where it wrote nothing.
        output: standard output and error of all ranks.
        seconds: how long it took.
    """

    codes: list[int]
    results: list[dict[str, Any]]
    output: list[str]
    seconds: float


@dataclass
class Ranks:
    """Running ranks.

    Attributes:
        processes: by rank.
    """

    processes: list[subprocess.Popen[bytes]]
    folder: Path
    started_s: float
    extra: dict[str, Any] = field(default_factory=dict)

    def wait(self, timeout_s: float) -> Run:
        """Waits for all; what is left after ``timeout_s`` is killed."""
        deadline = self.started_s + timeout_s
        codes = []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                codes.append(process.wait())
        results, output = [], []
        for rank in range(len(self.processes)):
            path = self.folder / f"result-{rank}.json"
            results.append(json.loads(path.read_text()) if path.exists() else {})
            output.append((self.folder / f"log-{rank}").read_text())
        return Run(codes, results, output, time.monotonic() - self.started_s)


def environment(**more: str) -> dict[str, str]:
    """Of a worker: one thread each, mtf importable, nothing of an outer launch."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE") and not k.startswith("SLURM")}
    paths = os.pathsep.join([str(ROOT / "python"), str(ROOT / "tests"), kept.get("PYTHONPATH", "")])
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONFAULTHANDLER": "1", **more}


def free_port() -> int:
    """A port that nobody listens on, of those that the system gives to nobody who doesn't ask for one."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def start(world_size: int, folder: Path, worker: str, *args: str, **more: str) -> Ranks:
    """Starts ``worker`` (a file beside this one) on ``world_size`` ranks with torchrun's variables."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for rank in range(world_size):
        env = environment(
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            RESULT=str(folder / f"result-{rank}.json"),
            **more,
        )
        with open(folder / f"log-{rank}", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).parent / worker), *args],
                    env=env,
                    cwd=folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return Ranks(processes, folder, time.monotonic())


def run(world_size: int, folder: Path, worker: str, *args: str, timeout_s: float = 300.0, **more: str) -> Run:
    """As ``start``, and waits."""
    return start(world_size, folder, worker, *args, **more).wait(timeout_s)
