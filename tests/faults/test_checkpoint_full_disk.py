"""A disk that really is full, a limit on file sizes, a directory that can't be written: the run continues, loudly."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import save_once
import torch

from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.storage.local import CheckpointWarning
from mtf.errors import CheckpointError


def save(manager: CheckpointManager, step: int, num_bytes: int, **options: Any) -> Path | None:
    weights = torch.full((num_bytes,), step, dtype=torch.uint8)
    return manager.save(step=step, epoch=0, model={"w": weights}, state_tree={"step": step}, schedule=b"", **options)


def hidden(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if ".mtf-tmp" in name]


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("mount is missing")
    if done.returncode != 0:
        pytest.skip("may not mount a small disk here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_is_full(tmp_path: Path, asynchronous: bool) -> None:
    config = save_once.config("", keep=3)
    config.asynchronous = asynchronous
    with small_disk(tmp_path / "disk", 4) as disk:
        config.root_dir = str(disk / "run")
        manager = CheckpointManager(config)
        save(manager, 1, 1 << 20)
        manager.wait()

        def save_and_wait() -> None:
            save(manager, 2, 8 << 20)
            manager.wait()

        with pytest.warns(CheckpointWarning, match=r"No space left on device.*The run continues"):
            save_and_wait()
        assert hidden(disk / "run") == []
        with pytest.raises(CheckpointError, match="No space left"):
            save(manager, 3, 8 << 20, required=True)
        # What the failed saves took is free again.
        save(manager, 4, 1 << 20)
        manager.close()
        found = manager.load_latest()
        assert found is not None
        assert found.state == {"step": 4}


def test_a_disk_that_fills_up_by_checkpoints(tmp_path: Path) -> None:
    """Rotation needs room for one more than it keeps; without that room the old ones stay and the error is seen."""
    with small_disk(tmp_path / "disk", 4) as disk:
        manager = CheckpointManager(save_once.config(disk / "run", keep=3))
        for step in (1, 2, 3):
            save(manager, step, 1 << 20)
        with pytest.warns(CheckpointWarning, match="No space left"):
            save(manager, 4, 1 << 20)
        assert manager.latest() == disk / "run" / "step-00000003"
        manager.close()


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    manager = CheckpointManager(save_once.config(tmp_path))
    save(manager, 1, 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.warns(CheckpointWarning, match=r"File too large.*The run continues"):
            assert save(manager, 2, 4 << 20) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert manager.latest() == tmp_path / "step-00000001"
    assert hidden(tmp_path) == []


AS_NOBODY = """
import os, sys, warnings
import save_once
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
warnings.simplefilter("always")
save_once.save(sys.argv[1], 2)
"""


def test_a_directory_that_may_not_be_written() -> None:
    """Permission lost under the run. Root ignores permissions, so as root the save continues as nobody."""
    # Not in pytest's own folder, into which nobody else may look.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_once.save(root, 1)
        os.chmod(root, 0o555)
        python_path = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(root)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": python_path},
        )
        os.chmod(root, 0o755)
        assert done.returncode == 0, done.stderr
        assert "refused" in done.stdout
        assert "Permission denied" in done.stderr
        assert "The run continues" in done.stderr
        assert CheckpointManager(save_once.config(root)).latest() == root / "step-00000001"
