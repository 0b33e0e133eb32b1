"""Where a call of ``fit`` ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtf.errors import ConfigError

if TYPE_CHECKING:
    from mtf.trainer.trainer import Trainer


class StopCondition:
    """Where ``fit`` ends; both numbers count from the beginning of training."""

    def __init__(self, max_epochs: int | None, max_steps: int | None, epoch: int) -> None:
        for name, value in (("max_epochs", max_epochs), ("max_steps", max_steps)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ConfigError(f"{name} must be an int of at least 0, it is {value!r}")
        self._epochs = epoch + 1 if max_epochs is None and max_steps is None else max_epochs
        self._steps = max_steps

    def describe(self) -> dict[str, int | None]:
        return {"max_epochs": self._epochs, "max_steps": self._steps}

    def steps_reached(self, trainer: Trainer) -> bool:
        return self._steps is not None and trainer.global_step >= self._steps

    def reached(self, trainer: Trainer) -> bool:
        return self.steps_reached(trainer) or (self._epochs is not None and trainer.epoch >= self._epochs)

    def reason(self, trainer: Trainer) -> str:
        if self.steps_reached(trainer):
            return f"the run has {trainer.global_step} updates and max_steps is {self._steps}"
        return f"the run has {trainer.epoch} epochs and max_epochs is {self._epochs}"
