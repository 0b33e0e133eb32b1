"""What goes wrong between hosts is named: which rank, where, why, soon, and in the last line that is printed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster import hosts, runs
from cluster.hosts import Host
from cluster.runs import Launch

TIMEOUT_S = 8.0
SLACK_S = 5.0
# Processes that share two processors with others start slowly, and end slowly: this much is left out of the bounds.
BUSY_S = 4.0


def require_message(launch: Launch, process: int, *words: str, since: float | None = None) -> None:
    """The process printed the message once, as its last line, and ended within the bound after ``since``."""
    text = launch.logs[process].read_text(errors="replace")
    last = runs.last_line(text)
    for word in words:
        assert word in last, launch.text()
    assert text.splitlines().count(last) == 1, launch.text()
    if since is not None:
        took = launch.ended_at[process] - since
        assert took <= TIMEOUT_S + SLACK_S + BUSY_S, f"{took:.1f} s\n{launch.text()}"


def start(machines: list[Host], folder: Path, **env: str) -> Launch:
    return runs.plain(machines, folder, TIMEOUT=str(TIMEOUT_S), STEPS="2000", PAUSE="0.05", EVERY="1000", **env)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("kill", "ddp"),
        pytest.param("hang", "fsdp", marks=pytest.mark.nightly),
        pytest.param("kill", "fsdp", marks=pytest.mark.nightly),
        pytest.param("hang", "ddp", marks=pytest.mark.nightly),
        pytest.param("raise", "ddp", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_a_rank_that_fails_is_named_with_its_host(
    kind: str, strategy: str, rank: int, two_hosts: list[Host], tmp_path: Path
) -> None:
    launch = start(two_hosts, tmp_path, STRATEGY=strategy, FAULT=f"{rank}:6:{kind}")
    other = 1 - rank
    runs.until_update(tmp_path, 5, launch)
    launch.wait(TIMEOUT_S + SLACK_S + 15)
    since = (tmp_path / "notes" / "fault-done").stat().st_mtime
    words = [f"rank {other} stops after", f"because rank {rank}"]
    if kind == "raise":
        words = [f"rank {other} stops after", f"because rank {rank} failed", "ValueError: the sample is broken"]
    elif kind == "hang" or rank == 1:
        words.append(f"node{rank + 1}")
    require_message(launch, other, *words, since=since)


@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("what", ["power", pytest.param("cable", marks=pytest.mark.nightly)])
def test_a_host_that_is_gone_is_named(what: str, lost: int, two_hosts: list[Host], tmp_path: Path) -> None:
    launch = start(two_hosts, tmp_path)
    runs.until_update(tmp_path, 5, launch)
    since = time.time()
    if what == "power":
        two_hosts[lost].power_off()
    else:
        two_hosts[lost].pull_cable()
    launch.wait(TIMEOUT_S + SLACK_S + 15)
    other = 1 - lost
    require_message(launch, other, f"rank {other} stops after", f"rank {lost}", f"node{lost + 1}", since=since)


@pytest.mark.nightly
def test_an_outage_shorter_than_the_timeout_is_no_failure(two_hosts: list[Host], tmp_path: Path) -> None:
    launch = runs.plain(two_hosts, tmp_path, TIMEOUT="20", STEPS="40", PAUSE="0.1")
    runs.until_update(tmp_path, 5, launch)
    two_hosts[1].pull_cable()
    time.sleep(5)
    two_hosts[1].plug_cable()
    assert launch.wait(60) == [0, 0], launch.text()
    runs.require_same_batches(tmp_path, 40)


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_round_trips_of_200_ms_are_no_failure(strategy: str, two_hosts: list[Host], tmp_path: Path) -> None:
    with two_hosts[1].slow_wire(100):
        launch = runs.plain(two_hosts, tmp_path, TIMEOUT=str(TIMEOUT_S), STEPS="20", STRATEGY=strategy)
        assert launch.wait(120) == [0, 0], launch.text()
    runs.require_same_batches(tmp_path, 20)


@pytest.mark.nightly
def test_a_network_slower_than_the_timeout_blames_no_rank(two_hosts: list[Host], tmp_path: Path) -> None:
    launch = start(two_hosts, tmp_path)
    runs.until_update(tmp_path, 5, launch)
    two_hosts[1].pull_cable()
    time.sleep(TIMEOUT_S + 0.5)
    two_hosts[1].plug_cable()
    launch.wait(40)
    for rank in (0, 1):
        require_message(launch, rank, f"rank {rank} stops after", "every rank answers", "ddp.timeout_s=8")


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.nightly)])
def test_a_checkpoint_folder_that_hosts_do_not_share_is_refused(
    strategy: str, two_hosts: list[Host], tmp_path: Path
) -> None:
    root = str(two_hosts[0].own_disk / "ckpt")
    launch = runs.plain(two_hosts, tmp_path, STRATEGY=strategy, ROOT=root, TIMEOUT="20", STEPS="10")
    assert launch.wait(60) == [1, 1], launch.text()
    for rank in (0, 1):
        said = "ConfigError: checkpoint.root_dir must be one folder that all ranks share"
        require_message(launch, rank, said, root, "rank 1 on node2")
    assert not any(attempt.batches for attempt in runs.attempts(tmp_path))


def test_hosts_with_other_data_are_refused(two_hosts: list[Host], tmp_path: Path) -> None:
    launch = runs.plain(two_hosts, tmp_path, per_rank={1: {"SAMPLES": "78"}}, SAMPLES="90", STEPS="10")
    assert launch.wait(60) == [1, 1], launch.text()
    for rank in (0, 1):
        require_message(
            launch, rank, "ConfigError", "'a'", "90 samples on rank 0 (node1)", "78 samples on rank 1 (node2)"
        )


def test_another_strategy_on_one_host_is_named(two_hosts: list[Host], tmp_path: Path) -> None:
    launch = runs.plain(two_hosts, tmp_path, per_rank={1: {"STRATEGY": "fsdp"}}, STEPS="10", TIMEOUT="20")
    assert launch.wait(60) == [1, 1], launch.text()
    for rank in (0, 1):
        require_message(launch, rank, "ConfigError", 'ddp.strategy: "ddp" on rank 0 (node1), "fsdp" on rank 1 (node2)')


def test_hosts_whose_name_is_127_0_1_1_find_each_other(two_hosts: list[Host], tmp_path: Path) -> None:
    for host in two_hosts:
        hosts.write_etc_hosts(host, tmp_path, debian=True)
    launch = runs.plain(two_hosts, tmp_path, TIMEOUT="20", STEPS="10")
    assert launch.wait(60) == [0, 0], launch.text()
    runs.require_same_batches(tmp_path, 10)


@pytest.mark.nightly
def test_a_port_that_is_taken_is_named_on_all_hosts(two_hosts: list[Host], tmp_path: Path) -> None:
    server = [str(Path(runs.sys.executable)), "-m", "http.server", str(runs.PORT + 1)]
    two_hosts[0].start(server, tmp_path / "server.log", hosts.environment(), tmp_path)
    time.sleep(2)
    launch = runs.plain(two_hosts, tmp_path, TIMEOUT=str(TIMEOUT_S), STEPS="10")
    assert launch.wait(60) == [1, 1], launch.text()
    require_message(launch, 0, "RankFailed", f"port {runs.PORT + 1}", "taken", "MASTER_PORT")
    require_message(launch, 1, "RankFailed", f"10.77.0.1:{runs.PORT + 1}", "MASTER_PORT")
    assert launch.ended_at[1] - launch.ended_at[0] <= TIMEOUT_S + SLACK_S + BUSY_S


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.nightly)])
def test_nothing_but_the_run_is_printed(strategy: str, two_hosts: list[Host], tmp_path: Path) -> None:
    launch = runs.plain(two_hosts, tmp_path, TIMEOUT="20", STEPS="6", STRATEGY=strategy, WHOLE="1")
    assert launch.wait(60) == [0, 0], launch.text()
    for rank in (0, 1):
        text = launch.logs[rank].read_text()
        assert "find_unused_parameters" not in text, text
        assert "Traceback" not in text
