"""A save stopped at each of its system calls, by a kill or by an error of the system, loses nothing.

SQLite's technique: fail the N-th operation for every N. strace does it to the real process at the real call.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import save_once

from mtf.checkpoint.format.manifest import verify
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage.local import parse_hidden_sibling
from mtf.checkpoint.storage.lock import LOCK_NAME

STRACE = shutil.which("strace")
SCRIPT = Path(save_once.__file__)
PACKAGE = str(Path(sys.modules["mtf"].__file__ or "").parents[1])
# Every call by which a save changes the disk. Directories are emptied by unlinkat.
CALLS = ("write", "fsync", "mkdir", "rename", "renameat2", "unlink", "unlinkat", "rmdir", "symlink")
NO_EXCHANGE = "inject=renameat2:error=EINVAL"


def strace_works() -> bool:
    if STRACE is None:
        return False
    return subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not strace_works(), reason="strace is missing or may not trace here")


def run(root: Path, step: int, *injections: str) -> subprocess.CompletedProcess[str]:
    assert STRACE is not None
    options = [option for injection in injections for option in ("-e", injection)]
    calls = ["-e", f"trace={','.join(CALLS)}"]
    python = [sys.executable, "-B", "-S", "-c", _BOOT, PACKAGE, *_SITE, "--", str(SCRIPT), str(root), str(step)]
    command = [STRACE, "-f", "-qq", "-o", "/dev/null", *calls, *options, *python]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


# Without the site module start-up is faster; the search path is given instead.
_SITE = [path for path in sys.path if path]
_BOOT = """
import sys, runpy
end = sys.argv.index("--")
sys.path[:0] = sys.argv[1:end]
sys.argv = sys.argv[end + 1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def prepare(root: Path, template: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root, symlinks=True)


def leftovers(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if parse_hidden_sibling(name) is not None]


def check(root: Path, done: subprocess.CompletedProcess[str], old: int, new: int) -> None:
    """The newest checkpoint is complete, isn't older than what was acknowledged, and the next run is fine."""
    found = CheckpointManager(save_once.config(root)).latest()
    assert found is not None
    manifest = verify(found)
    step = manifest["step"]
    assert step in (old, new)
    assert step == new or "saved" not in done.stdout
    assert (found / "state.json").read_bytes().startswith(f"state.json of step {step}".encode())
    save_once.save(root, new + 1)
    assert leftovers(root) == []
    assert verify(root / f"step-{new + 1:08d}")["step"] == new + 1
    assert LOCK_NAME not in os.listdir(root)


def kill_at_every(call: str, tmp_path: Path, template: Path, old: int, new: int, *more: str) -> int:
    """Runs a save once per occurrence of ``call`` and kills it there. Returns how many occurrences there were."""
    root = tmp_path / "run"
    for count in range(100):
        prepare(root, template)
        done = run(root, new, f"inject={call}:signal=SIGKILL:when={count + 1}", *more)
        assert done.returncode in (0, -9), done.stderr
        check(root, done, old, new)
        if done.returncode == 0:
            return count
    raise AssertionError("the save never came to its end")


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "run"
    for step in (1, 2):
        save_once.save(root, step)
    return root


@pytest.mark.parametrize("call", CALLS)
def test_kill_at_every_call_of_a_save(tmp_path: Path, two_checkpoints: Path, call: str) -> None:
    count = kill_at_every(call, tmp_path, two_checkpoints, 2, 3)
    if call in ("write", "fsync", "mkdir", "rename"):
        assert count > 0  # the test reaches what it is about


@pytest.mark.parametrize("call", ["renameat2", "fsync", "unlinkat"])
def test_kill_while_a_checkpoint_of_that_name_is_replaced(tmp_path: Path, two_checkpoints: Path, call: str) -> None:
    assert kill_at_every(call, tmp_path, two_checkpoints, 2, 2) > 0


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_kill_while_one_is_replaced_without_exchange(tmp_path: Path, two_checkpoints: Path, call: str) -> None:
    assert kill_at_every(call, tmp_path, two_checkpoints, 2, 2, NO_EXCHANGE) > 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("write", "ENOSPC"),
        ("write", "EIO"),
        ("fsync", "EIO"),
        ("fsync", "ENOSPC"),
        ("mkdir", "EROFS"),
        ("rename", "EACCES"),
    ],
)
def test_an_error_at_every_call_of_a_save(tmp_path: Path, two_checkpoints: Path, call: str, error: str) -> None:
    root = tmp_path / "run"
    refused = 0
    for when in range(1, 30):
        prepare(root, two_checkpoints)
        done = run(root, 3, f"inject={call}:error={error}:when={when}")
        assert done.returncode == 0 or "Error" in done.stderr, done.stderr
        refused += "refused" in done.stdout
        if "refused" in done.stdout:
            assert "The run continues" in done.stderr
        check(root, done, 2, 3)
        if done.stderr == "" and "saved" in done.stdout:
            break
    assert refused > 0
