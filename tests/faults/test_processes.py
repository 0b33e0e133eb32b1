"""Forks in datasets, threads that run already, and loaders left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import mtf
from mtf.testing import content_hash

NUM_FORKS = 150


class Forking(Dataset[torch.Tensor]):
    """Every row is looked up by a child: a bare fork, a command, or a process of multiprocessing."""

    def __init__(self, num_rows: int, how: str) -> None:
        self.num_rows = num_rows
        self.how = how

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.how == "fork":
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(write, str(index).encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                found = int(pipe.read())
            assert os.waitpid(pid, 0)[1] == 0
            return torch.tensor([found])
        if self.how == "command":
            return torch.tensor([int(subprocess.run(["echo", str(index)], capture_output=True, check=True).stdout)])
        import multiprocessing

        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=there.send, args=(index,))
        process.start()
        found = here.recv()
        process.join()
        assert process.exitcode == 0
        return torch.tensor([found])


def hashes(loaders: dict[str, Any], num_steps: int, **options: Any) -> list[tuple[str, str]]:
    config = mtf.MultiDataLoaderConfig(
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=num_steps, **options
    )
    with mtf.MultiLoader(loaders, config) as mixture:
        return [(batch.name, content_hash(batch.data)) for batch in mixture]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # from Python 3.12 on
@pytest.mark.parametrize(
    ("how", "where", "number"),
    [
        ("fork", "here", NUM_FORKS),
        ("fork", "threads", NUM_FORKS),
        ("fork", "worker", 30),
        ("command", "here", 30),
        ("command", "threads", 30),
        ("multiprocessing", "here", 30),
    ],
)
@pytest.mark.timeout(60)
def test_datasets_may_fork_while_the_engine_is_busy(how: str, where: str, number: int) -> None:
    """The child inherits locks that the engine's threads may hold, and none of the threads."""

    def make(dataset: Any, where: str) -> dict[str, Any]:
        busy = mtf.ArrayLoader(torch.arange(60_000).reshape(600, 100), 4, shuffle=True)
        if where == "threads":
            return {"forks": mtf.ThreadLoader(dataset, 1, num_threads=3), "busy": busy}
        return {"forks": DataLoader(dataset, 1, num_workers=int(where == "worker")), "busy": busy}

    plain = [torch.tensor([index]) for index in range(number)]
    assert hashes(make(Forking(number, how), where), 2 * number) == hashes(make(plain, "here"), 2 * number)


def test_threads_that_run_already_and_torch_on_several() -> None:
    """Threads that compute with torch while loaders with workers and threads are opened and read."""
    over = threading.Event()

    def compute() -> None:
        x = torch.randn(200, 200)
        while not over.is_set():
            x = torch.tanh(x @ x)

    rows = torch.arange(300.0).reshape(100, 3)

    def make() -> dict[str, Any]:
        return {
            "workers": DataLoader(torch.utils.data.TensorDataset(rows), 3, shuffle=True, num_workers=1),
            "threads": mtf.ThreadLoader(torch.utils.data.TensorDataset(rows), 3, shuffle=True, num_threads=2),
            "arrays": mtf.ArrayLoader(rows, 3, shuffle=True),
        }

    before = torch.get_num_threads()
    alone = hashes(make(), 90)
    threads = [threading.Thread(target=compute) for _ in range(3)]
    torch.set_num_threads(2)
    for thread in threads:
        thread.start()
    try:
        assert [hashes(make(), 90) for _ in range(3)] == [alone] * 3
    finally:
        over.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(before)


def _children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_a_hundred_loaders_left_behind_leave_nothing() -> None:
    rows = torch.arange(300.0).reshape(100, 3)

    def leave(num_workers: int) -> None:
        loaders = {
            "torch": DataLoader(torch.utils.data.TensorDataset(rows), 3, num_workers=num_workers),
            "threads": mtf.ThreadLoader(torch.utils.data.TensorDataset(rows), 3, num_threads=2),
            "arrays": mtf.ArrayLoader(rows, 3, shuffle=True),
        }
        batches = iter(mtf.MultiLoader(loaders))
        for _ in range(4):
            next(batches)

    def used() -> tuple[int, int, set[str]]:
        gc.collect()
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), _children()

    def settled(most: tuple[int, int, set[str]]) -> tuple[int, int, set[str]]:
        """What is used once that is no more than ``most``, or after 10 seconds: threads end on their own."""
        deadline = time.monotonic() + 10
        while True:
            now = used()
            if all(a <= b for a, b in zip(now, most, strict=True)) or time.monotonic() > deadline:  # type: ignore[operator]
                return now
            time.sleep(0.1)

    idle = used()
    leave(1)
    before = settled(idle)
    for number in range(100):
        leave(int(number % 20 == 0))
    threads, files, children = settled(before)
    assert threads <= before[0]
    assert files <= before[1]
    assert children <= before[2]
