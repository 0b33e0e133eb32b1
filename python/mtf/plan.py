"""What a schedule will draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtf.schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """Steps of each source per epoch."""

    num_steps: list[int | None]


def make_plan(schedule: Schedule, epochs: int = 1) -> Plan:
    """The plan of ``epochs`` epochs from the cursor's on."""
    return Plan([schedule.num_steps(schedule.epoch + i) for i in range(epochs)])
