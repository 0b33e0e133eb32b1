"""However a run over any kind of loader ends: its exit code is right, and no process of it is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STATUS = {
    "max": 0,
    "left": 0,
    "error": 1,
    "term": 75,
    "group_term": 75,
    "group_int": -signal.SIGINT,
}
KINDS = [
    "workers",
    "persistent",
    "shared",
    "own_iter",
    "own_iter_persistent",
    "stream",
    "stream_persistent",
    "late",
    "threads",
    "nested",
]
OF_TORCHDATA = ["stateful", "stateful_stream", "nodes", "node_threads"]


class Runs:
    """A process that forks one for each case."""

    def __init__(self) -> None:
        script = str(Path(__file__).with_name("end_with_loader.py"))
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, script], stdin=-1, stdout=-1, text=True, env=env)
        self.can = self.read(60).split()

    def read(self, limit_s: float) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], limit_s)[0], "the process didn't end"
        return self.process.stdout.readline()

    def end(self, kind: str, how: str, directory: Path) -> tuple[int, list[int]]:
        """Runs one case; gives its exit code and the processes of its session that are left after 10 seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {how} {directory}\n")
        self.process.stdin.flush()
        pid = int(self.read(10))
        try:
            status = os.waitstatus_to_exitcode(int(self.read(60)))
        except AssertionError:
            os.killpg(pid, signal.SIGKILL)
            self.read(10)
            raise
        deadline = time.monotonic() + 10
        while (left := _members(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for member in left:
            os.kill(member, signal.SIGKILL)
        return status, left


def _members(session: int) -> list[int]:
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) == session]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.mark.parametrize("how", list(STATUS))
@pytest.mark.parametrize("kind", [*KINDS, *OF_TORCHDATA, "pyg"])
def test_the_exit_code_is_right_and_no_process_is_left(runs: Runs, tmp_path: Path, kind: str, how: str) -> None:
    needs = "pyg" if kind == "pyg" else "torchdata" if kind in OF_TORCHDATA else None
    if needs and needs not in runs.can:
        pytest.skip(f"needs {needs}")
    status, left = runs.end(kind, how, tmp_path)
    errors = (tmp_path / "errors").read_text()
    assert (status, left) == (STATUS[how], []), errors
    assert "terminate called" not in errors
    if how.endswith("term"):
        assert (tmp_path / "PREEMPTED").exists()
        assert "Traceback" not in errors
    if how == "error":
        assert "ValueError: wanted" in errors
