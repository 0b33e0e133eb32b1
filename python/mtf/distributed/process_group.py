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
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from mtf.config.distributed import DDPConfig
from mtf.distributed import collectives
from mtf.distributed.failure_detection import AGENT_STORE, RankMonitor, grace_s
from mtf.distributed.launch import Launch, find_launch
from mtf.errors import ConfigError, RankFailed

_PREFIX = "mtf"


class ProcessGroup:
    """The default process group with what mtf asks of it. Every method but ``rank`` and the like is a collective.

    Attributes:
        rank: this process.
        world_size: number of processes.
        device: where tensors must be for this group's collectives.
        roll_call: names the rank that made a collective fail.
        num_saves: sharded saves begun, by all trainers.
        store: key-value store that all ranks share; usable from any thread.
    """

    def __init__(self, store: Store, device: torch.device, timeout_s: float) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device
        self.store = store
        self.num_saves = 0
        self.roll_call = RankMonitor(store, self.rank, self.world_size, grace_s(timeout_s))

    def reduce(self, values: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """``values`` reduced over all ranks, where ``values`` was; the argument is unchanged."""
        work = values.detach().to(self.device, copy=True)
        dist.all_reduce(work, op=op)
        return work.to(values.device)

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Elementwise largest of equally many integers."""
        return collectives.largest(numbers)

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every rank, on every rank."""
        return collectives.gather(value)

    def from_first(self, value: Any) -> Any:
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
        store = PrefixStore(_PREFIX, dist.distributed_c10d._get_default_store())
        _group = ProcessGroup(store, collectives.device(), config.timeout_s)
        _group.roll_call.register()
        return _group
    launch = find_launch()
    if launch is None:
        return None
    _group = _start(launch, config, device_type)
    _is_ours = True
    atexit.register(shut_down)
    return _group


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
    limit = timedelta(seconds=config.timeout_s)
    try:
        held_by_agent = os.environ.get(AGENT_STORE) == "True"
        whole = TCPStore(
            launch.master_addr,
            launch.master_port,
            launch.world_size,
            is_master=launch.rank == 0 and not held_by_agent,
            timeout=limit,
            # Waiting for the others here would not say which of them are missing.
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise RankFailed(
            f"rank {launch.rank} of {launch.world_size} can't reach {launch.master_addr}:{launch.master_port} within "
            f"{config.timeout_s:g} s, where rank 0 or torchrun's agent should listen: {error}"
        ) from error
    # An agent's store outlives its workers, and so would what they wrote in it.
    store = PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", whole)
    rank, world_size = launch.rank, launch.world_size
    ours = PrefixStore(_PREFIX, store)
    roll_call = RankMonitor(ours, rank, world_size, grace_s(config.timeout_s))
    roll_call.register()
    device = torch.device("cuda", launch.local_rank) if backend == "nccl" else torch.device("cpu")
    options: dict[str, Any] = {"device_id": device} if backend == "nccl" else {}
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore("default", store),
            rank=rank,
            world_size=world_size,
            timeout=limit,
            **options,
        )
    except (RuntimeError, dist.DistError) as error:
        absent = roll_call.absent()
        who = f"ranks {absent} never came" if absent else roll_call.find_failure() or "all ranks came"
        raise RankFailed(f"the process group wasn't made within {config.timeout_s:g} s: {who} ({error})") from error
    return ProcessGroup(ours, device, config.timeout_s)


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
    count = torch.cuda.device_count()
    if launch.local_rank >= count:
        raise ConfigError(
            f"rank {launch.rank} is number {launch.local_rank} on its machine, which has {count} GPUs: start at most "
            f"{count} processes there (--nproc-per-node {count}), or pass device='cpu' to the trainer"
        )
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


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
