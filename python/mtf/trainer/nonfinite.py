"""Finding NaN and infinite losses without a synchronisation per step."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

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
                stacklevel=2,
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
        if self.policy == "raise":
            raise NonFiniteLoss(f"{message}; performance.on_nonfinite='warn' or 'skip' goes on")
        warnings.warn(message + ("; its window is skipped" if self.policy == "skip" else ""), stacklevel=2)
        return self.policy != "skip"
