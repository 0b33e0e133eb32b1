"""Means over items: an update of the mean over all rows or tokens of a window and of all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError

_MOST_NONE = 50

LEFT_OUT = "left_out"
"""Key of a result that stands for a batch that the step left out, on several ranks."""


def left_out(model: nn.Module, *, is_none: bool) -> dict[str, Any]:
    """What stands for a left out batch on several ranks: a loss of no value, whose gradients are zero, so that the
    ranks reduce together.

    Args:
        is_none: whether the step returned None, rather than a count of 0.
    """
    parts = [(parameter * 0.0).sum() for parameter in model.parameters() if parameter.requires_grad]
    return {"loss": torch.stack([part.float() for part in parts]).sum(), "num_samples": 0, LEFT_OUT: is_none}


def is_left_out(result: Any) -> bool:
    """Whether a step left its batch out: it returned None, or ``num_samples`` 0."""
    if result is None:
        return True
    return isinstance(result, Mapping) and "num_samples" in result and not float(result["num_samples"])


def items_in(result: Any) -> float | None:
    """``num_samples`` of what a step returned; None where it counts nothing. Reads a tensor's value.

    Raises:
        ConfigError: it is negative, or no number.
    """
    if not isinstance(result, Mapping) or "num_samples" not in result:
        return None
    given = result["num_samples"]
    count = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
    if not isinstance(count, (int, float)) or not 0.0 <= count < math.inf:
        raise ConfigError(f"num_samples must be a number of items, at least 0, it is {given!r}")
    return float(count)


class ItemCounts:
    """Scales losses and gradients so that an update is the mean over items.

    A loss that is the mean over n items is multiplied by n / 2**k before its backward pass; at the window's end all
    gradients are multiplied by ``2**k / (items of the window on all ranks)``. So they are
    ``sum(n_j * grad_j) / sum(n_j)``. The power of two keeps losses in the range of fp16, and changes no bit otherwise.

    Whether a loader's steps count is agreed over the ranks at its first batch; later a window costs one reduction of
    one number, and nothing where steps return no ``num_samples``.
    """

    def __init__(self, ranks: SingleRank) -> None:
        self._ranks = ranks
        self._counts: dict[str, bool] = {}
        self._exponent: int | None = None
        self._only_none: dict[str, list[int]] = {}  # of loaders whose steps returned nothing else yet: batches
        self._num_items = 0.0
        self._num_counted = self._num_plain = self._num_left_out = 0

    def begin_window(self) -> None:
        """Forgets a window that failed."""
        self._num_items = 0.0
        self._num_counted = self._num_plain = self._num_left_out = 0

    def weigh(self, loader: str, batch_idx: int, items: float | None, *, is_none: bool) -> float | None:
        """The factor of a loss over ``items``; None where the loader's steps don't count.

        Args:
            items: ``num_samples``; None: the step returned none.
            is_none: whether the step returned None, which leaves the batch out and says nothing of counting.

        Raises:
            ConfigError: on all ranks at a loader's first batch, where some ranks' steps count and others' don't.
        """
        if loader not in self._counts:
            self._agree(loader, None if is_none else items is not None, items or 0.0)
        counts = self._counts.get(loader)
        if is_none or items == 0.0:
            self._num_left_out += 1
        if is_none:
            if counts is None:
                batches = self._only_none.setdefault(loader, [])
                batches.append(batch_idx)
                if len(batches) >= _MOST_NONE:
                    self.require_a_loss()
            if counts is False and self._ranks.world_size > 1:
                raise ConfigError(
                    f"the training step of loader {loader!r} returned None: on several ranks a step that leaves "
                    "batches out must return 'num_samples' for the others, so that all ranks agree on the mean"
                )
            return 0.0
        self._only_none.pop(loader, None)
        if counts is None or counts != (items is not None):
            raise ConfigError(
                f"the training step of loader {loader!r} returned 'num_samples' for some batches only: return it for "
                "all of them, 0 for one that is left out"
            )
        if items is None:
            self._num_plain += 1
            return None
        self._num_counted += 1
        self._num_items += items
        return math.ldexp(items, -(self._exponent or 0))

    def require_a_loss(self) -> None:
        """At the end of an epoch, and after many batches: a step that has returned None only has no ``return``.

        Raises:
            ConfigError: for the first such loader.
        """
        for loader, batches in self._only_none.items():
            raise ConfigError(
                f"the training step of loader {loader!r} (batch {batches[0]}) must return a loss tensor or a dict with "
                f"'loss' (a tensor), it returned None, as for each of its {len(batches)} batches so far: None leaves a "
                "batch out"
            )

    def _agree(self, loader: str, counts: bool | None, items: float) -> None:
        found = self._ranks.gather((counts, items))
        kinds = {kind for kind, _ in found if kind is not None}
        if len(kinds) > 1:
            raise ConfigError(
                f"the training step of loader {loader!r} returned 'num_samples' on some ranks only: return it on all"
            )
        if kinds:
            self._counts[loader] = kinds.pop()
            largest = max(number for _, number in found)
            if self._counts[loader] and self._exponent is None and largest > 0.0:
                self._exponent = math.frexp(largest)[1] - 1

    def end_window(self) -> float:
        """The factor of the window's gradients; 0.0: every batch was left out, so that there is no update. A collective
        where the window's steps count.

        Raises:
            ConfigError: steps of some loaders of the window count, and those of others don't.
        """
        if not self._num_left_out and not self._num_counted:
            return 1.0
        if self._num_counted and self._num_plain:
            raise ConfigError(
                "an accumulation window holds batches whose steps return 'num_samples' and others whose steps don't, "
                "which have no common mean: return it for every loader"
            )
        is_counting = any(self._counts.values())
        if not is_counting:
            kept = self._num_plain
            return (kept + self._num_left_out) / kept if kept else 0.0
        total = self._ranks.sum(torch.tensor([self._num_items], dtype=torch.float64)).item()
        return math.ldexp(self._ranks.world_size / total, self._exponent or 0) if total else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Which loaders count, and the power of two."""
        return {"counts": dict(self._counts), "exponent": self._exponent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with both."""
        self._counts = {str(name): bool(counts) for name, counts in state["counts"].items()}
        exponent = state["exponent"]
        self._exponent = None if exponent is None else int(exponent)
