"""What the trainer needs from the other ranks, in one place.

The trainer calls nothing of ``torch.distributed`` itself. Everything that a rank shares with the others goes
through this object: the forward pass of a whole training step, sums of metrics, agreed names and decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class SingleProcess:
    """One process: every reduction is the identity and a training step is called directly."""

    rank = 0
    world_size = 1

    def wrap(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Prepares ``model`` for the first step; called once, after it was moved to its device."""

    def run(self, step: Callable[..., T], *args: Any) -> T:
        """Calls ``step(*args)`` inside the wrapper's forward, so that whatever the user's step does with the
        bare model counts as one forward pass of the wrapper."""
        return step(*args)

    def window(self, is_last: bool) -> AbstractContextManager[Any]:
        """Surrounds forward and backward of one step; gradients are reduced in the last step of a window only."""
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` (float64, any shape) over all ranks."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; a collective, so all ranks call it at the same update."""
        return flag

    def union(self, names: Iterable[str]) -> list[str]:
        """The names that occur on any rank, in the same order on all of them."""
        return sorted(set(names))

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """Scales the gradients so that their joint 2-norm is at most ``max_norm``; returns the norm before (0-dim)."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def all_finite(self, parameters: Sequence[Tensor]) -> bool:
        """Whether every gradient is finite on every rank. Synchronises the host with the device."""
        grads = [p.grad for p in parameters if p.grad is not None]
        largest = nn.utils.get_total_norm(grads, norm_type=float("inf"))
        return bool(torch.isfinite(largest).item())
