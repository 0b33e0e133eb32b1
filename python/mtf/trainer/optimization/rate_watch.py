"""Notices a training step that sets learning rates and puts them back before an optimizer could use them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mtf.call_site import user_level


class _Watched(dict[str, Any]):
    """A parameter group that remembers which of its values were set."""

    def __init__(self, group: dict[str, Any]) -> None:
        super().__init__(group)
        self.assigned: set[str] = set()

    def __setitem__(self, key: str, value: Any) -> None:
        self.assigned.add(key)
        super().__setitem__(key, value)

    def update(self, *args: Any, **values: Any) -> None:
        for key, value in dict(*args, **values).items():
            self[key] = value


class RateWatch:
    """Watches the first step on each loader.

    Args:
        optimizers: Those of the trainer.

    Attributes:
        seen: Loaders that need no watching any more.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self.seen: set[str] = set()
        self._is_said = False

    def call(self, loader: str, step: Callable[[], Any]) -> Any:
        """``step()``, which trains on a batch of ``loader``; warns if it sets a rate for nothing."""
        self.seen.add(loader)
        held: list[tuple[list[Any], int, dict[str, Any], _Watched]] = []
        for optimizer in self._optimizers:
            for place, group in enumerate(optimizer.param_groups):
                watched = _Watched(group)
                optimizer.param_groups[place] = watched
                held.append((optimizer.param_groups, place, group, watched))
        try:
            result = step()
        finally:
            is_reset = [self._put_back(*entry) for entry in held]
        if any(is_reset) and not self._is_said:
            self._is_said = True
            warnings.warn(
                f"the training step on loader {loader!r} sets a learning rate and puts it back before it returns, "
                "which has no effect, because optimizers step after it has returned: set "
                f"per_loader_optimizers={{{loader!r}: {{'lr_scale': ...}}}} in TrainerConfig",
                stacklevel=user_level(),
            )
        return result

    @staticmethod
    def _put_back(groups: list[Any], place: int, group: dict[str, Any], watched: _Watched) -> bool:
        """Puts the real group in its place again, with what was set meanwhile; returns whether its rate was set and is
        what it was."""
        before = group.get("lr")
        for key in watched.assigned:
            group[key] = watched[key]
        if place < len(groups) and groups[place] is watched:
            groups[place] = group
        return "lr" in watched.assigned and before is not None and _is_same(before, group["lr"])


def _is_same(one: Any, other: Any) -> bool:
    # Divided by what it was multiplied with, a rate may differ in its last bit.
    return math.isclose(float(one), float(other), rel_tol=1e-9)
