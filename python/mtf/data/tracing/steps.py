"""From the batches of a source to the steps of a mixture that draw them."""

from __future__ import annotations

import numpy as np

from mtf.data.sources.base import Source
from mtf.data.tracing.samples import DrawnSample, Sought
from mtf.schedule.schedule import Schedule


def find_steps(
    source: Source, sought: Sought, passes: range, key: int, schedule: Schedule, index: int, epoch: int, end: int
) -> list[DrawnSample]:
    """The steps below ``end`` of an epoch whose batch holds what is sought, in their order.

    Args:
        source: The source to look in.
        sought: A row or document of it.
        passes: Passes of the source that the epoch draws from.
        key: The source's key.
        schedule: Says which step draws a batch.
        index: The source's index in it.
        epoch: The epoch.
        end: The step to stop before.
    """
    samples = source.find_batches(sought, passes, key)
    num_batches = source.num_batches()
    assert num_batches is not None
    numbers = np.array([sample.step for sample in samples], np.uint64)
    steps = schedule.steps_of(index, numbers // num_batches, numbers % num_batches, end, epoch)
    drawn = [
        DrawnSample(epoch, step, sample) for step, sample in zip(steps.tolist(), samples, strict=True) if step >= 0
    ]
    return sorted(drawn)
