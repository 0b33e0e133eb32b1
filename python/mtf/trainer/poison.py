"""A loss that isn't finite on one rank stops all of them before the optimizers step, without a collective of its own.

The gradients of all ranks are summed anyway. So a bad loss makes every gradient behind it NaN, the sum carries that to
the other ranks, and each looks at its smallest gradient.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mtf.trainer.nonfinite import NonFiniteLoss


def poisoned(scaled: Tensor, loss: Tensor) -> Tensor:
    """``scaled``, with NaN gradients if ``loss`` (detached) isn't finite; else with exactly its own.

    An infinite loss may have finite gradients, which would say nothing to the other ranks.
    """
    return scaled * (1.0 + (loss - loss))


def require_none(parameters: Iterable[Tensor], step: int) -> None:
    """Raises where the reduced gradients carry the mark of another rank's loss.

    Args:
        parameters: the model's.
        step: training steps done, for the message.

    Raises:
        NonFiniteLoss: the smallest gradient holds a NaN.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    local = [getattr(grad, "_local_tensor", grad) for grad in grads]
    smallest = min((grad for grad in local if grad.numel()), key=Tensor.numel, default=None)
    if smallest is not None and torch.isnan(smallest).any().item():
        raise NonFiniteLoss(
            f"the gradients of training step {step - 1} are NaN, and this rank's losses were finite: a loss of another "
            "rank wasn't, which says more; performance.on_nonfinite='warn' or 'skip' goes on"
        )
