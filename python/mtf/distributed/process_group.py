"""The process group: made from what the launcher said, shared by all trainers of a process, taken down at its end."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

import mtf
from mtf.config.distributed import DDPConfig
from mtf.distributed import collectives, rendezvous
from mtf.distributed.bounded_store import BoundedStore, StoreLost, run_bounded
from mtf.distributed.consistency import require_equal
from mtf.distributed.failure_detection import RankMonitor, grace_s, holds_store, place
from mtf.distributed.launch import Launch, find_launch, gpu_index
from mtf.errors import RankFailed

_PREFIX = "mtf"


class ProcessGroup:
    """The default process group with what mtf asks of it. Every method but ``rank`` and the like is a collective.

    Attributes:
        rank: this process.
        world_size: number of processes.
        device: where tensors must be for this group's collectives.
        timeout_s: after which a collective fails.
        monitor: names the rank that made a collective fail.
        num_saves: sharded saves begun, by all trainers.
        store: key-value store that all ranks share; usable from any thread. Its calls end within ``timeout_s``.
    """

    def __init__(self, store: BoundedStore, device: torch.device, timeout_s: float, monitor: RankMonitor) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device
        self.timeout_s = timeout_s
        self.store = store.within(timeout_s)
        self.monitor = monitor
        self.num_saves = 0

    def reduce(self, values: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """``values`` reduced over all ranks, where ``values`` was; the argument is unchanged."""
        work = values.detach().to(self.device, copy=True)
        dist.all_reduce(work, op=op)
        return work.to(values.device)

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """Elementwise largest of equally many integers."""
        return collectives.all_reduce_max(numbers)

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, on every rank."""
        return collectives.gather(value)

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's ``value``."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


_group: ProcessGroup | None = None
_is_ours = False
_is_broken = False


def join(config: DDPConfig, device_type: str) -> ProcessGroup | None:
    """The process group of this run, made if there is none yet; None for a process that was started alone.

    A group that the script has made itself is used as it is and left alone at the end.

    Args:
        config: backend and timeout.
        device_type: ``"cuda"`` or ``"cpu"``: where the model is going to be.

    Raises:
        ConfigError: the launcher's variables make no sense.
        RankFailed: not all ranks came within the timeout; names those that didn't.
    """
    global _group, _is_ours
    if _group is not None and dist.is_initialized():
        return _group
    if not dist.is_available():
        return None
    if dist.is_initialized():
        _group = _adopt(config)
        return _group
    launch = find_launch()
    if launch is None:
        return None
    _group = _start(launch, config, device_type)
    _is_ours = True
    atexit.register(shut_down)
    return _group


def _adopt(config: DDPConfig) -> ProcessGroup:
    """The group that the script, or a launcher such as Ray Train, has made."""
    store: Any = PrefixStore(_PREFIX, dist.distributed_c10d._get_default_store())
    bounded = BoundedStore(store, grace_s(config.timeout_s))
    monitor = RankMonitor(bounded, dist.get_rank(), dist.get_world_size(), grace_s(config.timeout_s))
    monitor.register()
    group = ProcessGroup(bounded, collectives.device(), config.timeout_s, monitor)
    require_equal("how they train together", _settings(config, dist.get_backend()), group.all_reduce_max, group.gather)
    monitor.watch()
    return group


def _settings(config: DDPConfig, backend: str) -> dict[str, Any]:
    """What would make ranks wait for each other's other collectives, by the names of the fields."""
    return {
        "ddp.strategy": config.strategy,
        "ddp.backend": backend,
        "torch": str(torch.__version__),
        "mtf": mtf.__version__,
    }


def mark_broken() -> None:
    """After a rank has failed nobody waits for the others any more."""
    global _is_broken
    _is_broken = True


def is_broken() -> bool:
    """Whether a rank is known to have failed."""
    return _is_broken


def _start(launch: Launch, config: DDPConfig, device_type: str) -> ProcessGroup:
    backend = config.backend or ("nccl" if device_type == "cuda" else "gloo")
    _export(launch)
    whole = _open_store(launch, config.timeout_s)
    bound_s = grace_s(config.timeout_s)
    bounded = BoundedStore(whole, bound_s)
    rank, world_size = launch.rank, launch.world_size
    own = {**place(), "address": rendezvous.route_address(launch.master_addr, launch.master_port)}
    try:
        meeting = rendezvous.meet(bounded, rank, world_size, own, _settings(config, backend), config.timeout_s)
    except StoreLost as error:
        raise RankFailed(
            f"rank {rank} of {world_size} has lost {launch.master_addr}:{launch.master_port}, where rank 0 or "
            f"torchrun's agent listens: {error}"
        ) from None
    if "gloo" in backend:
        rendezvous.choose_gloo_interface(meeting, launch.master_addr, launch.master_port)
    ours = bounded.below(f"{meeting.token}/{_PREFIX}")
    monitor = RankMonitor(ours, rank, world_size, bound_s, meeting.first)
    monitor.register()
    device = _nccl_device(launch) if backend == "nccl" else torch.device("cpu")
    options: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore(f"{meeting.token}/default", whole),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=config.timeout_s),
            **options,
        )
    except (RuntimeError, dist.DistError) as error:
        raise RankFailed(_why_not_made(monitor, meeting.num_hosts, config.timeout_s, error)) from None
    monitor.watch()
    return ProcessGroup(ours, device, config.timeout_s, monitor)


def _open_store(launch: Launch, timeout_s: float) -> TCPStore:
    """Rank 0's store, or that of torchrun's agent.

    Raises:
        RankFailed: it can't be reached, or the port belongs to another program.
    """
    where = f"{launch.master_addr}:{launch.master_port}"
    way_out = "set MASTER_PORT to a port that is free on that machine (torchrun: --master-port or --rdzv-endpoint)"

    def connect() -> TCPStore:
        return TCPStore(
            launch.master_addr,
            launch.master_port,
            launch.world_size,
            is_master=holds_store(launch.rank),
            timeout=timedelta(seconds=timeout_s),
            # Waiting for the others here would not say which of them are missing.
            wait_for_workers=False,
            multi_tenant=True,
        )

    try:
        # A program that isn't a store may accept the connection and never answer.
        return run_bounded(connect, timeout_s + 1.0)
    except StoreLost:
        raise RankFailed(
            f"rank {launch.rank} of {launch.world_size}: {where}, where rank 0 or torchrun's agent listens, gives "
            f"no answer within {timeout_s:g} s. If another program has this port, {way_out}"
        ) from None
    except (RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error):
            raise RankFailed(
                f"rank {launch.rank} of {launch.world_size} can't listen: port {launch.master_port} is taken by "
                f"another program; {way_out}"
            ) from None
        raise RankFailed(
            f"rank {launch.rank} of {launch.world_size} can't reach {where} within {timeout_s:g} s, where rank 0 or "
            f"torchrun's agent should listen; if another program has this port, {way_out}: {str(error).splitlines()[0]}"
        ) from None


def _why_not_made(monitor: RankMonitor, num_hosts: int, timeout_s: float, error: Exception) -> str:
    text = str(error).splitlines()[0]
    found = monitor.find_failure()
    if found is None and num_hosts > 1:
        found = (
            "all ranks came, but can't connect to each other: set GLOO_SOCKET_IFNAME (nccl: NCCL_SOCKET_IFNAME) to the "
            "network interface that leads from machine to machine"
        )
    return f"the process group wasn't made within {timeout_s:g} s: {found or 'all ranks came'} ({text})"


def _nccl_device(launch: Launch) -> torch.device:
    return torch.device("cuda", gpu_index(launch, torch.cuda.device_count()))


def _export(launch: Launch) -> None:
    """torch reads these; under srun they aren't there."""
    for name, value in (
        ("RANK", launch.rank),
        ("WORLD_SIZE", launch.world_size),
        ("LOCAL_RANK", launch.local_rank),
        ("MASTER_ADDR", launch.master_addr),
        ("MASTER_PORT", launch.master_port),
    ):
        os.environ.setdefault(name, str(value))


def local_device() -> torch.device | None:
    """The GPU of this rank among those of its machine; None without GPUs or outside of a launch.

    Raises:
        ConfigError: more ranks on a machine than it has GPUs.
    """
    launch = find_launch()
    if launch is None or not torch.cuda.is_available():
        return None
    index = gpu_index(launch, torch.cuda.device_count())
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def shut_down() -> None:
    """Takes the group down if mtf made it. Registered for the interpreter's exit; may be called before.

    A thread of gloo drops the tensors of a collective a moment after the collective has returned, and needs the GIL
    for it. If the interpreter is finalising by then, Python ends that thread by unwinding it, which aborts the process
    ("terminate called without an active exception"). So the exit waits, with the GIL released, until these threads
    are idle.
    """
    global _group, _is_ours
    group, ours = _group, _is_ours
    _group, _is_ours = None, False
    if group is None or not ours or not dist.is_initialized():
        return
    atexit.unregister(shut_down)
    group.monitor.stop()
    if not _is_broken:
        dist.destroy_process_group()
    _wait_until_idle()


def _wait_until_idle(name: str = "pt_gloo_runloop", limit_s: float = 2.0) -> None:
    """Returns when no thread called ``name`` has run for 30 ms; waiting for the GIL counts as running (it polls)."""
    deadline = time.monotonic() + limit_s
    before, quiet = _switches(name), 0
    while quiet < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
        now = _switches(name)
        quiet = quiet + 1 if now == before else 0
        before = now


def _switches(name: str) -> dict[str, str] | None:
    """Context switches of each thread of this process called ``name``; None where the system doesn't tell."""
    if not sys.platform.startswith("linux"):
        return None
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            if (task / "comm").read_text().strip().startswith(name[:15]):
                lines = (task / "status").read_text().splitlines()
                found[task.name] = " ".join(line for line in lines if "ctxt_switches" in line)
        except OSError:
            continue  # it has just ended
    return found
