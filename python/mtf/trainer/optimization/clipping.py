"""Clipping of gradients: by value, by a joint norm, or by a norm of each optimizer's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtf.config.execution import PerformanceConfig
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Clipping:
    """What is done to gradients before optimizers step.

    Attributes:
        norm: largest joint 2-norm, or one for each optimizer, None for those that aren't clipped.
        value: largest absolute value of an element; applied before the norm.
    """

    norm: float | Sequence[float | None] | None = None
    value: float | None = None

    @staticmethod
    def of(performance: PerformanceConfig) -> Clipping | None:
        """As configured; None where nothing is clipped."""
        norm, value = performance.clip_grad_norm, performance.clip_grad_value
        return None if norm is None and value is None else Clipping(norm, value)

    def apply(
        self,
        parameters: Mapping[int, Sequence[Tensor]],
        ranks: SingleRank,
        notify: Sequence[Callable[[Tensor], None]],
    ) -> None:
        """Clips the gradients of ``parameters``.

        Args:
            parameters: of each optimizer that is going to step, by its index.
            notify: called with each norm before clipping (0-dim).
        """
        every = list(dict.fromkeys(p for own in parameters.values() for p in own))
        if self.value is not None:
            nn.utils.clip_grad_value_(every, self.value)
        if self.norm is None:
            return
        joint = isinstance(self.norm, (int, float))
        groups = [(every, self.norm)] if joint else [(own, self.norm[i]) for i, own in parameters.items()]  # type: ignore[index]
        for group, limit in groups:
            if limit is not None:
                norm = ranks.clip_grad_norm(list(group), float(limit))  # type: ignore[arg-type]
                for method in notify:
                    method(norm)


def check_clipping(performance: PerformanceConfig, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raises ``ConfigError`` where there isn't one norm for each optimizer."""
    norm = performance.clip_grad_norm
    if isinstance(norm, Sequence) and len(norm) != len(optimizers):
        raise ConfigError(
            f"performance.clip_grad_norm must have one norm, or None, for each of the {len(optimizers)} optimizers, it "
            f"is {norm}"
        )
