"""Leaving batches of a mixture out, without reading them where that can be."""

from __future__ import annotations

from itertools import islice

from mtf.config.checks import whole_number
from mtf.data.cursor import Cursor
from mtf.data.delivery import Delivery, EpochIterator
from mtf.data.source_set import SourceSet


def skip_batches(num_batches: int, cursor: Cursor, sources: SourceSet, delivery: Delivery) -> int:
    """Leaves the next batches of the epoch out; see ``MultiLoader.skip``.

    Returns:
        How many there were: fewer than asked for at the epoch's end.
    """
    num_batches = whole_number("num_batches", num_batches, 0)
    cursor.open_next_epoch()
    schedule = cursor.schedule
    total = schedule.num_steps(schedule.epoch)
    if total is None or None in (length for _, length, present in schedule.source_table if present):
        return sum(1 for _ in islice(EpochIterator(delivery, cursor), num_batches))
    num = min(num_batches, total - schedule.step)
    cursor.skip(num)
    sources.skip_to(dict(zip(schedule.names, schedule.places(schedule.step), strict=True)))
    return num
