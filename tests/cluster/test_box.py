"""The hosts are hosts: what the other tests rely on."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from cluster import hosts
from cluster.hosts import Host
from cluster.slurm import Slurm


def test_hosts_have_names_addresses_processes_and_disks_of_their_own(two_hosts: list[Host]) -> None:
    a, b = two_hosts
    assert [host.run("hostname").strip() for host in two_hosts] == ["node1", "node2"]
    assert "1 received" in a.run("ping", "-c1", "-W2", "node2")
    assert "1 received" in b.run("ping", "-c1", "-W2", hosts.SWITCH_NAME)
    (a.own_disk / "x").touch()
    a.run("touch", str(a.own_disk / "here"))
    assert a.run("ls", str(a.own_disk)).split() == ["here"]
    assert b.run("ls", str(b.own_disk)).split() == []
    assert "sleep 1000" in a.run("ps", "ax")
    assert "pytest" not in a.run("ps", "ax")


def test_a_cable_can_be_pulled(two_hosts: list[Host]) -> None:
    a, b = two_hosts
    a.pull_cable()
    assert "0 received" in b.run("ping", "-c1", "-W1", a.address, check=False)
    a.plug_cable()
    assert "1 received" in b.run("ping", "-c1", "-W5", a.address)


def test_a_wire_can_be_slow(two_hosts: list[Host]) -> None:
    a, b = two_hosts
    with a.slow_wire(50):
        said = b.run("ping", "-c3", "-W5", a.address)
        assert "3 received" in said
    assert min(float(part.split()[0]) for part in said.split("time=")[1:]) >= 100
    said = b.run("ping", "-c3", "-W5", a.address)
    assert min(float(part.split()[0]) for part in said.split("time=")[1:]) < 50


def test_power_ends_every_process_of_a_host(two_hosts: list[Host], tmp_path: Path) -> None:
    process = two_hosts[0].start(["sleep", "1000"], tmp_path / "log", hosts.environment(), tmp_path)
    time.sleep(0.5)
    assert process.poll() is None
    two_hosts[0].power_off()
    assert process.poll() is not None
    assert "1 received" in two_hosts[1].run("ping", "-c1", "-W2", hosts.SWITCH_NAME)


def test_slurm_runs_a_step_on_both_nodes(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit("srun -l hostname", tmp_path, "--nodes=2", "--ntasks-per-node=1")
    slurm.wait(job, ["COMPLETED"], 60)
    assert sorted((tmp_path / "job.log").read_text().split("\n")[:2]) == ["0: node1", "1: node2"]


def test_nothing_is_left_of_hosts_that_were_taken_down(tmp_path: Path) -> None:
    with hosts.hosts(2, tmp_path) as made:
        inits = [host.init for host in made]
    assert not [init for init in inits if Path(f"/proc/{init}/comm").exists()]
    assert "cable" not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
