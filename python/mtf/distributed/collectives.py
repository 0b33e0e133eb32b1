"""The few collectives that mtf uses besides those of DDP and FSDP2, on the default process group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def is_joined() -> bool:
    """Whether this process is in a process group."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this process is rank 0 of its group."""
    import torch.distributed as dist

    return dist.get_rank() == 0


def device() -> torch.device:
    """Where tensors must be for the group's collectives."""
    import torch
    import torch.distributed as dist

    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def largest(numbers: Sequence[int]) -> list[int]:
    """Elementwise largest of equally many integers (below 2^63 in size) over all ranks."""
    import torch
    import torch.distributed as dist

    work = torch.tensor(list(numbers), dtype=torch.int64, device=device())
    dist.all_reduce(work, op=dist.ReduceOp.MAX)
    reduced: list[int] = work.tolist()
    return reduced


def gather(value: Any) -> list[Any]:
    """``value`` (anything that pickles) of every rank, on every rank."""
    import torch.distributed as dist

    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
