"""How many samples each global batch of a blend has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtf import _core
from mtf.errors import ConfigError


class BatchSizes(_core.BatchSizes):
    """Samples of each global batch: one number, or stages ``[(first batch, samples), ...]`` of a ramp.

    Raises:
        ConfigError: No stage, a first one that isn't at batch 0, batches that don't increase, or a size below 1.
    """

    def __init__(self, given: int | Sequence[tuple[int, int]]) -> None:
        self.stages = _stages(given)
        super().__init__(self.stages)

    def num_batches_of(self, num_samples: int) -> int:
        """The fewest batches that hold ``num_samples`` samples together."""
        batch = self.batch_of(num_samples)
        return batch + (self.start(batch) < num_samples)

    def __repr__(self) -> str:
        """The number, or the stages."""
        return str(self.stages[0][1] if len(self.stages) == 1 else self.stages)


def positive(name: str, value: int) -> int:
    """``value`` as a number of batches, tokens or the like.

    Raises:
        ConfigError: It isn't a whole number of at least 1.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, but is {value!r}")
    return int(value)


def _stages(given: Any) -> list[tuple[int, int]]:
    if isinstance(given, int) and not isinstance(given, bool):
        return [(0, _whole(given, "global_batch_size", 1))]
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        raise ConfigError(
            "global_batch_size must be a number of samples, or a ramp of (first batch, samples) pairs, "
            f"but is {given!r}"
        )
    stages = []
    for number, stage in enumerate(given):
        where = f"global_batch_size[{number}]"
        if not isinstance(stage, Sequence) or isinstance(stage, str) or len(stage) != 2:
            raise ConfigError(f"{where} must be a (first batch, samples) pair, but is {stage!r}")
        stages.append((_whole(stage[0], f"{where}: the first batch", 0), _whole(stage[1], f"{where}: samples", 1)))
    return stages


def _whole(value: Any, where: str, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{where} must be a whole number, but is {value!r}")
    number = int(value.__index__())
    if number < least:
        raise ConfigError(f"{where} must be at least {least}, but is {number}")
    return number
