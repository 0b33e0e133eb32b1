"""Launchers that make the processes, and some the process group: mtf takes what they made and leaves it alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from distributed import launch

EXAMPLES = launch.ROOT / "examples"


def run(*args: str, folder: Path, timeout_s: float = 240) -> str:
    """Runs a command of the examples; returns the last line that it printed."""
    env = launch.environment(PYTHONWARNINGS="ignore", RAY_TRAIN_V2_ENABLED="1", RAY_AUTH_MODE="disabled")
    done = subprocess.run(
        [sys.executable, *args], env=env, cwd=folder, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def norm(line: str) -> float:
    """Of the weights, in a line of an example."""
    found = re.search(r"norm of the weights ([\d.]+)", line)
    assert found is not None, line
    return float(found[1])


def test_fabric(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="needs lightning")
    script = str(EXAMPLES / "under_fabric.py")
    one = run(script, "--ranks", "1", "--folder", str(tmp_path / "one"), folder=tmp_path)
    two = run(script, "--ranks", "2", "--folder", str(tmp_path / "two"), folder=tmp_path)
    assert two.startswith("2 rank(s), update 40")
    assert norm(one) == pytest.approx(norm(two), abs=2e-6)


def test_accelerate_launch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs accelerate")
    script = [str(EXAMPLES / "several_ranks.py"), "--steps", "40"]
    one = run(*script, "--folder", str(tmp_path / "one"), folder=tmp_path)
    start = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines=1", "--mixed_precision=no"]
    launched = run(*start, "--dynamo_backend=no", "--num_processes=1", *script, "--folder", "launched", folder=tmp_path)
    assert norm(one) == norm(launched)
    # Without GPUs the command starts a single process; accelerate's own function starts several.
    two = run("-c", _DEBUG_LAUNCHER, str(EXAMPLES), *script[1:], "--folder", str(tmp_path / "two"), folder=tmp_path)
    assert two.startswith("2 rank(s), update 40")
    assert norm(one) == pytest.approx(norm(two), abs=2e-5)


_DEBUG_LAUNCHER = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import several_ranks
from accelerate import debug_launcher
if __name__ == "__main__":
    debug_launcher(several_ranks.main, num_processes=2)
"""


def test_ray_train_starts_a_killed_worker_again(tmp_path: Path) -> None:
    pytest.importorskip("ray.train", reason="needs ray[train]")
    script = str(EXAMPLES / "under_ray.py")
    alone = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import under_ray; "
    alone += f"under_ray.train({{'folder': {str(tmp_path / 'one' / 'checkpoints')!r}, 'die': False}})"
    (tmp_path / "one").mkdir()
    subprocess.run([sys.executable, "-W", "ignore", "-c", alone], env=launch.environment(), check=True, timeout=120)
    last = run(script, "--workers", "2", "--die", "--folder", str(tmp_path / "two"), folder=tmp_path)
    assert (tmp_path / "two" / "died").exists()
    assert last.startswith("2 worker(s), update 60")
    assert norm(last) == pytest.approx(norm((tmp_path / "one" / "result").read_text()), abs=2e-5)
