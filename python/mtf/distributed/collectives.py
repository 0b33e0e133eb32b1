"""The few collectives that mtf uses besides those of DDP and FSDP2; without a group, on the default one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def is_joined() -> bool:
    """Whether this process is in a process group."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """Ranks of the default process group."""
    import torch.distributed as dist

    return dist.get_world_size()


def device(group: Any = None) -> torch.device:
    """Where tensors must be for the group's collectives."""
    import torch
    import torch.distributed as dist

    if "nccl" in dist.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def all_reduce_max(numbers: Sequence[int], group: Any = None) -> list[int]:
    """Elementwise largest of equally many integers (below 2^63 in size) over all ranks of ``group``."""
    import torch
    import torch.distributed as dist

    work = torch.tensor(list(numbers), dtype=torch.int64, device=device(group))
    dist.all_reduce(work, op=dist.ReduceOp.MAX, group=group)
    reduced: list[int] = work.tolist()
    return reduced


def gather(value: Any, group: Any = None) -> list[Any]:
    """``value`` (anything that pickles) of every rank of ``group``, on every one of them."""
    import torch.distributed as dist

    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
