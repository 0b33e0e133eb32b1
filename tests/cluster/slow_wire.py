"""A slow wire: frames between two network devices, each passed on after a while. ``python slow_wire.py INIT DELAY_MS``.

A kernel with netem delays packets by itself; this does it on one without. It makes two TAP devices, ``slow`` in the
namespace that it was started in (the switch's) and ``slow`` in that of the process INIT (a host's), and carries frames
from each to the other. Prints a line once both are there; ends with its standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import selectors
import struct
import sys
import time
from collections import deque

NAME = "slow"
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_LARGEST_FRAME = 65_536


def open_tap() -> int:
    """A TAP device in the present network namespace: a file whose reads and writes are frames."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", NAME.encode(), _IFF_TAP | _IFF_NO_PI))
    return device


def enter_network_of(process: int) -> None:
    """Moves this process into another one's network namespace; what is open stays where it was opened."""
    space = os.open(f"/proc/{process}/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(space, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(space)


def carry(switch: int, host: int, delay_s: float) -> None:
    """Passes frames on until standard input ends."""
    other = {switch: host, host: switch}
    under_way: deque[tuple[float, int, bytes]] = deque()
    with selectors.DefaultSelector() as selector:
        for source in (switch, host, sys.stdin.fileno()):
            selector.register(source, selectors.EVENT_READ)
        while True:
            wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
            for key, _ in selector.select(wait):
                source = key.fd
                if source not in other:
                    return
                while frame := _read(source):
                    under_way.append((time.monotonic() + delay_s, other[source], frame))
            while under_way and under_way[0][0] <= time.monotonic():
                _, to, frame = under_way.popleft()
                with contextlib.suppress(OSError):  # a device that is down loses frames, as a wire does
                    os.write(to, frame)


def _read(source: int) -> bytes:
    try:
        return os.read(source, _LARGEST_FRAME)
    except OSError:
        return b""


if __name__ == "__main__":
    at_switch = open_tap()
    enter_network_of(int(sys.argv[1]))
    at_host = open_tap()
    print("ready", flush=True)
    carry(at_switch, at_host, float(sys.argv[2]) / 1000)
