"""torchrun starts ranks again by itself, and the run continues on as many as are left with the same global batches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cluster import runs
from cluster.hosts import Host

STEPS = 40
# With torch's default, agents keep the address of the first round's store, which may be gone.
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
KEEP_ALIVE = "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=3"


def kill_rank(host: Host) -> None:
    """Kills a rank of this host, not torchrun's agent."""
    ranks = [line.split()[0] for line in host.run("ps", "axww", "-o", "pid,args").splitlines() if is_rank(line)]
    host.run("kill", "-9", ranks[0])


def is_rank(line: str) -> bool:
    return str(runs.WORKER) in line and "torch.distributed.run" not in line


@pytest.mark.parametrize(
    ("strategy", "env"),
    [
        ("ddp", OWN_STORE),
        pytest.param("fsdp", OWN_STORE, marks=pytest.mark.nightly),
        pytest.param("ddp", {}, marks=pytest.mark.nightly),
    ],
)
def test_a_killed_rank_is_survived(strategy: str, env: dict[str, str], two_hosts: list[Host], tmp_path: Path) -> None:
    launch = runs.torchrun(
        two_hosts, tmp_path, "--max-restarts=3", KEEP_ALIVE,
        STEPS=str(STEPS), STRATEGY=strategy, PAUSE="0.1", EVERY="5", TIMEOUT="20", **env,
    )  # fmt: skip
    runs.until_update(tmp_path, 12, launch)
    kill_rank(two_hosts[1])
    assert launch.wait(180) == [0, 0], launch.text()
    found = runs.require_same_batches(tmp_path, STEPS)
    assert [attempt.ranks for attempt in found] == [2, 2], launch.text()
    assert found[1].first >= 10
    runs.require_weights(tmp_path, STEPS)


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_lost_host_is_survived_and_one_that_comes_back_is_used(
    strategy: str, two_hosts: list[Host], tmp_path: Path
) -> None:
    """Four ranks, then two, then four."""
    more = {"STEPS": "150", "STRATEGY": strategy, "PAUSE": "0.3", "EVERY": "5", "TIMEOUT": "15", **OWN_STORE}
    options = ("--max-restarts=5", KEEP_ALIVE)
    launch = runs.torchrun(two_hosts, tmp_path, *options, per_host=2, nodes="1:2", **more)
    runs.until_update(tmp_path, 12, launch)
    host = two_hosts[1]
    host.kill("torch.distributed.run")  # the agent goes with its ranks, as when a machine is taken away
    host.kill(str(runs.WORKER))
    runs.until_update(tmp_path, 30, launch, attempt=len(runs.attempts(tmp_path)) + 1, timeout_s=120)
    again = runs.torchrun([host], tmp_path, *options, per_host=2, nodes="1:2", endpoint=two_hosts[0], **more)
    assert runs.Launch(launch.processes[:1], launch.logs).wait(300) == [0], launch.text() + again.text()
    assert again.wait(60) == [0], again.text()
    found = runs.require_same_batches(tmp_path, 150)
    numbers = [attempt.ranks for attempt in found if attempt.batches]
    assert numbers[0] == 4
    assert 2 in numbers
    assert numbers[-1] == 4, numbers
    runs.require_weights(tmp_path, 150, tolerance=2e-6)


@pytest.mark.nightly
def test_the_lock_of_a_run_on_a_lost_host_is_taken_over(two_hosts: list[Host], tmp_path: Path) -> None:
    """Resubmitted elsewhere: it waits for two minutes without a heartbeat, then continues."""
    first = runs.plain([two_hosts[0]], tmp_path, STEPS="400", PAUSE="0.1", EVERY="5")
    runs.until_update(tmp_path, 12, first)
    two_hosts[0].power_off()
    died = time.time()
    second = runs.plain([two_hosts[1]], tmp_path, STEPS=str(STEPS), EVERY="5")
    assert second.wait(240) == [0], second.text()
    beat_s = 30
    assert 120 - beat_s - 5 < os.stat(tmp_path / "notes" / "done.json").st_mtime - died < 180
    assert "begins in" in second.text()
    runs.require_same_batches(tmp_path, STEPS)


@pytest.mark.nightly
def test_two_runs_on_two_hosts_in_one_folder_are_refused_at_the_start(two_hosts: list[Host], tmp_path: Path) -> None:
    first = runs.plain([two_hosts[0]], tmp_path, STEPS="4000", PAUSE="0.1", EVERY="5")
    runs.until_update(tmp_path, 3, first)
    second = runs.plain([two_hosts[1]], tmp_path / "second", STEPS="10", EVERY="5", ROOT=str(tmp_path / "ckpt"))
    assert second.wait(60) == [1], second.text()
    assert "on host node1 writes its checkpoints here" in runs.last_line(second.text())
    assert not any(attempt.batches for attempt in runs.attempts(tmp_path / "second"))
    assert first.processes[0].poll() is None
