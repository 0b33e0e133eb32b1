"""Finding NaN and infinite losses without a synchronisation per step.

On several ranks a loss that isn't finite on one stops all of them before the optimizers step, without a collective of
its own: the gradients of all ranks are summed anyway, so a bad loss makes every gradient behind it NaN, the sum carries
that to the other ranks, and each looks at its smallest gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from mtf.call_site import user_level
from mtf.distributed.ranks import SingleRank
from mtf.errors import MtfError
from mtf.trainer.metrics import to_floats

_MAX_PENDING = 4096  # losses kept on the device at most


class NonFiniteLoss(MtfError, ArithmeticError):
    """A training step returned a NaN or infinite loss; names the loader, batch and step."""


class NonFiniteGuard:
    """Keeps the losses of the steps since the last look, and looks when told to.

    ``"raise"`` and ``"warn"`` look at logging intervals and before every save; on the CPU, where looking costs
    nothing, ``"raise"`` looks before each update. ``"skip"`` looks at every window, which synchronises the host with
    a GPU once per window: it is said once.

    A finite loss that is a number already, as on the CPU, leaves nothing to look at.
    """

    def __init__(self, policy: Literal["raise", "warn", "skip"], device: torch.device) -> None:
        self.policy = policy
        self.every_window = policy == "skip" or (policy == "raise" and device.type == "cpu")
        if policy == "skip" and device.type != "cpu":
            warnings.warn(
                "on_nonfinite='skip' synchronises the host with the device once per window; "
                "use 'warn' or 'raise' where that costs too much",
                stacklevel=user_level(),
            )
        self._losses: list[float | Tensor] = []
        self._places: list[tuple[str, int, int]] = []

    def add(self, loss: float | Tensor, name: str, batch_idx: int, step: int) -> None:
        """Notes one step's unscaled loss: a number, or a tensor (0-dim, detached) that is read later."""
        if type(loss) is float and loss - loss == 0.0:
            return
        self._losses.append(loss)
        self._places.append((name, batch_idx, step))
        if len(self._losses) >= _MAX_PENDING:
            self.window_is_finite()

    def forget(self, since: int) -> None:
        """Drops the losses of training step ``since`` and of later ones, which are trained on again."""
        kept = [i for i, (_, _, step) in enumerate(self._places) if step < since]
        self._losses = [self._losses[i] for i in kept]
        self._places = [self._places[i] for i in kept]

    def window_is_finite(self) -> bool:
        """Looks; returns False when the window is to be skipped.

        Raises:
            NonFiniteLoss: under ``"raise"``, for the first such step.
        """
        if not self._losses:
            return True
        values, places = to_floats(self._losses), self._places
        self._losses, self._places = [], []
        bad = [i for i, value in enumerate(values) if value - value != 0.0]
        if not bad:
            return True
        name, batch_idx, step = places[bad[0]]
        message = (
            f"the loss of loader {name!r} is {values[bad[0]]} at batch {batch_idx} of this epoch, training step {step}"
            + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else "")
        )
        # guard: bad loss
        if self.policy == "raise":
            raise NonFiniteLoss(f"{message}; performance.on_nonfinite='warn' or 'skip' continues")
        warnings.warn(message + ("; its window is skipped" if self.policy == "skip" else ""), stacklevel=user_level())
        return self.policy != "skip"


def propagate_nonfinite(scaled: Tensor, loss: Tensor) -> Tensor:
    """``scaled``, with NaN gradients if ``loss`` (detached) isn't finite; else with exactly its own.

    An infinite loss may have finite gradients, which would say nothing to the other ranks.
    """
    return scaled * (1.0 + (loss - loss))


def require_finite_on_all_ranks(parameters: Iterable[Tensor], step: int) -> None:
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
            "rank wasn't, which says more; performance.on_nonfinite='warn' or 'skip' continues"
        )


def window_is_finite(guard: NonFiniteGuard, ranks: SingleRank, parameters: Iterable[Tensor], step: int) -> bool:
    """Whether the window may become an update, the same on all ranks.

    Raises:
        NonFiniteLoss: under ``"raise"``, on every rank, for the loss of any.
    """
    finite = guard.window_is_finite()
    if ranks.world_size == 1:
        return finite
    if guard.policy == "skip":
        return not ranks.any(not finite)
    require_finite_on_all_ranks(parameters, step)
    return finite
