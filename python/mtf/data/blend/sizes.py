"""How many samples each global batch of a blend has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtf import _core
from mtf.config.checks import whole_number
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


def _stages(given: Any) -> list[tuple[int, int]]:
    if hasattr(given, "__index__") and not isinstance(given, bool):
        return [(0, whole_number("global_batch_size", given, 1))]
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
        stages.append(
            (
                whole_number(f"{where}: the first batch", stage[0], 0),
                whole_number(f"{where}: samples", stage[1], 1),
            )
        )
    return stages
