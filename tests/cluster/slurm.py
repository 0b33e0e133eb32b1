"""A real Slurm on hosts of :mod:`cluster.hosts`: munged and slurmctld at the switch, a slurmd on each host."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import hosts
from cluster.hosts import Host

_CONF = """
ClusterName=box
SlurmctldHost={control}({control_address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=3,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
SlurmctldTimeout=20
KillWait=20
InactiveLimit=0
MinJobAge=600
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=cancelled Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=15
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""

_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY")


class Slurm:
    """A running cluster.

    Args:
        machines: the nodes; two processors are said of each.
        folder: for configuration, state and logs.
    """

    def __init__(self, machines: Sequence[Host], folder: Path) -> None:
        self.machines = {host.name: host for host in machines}
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        folder.mkdir(parents=True)
        for name in ("state", "munge", *(f"spool-{host.name}" for host in machines)):
            (folder / name).mkdir()
        nodes = "\n".join(f"NodeName={h.name} NodeAddr={h.address} CPUs=2 State=UNKNOWN" for h in machines)
        conf = _CONF.format(folder=folder, control=hosts.SWITCH_NAME, control_address=hosts.SWITCH_ADDRESS, nodes=nodes)
        (folder / "slurm.conf").write_text(conf)
        self.env = {**hosts.environment(), "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Brings everything up; returns when all nodes are idle."""
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munge/pid", f"--log-file={self.folder}/munge/log",
            f"--seed-file={self.folder}/munge/seed", "--num-threads=2",
        )  # fmt: skip
        _wait_for(lambda: (self.folder / "munge.socket").exists(), 10, "munged made no socket")
        self._daemon("slurmctld", "-D")
        for host in self.machines.values():
            self.start_node(host)
        _wait_for(lambda: self.node_states() == dict.fromkeys(self.machines, "idle"), 30, self._trouble)

    def start_node(self, host: Host) -> None:
        """Starts slurmd there."""
        self.machines[host.name] = host
        log = self.folder / f"slurmd-{host.name}.out"
        host.start(["slurmd", "-D", "-N", host.name], log, self.env, self.folder)

    def stop(self) -> None:
        """Ends the daemons here; the hosts end theirs."""
        for process in reversed(self._daemons):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._daemons):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _daemon(self, *args: str) -> None:
        with open(self.folder / f"{args[0]}.out", "ab") as out:
            self._daemons.append(
                subprocess.Popen(args, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )

    def _trouble(self) -> str:
        logs = [path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log"))]
        return f"Slurm's nodes aren't idle: {self.node_states()}\n" + "\n".join(logs)

    # Commands

    def call(self, *args: str, check: bool = True, cwd: Path | None = None) -> str:
        """Runs one of Slurm's commands at the switch; returns its standard output."""
        done = subprocess.run(
            args, env=self.env, capture_output=True, text=True, check=False, timeout=60, cwd=cwd or self.folder
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """Node -> ``idle``, ``alloc``, ``down*`` and such."""
        lines = self.call("sinfo", "-h", "-N", "-p", "low", "-o", "%N %t", check=False).split("\n")
        return dict(line.split() for line in lines if line.strip())

    def submit(self, script: str, folder: Path, *options: str, env: Mapping[str, str] | None = None) -> str:
        """``sbatch``; standard output and error of the job go to ``job.log`` in ``folder``.

        Returns:
            The job's number.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "job.sh"
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in (env or {}).items())
        path.write_text(f"#!/bin/bash\n{exports}{script}\n")
        out = options if any(o.startswith("--output") for o in options) else (*options, f"--output={folder}/job.log")
        said = self.call("sbatch", "--parsable", "--open-mode=append", *out, str(path), cwd=folder)
        return said.strip()

    def job(self, number: str) -> dict[str, str]:
        """Fields of ``scontrol show job``."""
        said = self.call("scontrol", "show", "job", number, "-o", check=False).split("\n")[0]
        return dict(re.findall(r"(\S+?)=(\S*)", said))

    def wait(self, number: str, states: Sequence[str], timeout_s: float) -> dict[str, str]:
        """Waits until the job is in one of ``states``; returns its fields."""
        found: dict[str, str] = {}

        def arrived() -> bool:
            found.clear()
            found.update(self.job(number))
            return found.get("JobState") in (*states, *_FINAL)

        _wait_for(arrived, timeout_s, lambda: f"job {number} isn't {states} within {timeout_s} s: {found}")
        if found["JobState"] not in states:
            raise TimeoutError(f"job {number} never becomes {states}: {found}")
        return found

    def cancel_all(self) -> None:
        """Ends every job; returns when all nodes are free."""
        self.call("scancel", "--user=root", check=False)
        self.call("scancel", "--signal=KILL", "--full", "--user=root", check=False)
        _wait_for(
            lambda: not self.call("squeue", "-h", check=False).strip(), 60, lambda: self.call("squeue", check=False)
        )


def _wait_for(what: object, timeout_s: float, complaint: object) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(complaint() if callable(complaint) else complaint)
        time.sleep(0.2)


def is_installed() -> bool:
    """Whether Slurm and munge are there."""
    return all(any(os.access(f"{d}/{n}", os.X_OK) for d in ("/usr/sbin", "/usr/bin")) for n in ("slurmctld", "munged"))
