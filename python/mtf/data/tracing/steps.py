"""From the batches of a source to the steps of a mixture that draw them."""

from __future__ import annotations

import numpy as np

from mtf.data.sources.base import Source
from mtf.data.sources.row_loader import RowLoader
from mtf.data.tracing.past_cuts import PastCuts
from mtf.data.tracing.samples import DrawnSample, Sought
from mtf.schedule.schedule import Schedule


def find_steps(
    source: Source, past: PastCuts, name: str, sought: Sought, key: int, schedule: Schedule, epoch: int, end: int
) -> list[DrawnSample]:
    """The steps below ``end`` of an epoch whose batch holds what is sought, in their order.

    Args:
        source: The source to look in, as it is now.
        past: What it was before edits.
        name: Its name in the mixture.
        sought: A row or document of it.
        key: The source's key.
        schedule: Says which step draws a batch.
        epoch: The epoch.
        end: The step to stop before.

    Raises:
        ConfigError: There is no such row or document, or the source can't say.
    """
    index = schedule.names.index(name)
    drawn = []
    parts = list(past.parts(name, source, epoch, end, lambda step: schedule.counts(step, epoch)[index]))
    if len(parts) != 1 or parts[0][2] is not source:
        source.find_batches(sought, range(0), key)  # refuses what there is not
    for begin, stop, there in parts:
        num_rows = there.num_rows if isinstance(there, RowLoader) and there is not source else None
        if num_rows is not None and sought.row is not None and sought.row >= num_rows:
            continue  # it had fewer rows then
        first, last = (schedule.places(at, epoch)[index][0] for at in (begin, stop))
        samples = there.find_batches(sought, range(first, last + 1), key)
        num_batches = there.num_batches()
        assert num_batches is not None
        numbers = [divmod(sample.step, num_batches) for sample in samples]
        if len(parts) == 1 and begin == 0 and stop == end:
            columns = np.array(numbers, np.uint64).reshape(-1, 2)
            steps = schedule.steps_of(index, columns[:, 0], columns[:, 1], end, epoch).tolist()
        else:
            steps = [_step_in(schedule, index, number, begin, stop, epoch) for number in numbers]
        drawn += [DrawnSample(epoch, step, sample) for step, sample in zip(steps, samples, strict=True) if step >= 0]
    return sorted(drawn)


def _step_in(schedule: Schedule, index: int, number: tuple[int, int], begin: int, stop: int, epoch: int) -> int:
    """The step in ``[begin, stop)`` that draws batch ``number``, a (pass, batch), of a source; -1 if none does.

    Between two edits that cut a source otherwise its numbers grow, which they needn't over such an edit.
    """
    pass_, batch = number
    first, last = begin, stop - 1
    while first < last:
        middle = (first + last) // 2
        if tuple(schedule.places(middle + 1, epoch)[index]) > (pass_, batch):
            last = middle
        else:
            first = middle + 1
    draw = schedule.at(first, epoch)
    return first if (draw.source, draw.pass_, draw.batch) == (index, pass_, batch) else -1
