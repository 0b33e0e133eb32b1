"""Accumulation schedules against a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf.schedule.accumulation import AccumulationSchedule

ENTRIES = st.dictionaries(st.integers(1, 30), st.integers(1, 6), max_size=4)


def by_hand(schedule: AccumulationSchedule, num_batches: int, epoch: int, update: int) -> list[int]:
    """Batches of each update of an epoch."""
    found, left = [], num_batches
    while left:
        found.append(min(left, schedule.at(epoch, update + len(found))))
        left -= found[-1]
    return found


@given(ENTRIES, st.integers(1, 6), st.sampled_from(["epoch", "update"]), st.integers(0, 60), st.integers(0, 4),
       st.integers(0, 40))  # fmt: skip
def test_counts_are_those_of_a_loop(entries: Any, first: int, by: Any, num: int, epoch: int, update: int) -> None:
    schedule = AccumulationSchedule({0: first, **entries}, by)
    expected = by_hand(schedule, num, epoch, update)
    assert schedule.updates_in(num, epoch, update) == len(expected)
    for k in range(len(expected) + 2):
        assert schedule.batches_of(k, num, epoch, update) == sum(expected[:k])


@pytest.mark.parametrize(("epoch", "steps"), [(0, 1), (3, 1), (4, 4), (9, 4)])
def test_an_entry_holds_from_its_start(epoch: int, steps: int) -> None:
    assert AccumulationSchedule({0: 1, 4: 4}).at(epoch, 7) == steps
    assert AccumulationSchedule({0: 1, 4: 4}, "update").at(7, epoch) == steps
    assert AccumulationSchedule.of({"gradient_accumulation_steps": {"0": 1, "4": 4}}).at(epoch, 0) == steps
    assert AccumulationSchedule.of({}).is_constant
