"""Cursor: draws taken ahead, moves by hand, and what is committed."""

from __future__ import annotations

from typing import Any

import pytest

import mtf
from mtf.data.cursor import Cursor


def cursor(**options: Any) -> Cursor:
    return Cursor(mtf.Schedule(mtf.MultiDataLoaderConfig(**options), {"a": 700, "b": 500}))


def take(one: Cursor, count: int) -> list[tuple[int, int, int]]:
    taken = []
    while len(taken) < count:
        if one.place >= one.refill_at:
            one.refill()
            if one.place >= one.num_drawn:
                break
        taken.append((one.sources[one.place], one.passes[one.place], one.batches[one.place]))
        one.counts[one.sources[one.place]] += 1
        one.place += 1
    return taken


def test_draws_are_those_of_the_schedule_in_blocks_that_grow() -> None:
    one = cursor()
    expected = [(d.source, d.pass_, d.batch) for d in one.schedule.epochs(1)]
    one.schedule.seek(0, 0)
    assert take(one, 10**6) == expected
    assert one.schedule.epoch_done


@pytest.mark.parametrize("before", [0, 7, 300])
def test_a_schedule_moved_by_hand_takes_the_draws_along(before: int) -> None:
    one, other = cursor(), cursor()
    take(one, before)
    one.expose().seek(0, 410)
    take(other, 410)
    assert take(one, 50) == take(other, 50)
    assert one.step == 460


def test_a_look_at_the_schedule_keeps_the_draws() -> None:
    one, other = cursor(), cursor()
    taken: list[Any] = []
    for _ in range(300):
        one.expose()
        taken += take(one, 1)
    sources = one.sources
    one.expose()
    taken += take(one, 1)
    assert one.sources is sources
    assert taken == take(other, 301)


def test_what_is_committed_stays_when_the_epoch_is_left() -> None:
    one = cursor()
    take(one, 20)
    one.commit()
    committed = one.state_dict()
    take(one, 5)
    one.seek_epoch(3)
    assert one.state_dict() == committed
    assert one.can_rewind
    one.commit()
    assert not one.can_rewind
    assert one.committed == (3, 0)


def test_an_edit_takes_effect_at_the_next_draw() -> None:
    one = cursor(sampling_strategy="SEQUENTIAL")
    assert {source for source, _, _ in take(one, 30)} == {0}
    with one.editing() as schedule:
        schedule.remove_source("a")
    assert {source for source, _, _ in take(one, 30)} == {1}
