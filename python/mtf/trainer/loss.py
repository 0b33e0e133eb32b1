"""The loss in what a training step returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mtf.data.batch import Batch
from mtf.errors import ConfigError
from mtf.formatting import outline


def loss_of(result: Any, batch: Batch) -> Tensor:
    """The loss in what a training step returned.

    Raises:
        ConfigError: there is none, or it can't be differentiated.
    """
    loss = result if isinstance(result, Tensor) else result.get("loss") if isinstance(result, Mapping) else result
    if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
        return loss if loss.dim() == 0 else loss.reshape(())
    where = f"the training step of loader {batch.name!r} (batch {batch.batch_idx})"
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"{where} must return a loss tensor or a dict with 'loss' (a tensor), it returned {outline(result)}"
        )
    if loss.numel() != 1:
        raise ConfigError(f"{where} must return a loss with one element, its shape is {tuple(loss.shape)}: take a mean")
    raise ConfigError(
        f"{where} returned a loss without a graph: it depends on no parameter that requires gradients, or was "
        "detached or computed under no_grad"
    )
