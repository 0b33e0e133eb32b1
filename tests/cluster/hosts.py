"""Hosts on one machine: each with its own network stack, address, host name, process ids and file system mounts.

A host is a set of Linux namespaces (``unshare``) behind a cable (a veth pair) to a switch (a bridge). Everything lives
inside the namespaces that ``scripts/cluster`` made before, so it is gone as soon as that process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import slow_wire

ROOT = Path(__file__).resolve().parents[2]
SWITCH_ADDRESS = "10.77.0.254"
SWITCH_NAME = "control"
SWITCH = "mtf-switch"  # the bridge
# A host's init: does nothing but reap what its processes leave behind.
_INIT = "while :; do sleep 1000 & wait; done"


def address(number: int) -> str:
    """Of host ``number``, which counts from 1."""
    return f"10.77.0.{number}"


@dataclass
class Host:
    """One machine.

    Attributes:
        name: its host name, which the others resolve.
        address: IPv4.
        cable: the switch's end of its cable.
        own_disk: a folder that exists on every host and is another file system on each.
        init: process id of its first process, outside.
    """

    name: str
    address: str
    cable: str
    own_disk: Path
    init: int
    _holder: subprocess.Popen[bytes]
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *args: str) -> list[str]:
        """``args`` as a command that runs on this host."""
        return ["nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "--", *args]

    def run(self, *args: str, timeout_s: float = 60.0, check: bool = True) -> str:
        """Runs a short command here; returns its standard output."""
        done = subprocess.run(
            self.command(*args),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(args)} on {self.name}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, args: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path) -> subprocess.Popen[bytes]:
        """Starts a command here; what it prints goes to ``log``."""
        with open(log, "ab") as out:
            process = subprocess.Popen(
                self.command(*args), env=dict(env), cwd=cwd,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started.append(process)
        return process

    def kill(self, pattern: str, number: int = signal.SIGKILL) -> None:
        """A signal to the processes of this host whose command line matches ``pattern``."""
        self.run("pkill", f"-{int(number)}", "-f", pattern)

    def pull_cable(self) -> None:
        """Nothing is sent or received from now on, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def plug_cable(self) -> None:
        """Undoes :meth:`pull_cable`."""
        _ip("link", "set", self.cable, "up")

    @contextlib.contextmanager
    def slow_wire(self, delay_ms: int) -> Iterator[None]:
        """Every packet to and from this host takes ``delay_ms`` longer: a slow wire takes the cable's place."""
        wire = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "slow_wire.py"), str(self.init), str(delay_ms)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert wire.stdout is not None
            if wire.stdout.readline() != b"ready\n":
                raise RuntimeError("the slow wire didn't start")
            self.pull_cable()
            self.run("ip", "addr", "flush", "dev", "eth0")
            self.run("ip", "link", "set", "eth0", "down")
            # The same hardware address: the others needn't learn another one.
            hardware = json.loads(self.run("ip", "-json", "link", "show", "eth0"))[0]["address"]
            self.run("ip", "link", "set", slow_wire.NAME, "address", hardware)
            self.run("ip", "addr", "add", f"{self.address}/24", "dev", slow_wire.NAME)
            self.run("ip", "link", "set", slow_wire.NAME, "up")
            _ip("link", "set", slow_wire.NAME, "master", SWITCH, "up")
            yield
        finally:
            wire.communicate(timeout=10)  # its standard input ends; its devices go with it
            if self._holder.poll() is None:
                self.run("ip", "addr", "replace", f"{self.address}/24", "dev", "eth0")
                self.run("ip", "link", "set", "eth0", "up")
                self.plug_cable()

    def power_off(self) -> None:
        """Every process dies at once, and no packet says so."""
        self.pull_cable()
        os.kill(self.init, signal.SIGKILL)
        self._holder.wait(10)
        for process in self._started:
            process.wait(10)

    def shut_down(self) -> None:
        """Ends everything on this host."""
        if self._holder.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
            self._holder.wait(10)
        for process in self._started:
            process.wait(10)
        # The kernel takes a network namespace down a while after its last process; its cable mustn't be found then.
        subprocess.run(["ip", "link", "del", self.cable], capture_output=True, check=False)


def make_switch() -> None:
    """The bridge to which hosts are plugged, with an address of its own, in the namespace of this process."""
    if SWITCH in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout:
        return
    _ip("link", "add", SWITCH, "type", "bridge")
    _ip("addr", "add", f"{SWITCH_ADDRESS}/24", "dev", SWITCH)
    _ip("link", "set", SWITCH, "up")
    _ip("link", "set", "lo", "up")
    _call("hostname", SWITCH_NAME)


def make_host(number: int, folder: Path, name: str | None = None) -> Host:
    """A machine at the switch.

    Args:
        number: from 1; decides its address.
        folder: for its mount points; shared by all hosts, as everything that isn't ``own_disk``.
        name: host name; None: ``node<number>``.
    """
    name = name or f"node{number}"
    own_disk = folder / "own-disk"
    own_disk.mkdir(parents=True, exist_ok=True)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
         "bash", "-c", _INIT],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    init = _wait_for_child(holder)
    cable = f"cable{number}"
    host = Host(name, address(number), cable, own_disk, init, holder)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(init))
        _ip("link", "set", cable, "master", SWITCH, "up")
        host.run("ip", "link", "set", "lo", "up")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("hostname", name)
        host.run("mount", "-t", "tmpfs", "-o", "size=64m", name, str(own_disk))
        write_etc_hosts(host, folder)
    except BaseException:
        host.shut_down()
        raise
    return host


def write_etc_hosts(host: Host, folder: Path, *, debian: bool = False) -> None:
    """Names of all hosts; with ``debian`` as its installer leaves it: one's own name is 127.0.1.1."""
    lines = [f"{SWITCH_ADDRESS} {SWITCH_NAME}", *(f"{address(n)} node{n}" for n in range(1, 10))]
    if debian:
        lines = [line for line in lines if line.split()[1] != host.name] + [f"127.0.1.1 {host.name}"]
    path = folder / f"hosts-{host.name}"
    path.write_text("127.0.0.1 localhost\n" + "\n".join(lines) + "\n")
    host.run("mount", "--bind", str(path), "/etc/hosts")


@contextlib.contextmanager
def hosts(number: int, folder: Path) -> Iterator[list[Host]]:
    """``number`` machines that are taken down at the end."""
    make_switch()
    made: list[Host] = []
    try:
        for n in range(1, number + 1):
            made.append(make_host(n, folder))
        yield made
    finally:
        for host in made:
            host.shut_down()


def environment(**more: str) -> dict[str, str]:
    """Of a process on a host: one thread, mtf and the tests importable, nothing of an outer launch."""
    left_out = ("SLURM", "TORCHELASTIC", "OMPI")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out) and k not in ("RANK", "WORLD_SIZE")}
    paths = os.pathsep.join([str(ROOT / "python"), str(ROOT / "tests"), kept.get("PYTHONPATH", "")])
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    python = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])
    return {**kept, **fixed, "PATH": python, **more}


def _wait_for_child(holder: subprocess.Popen[bytes]) -> int:
    """The process that ``unshare`` has forked, once it runs ``bash``."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if holder.poll() is not None:
            raise RuntimeError(f"unshare ended with {holder.returncode}")
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "bash":
            return int(children[0])
        time.sleep(0.01)
    raise RuntimeError("unshare made no namespaces within 10 s")


def _ip(*args: str) -> None:
    _call("ip", *args)


def _call(*args: str) -> None:
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip()}")
