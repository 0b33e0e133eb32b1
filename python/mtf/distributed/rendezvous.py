"""How ranks meet in a key-value store before their first collective, and see whether they belong together."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtf.distributed.bounded_store import Store
from mtf.distributed.consistency import describe_differences
from mtf.errors import ConfigError, RankFailed

_POLL_S = (0.005, 0.1)  # grows from one to the other
_LINGER_S = 3.0
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Meeting:
    """What the ranks have agreed on.

    Attributes:
        token: prefix of this meeting's keys, which no meeting before had.
        first: where rank 0 runs: host, process id, address.
        num_hosts: machines that take part.
        peer: address of a rank on another machine; empty where there is none.
    """

    token: str
    first: dict[str, Any]
    num_hosts: int
    peer: str


def meet(
    store: Store, rank: int, world_size: int, place: Mapping[str, Any], settings: Mapping[str, Any], timeout_s: float
) -> Meeting:
    """Waits for all ranks and compares their settings; a rank's first collective comes after it.

    The agent of torchrun keeps its store while it starts the ranks again, so the store may hold what ranks that are
    gone have written, and agents on different machines don't count their restarts alike. So each rank writes a number
    that nobody had before, and rank 0 answers the number. It answers old ones too, which nobody reads.

    Args:
        store: shared by all ranks.
        rank: this process among ``world_size``.
        place: host, process id and address of this process.
        settings: plain data that must be equal.
        timeout_s: how long ranks wait for each other.

    Raises:
        ConfigError: on all ranks: settings differ; names the fields, values, ranks and hosts.
        RankFailed: ranks didn't come; names them.
    """
    if rank == 0:
        return _lead(store, world_size, {**place, "settings": dict(settings)}, timeout_s)
    nonce = secrets.token_hex(8)
    store.set(f"hello/{rank}", json.dumps({**place, "settings": dict(settings), "nonce": nonce}))
    limit = time.monotonic() + timeout_s
    token = _wait(store, f"seen/{rank}/{nonce}", limit)
    if token is None:
        raise RankFailed(f"the process group wasn't made within {timeout_s:g} s: ranks [0] never came")
    store.add(f"{token}/joined", 1)
    # Rank 0 gives up at its own limit, and says who is missing.
    verdict = _wait(store, f"{token}/verdict", limit + _LINGER_S)
    if verdict is None:
        raise RankFailed(f"the process group wasn't made within {timeout_s:g} s: rank 0 has come and gone")
    store.add(f"{token}/read", 1)
    return _obey(json.loads(verdict), timeout_s)


def _lead(store: Store, world_size: int, own: dict[str, Any], timeout_s: float) -> Meeting:
    token = f"run-{secrets.token_hex(8)}"
    come: dict[int, dict[str, Any]] = {0: own}
    answered: dict[int, str] = {}
    limit, pause = time.monotonic() + timeout_s, _POLL_S[0]
    while world_size > 1 and store.add(f"{token}/joined", 0) < world_size - 1:
        for rank in range(1, world_size):
            text = store.get(f"hello/{rank}").decode() if store.check([f"hello/{rank}"]) else ""
            if not text or answered.get(rank) == text:
                continue
            come[rank], answered[rank] = json.loads(text), text
            store.set(f"seen/{rank}/{come[rank]['nonce']}", token)
        if time.monotonic() > limit:
            break
        time.sleep(pause)
        pause = min(_POLL_S[1], 1.5 * pause)
    absent = [rank for rank in range(world_size) if rank not in come]
    joined = store.add(f"{token}/joined", 0) if world_size > 1 else 0
    verdict: dict[str, Any] = {"token": token, "absent": absent, "missing": world_size - 1 - joined}
    if not verdict["missing"]:
        verdict |= _compare(come, world_size)
    store.set(f"{token}/verdict", json.dumps(verdict))
    try:
        return _obey(verdict, timeout_s)
    except (ConfigError, RankFailed):
        # The store may end with this process: the others read first.
        limit = time.monotonic() + _LINGER_S
        while store.add(f"{token}/read", 0) < joined and time.monotonic() < limit:
            time.sleep(_POLL_S[1])
        raise


def _compare(come: Mapping[int, Mapping[str, Any]], world_size: int) -> dict[str, Any]:
    ranks = range(world_size)
    hosts = [str(come[rank]["host"]) for rank in ranks]
    fields = [{name: json.dumps(value) for name, value in dict(come[rank]["settings"]).items()} for rank in ranks]
    peers = [str(come[rank].get("address", "")) for rank in ranks if hosts[rank] != hosts[0]]
    return {
        "differences": describe_differences(fields, hosts=hosts),
        "first": {name: come[0].get(name) for name in ("host", "pid", "address")},
        "num_hosts": len(set(hosts)),
        "peer": next((peer for peer in peers if peer), ""),
    }


def _obey(verdict: Mapping[str, Any], timeout_s: float) -> Meeting:
    if verdict["missing"]:
        who = f"ranks {verdict['absent']} never came" if verdict["absent"] else "some ranks came and went"
        raise RankFailed(f"the process group wasn't made within {timeout_s:g} s: {who}")
    if verdict["differences"]:
        raise ConfigError("the ranks don't agree on how they train together: " + "; ".join(verdict["differences"]))
    return Meeting(verdict["token"], dict(verdict["first"]), int(verdict["num_hosts"]), str(verdict["peer"]))


def _wait(store: Store, key: str, limit: float) -> str | None:
    pause = _POLL_S[0]
    while not store.check([key]):
        if time.monotonic() > limit:
            return None
        time.sleep(pause)
        pause = min(_POLL_S[1], 1.5 * pause)
    return store.get(key).decode()


def route_address(host: str, port: int) -> str:
    """This machine's address on the way to ``host``; empty where that is only the loopback, or unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port or 1))  # nothing is sent
            address = str(probe.getsockname()[0])
    except OSError:
        return ""
    return "" if address.startswith("127.") else address


def own_name_is_loopback() -> bool:
    """Whether this machine's name means the loopback, as Debian's installer writes it into /etc/hosts."""
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        return True


def interface_of(address: str) -> str | None:
    """Name of the network interface that has ``address``; None where that can't be known."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
        if socket.inet_ntoa(found[20:24]) == address:
            return name
    return None


def choose_gloo_interface(meeting: Meeting, master_addr: str, master_port: int) -> None:
    """gloo tells the others the address that its own host name has. Where that is the loopback and there are other
    machines, ``GLOO_SOCKET_IFNAME`` names the interface that leads to them; one that is set stays."""
    if meeting.num_hosts < 2 or os.environ.get("GLOO_SOCKET_IFNAME") or not own_name_is_loopback():
        return
    address = route_address(master_addr, master_port) or (route_address(meeting.peer, 1) if meeting.peer else "")
    name = interface_of(address) if address else None
    if name is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name
