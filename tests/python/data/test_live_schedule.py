"""What is changed in ``multi.schedule`` by hand: it takes effect at the next batch, is saved, and breaks nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import mtf

FIXED = {"epoch_length_policy": "FIXED_NUM_STEPS", "steps_per_epoch": 400, "sampling_strategy": "WEIGHTED"}


def mixture(**options: Any) -> mtf.MultiLoader:
    loaders = {"a": [0] * 30, "b": [1] * 30, "c": [2] * 30}
    given = {**FIXED, "dataloader_weights": [1.0, 1.0, 1.0], **options}
    return mtf.MultiLoader(loaders, mtf.MultiDataLoaderConfig(**given), seed=3)


def take(multi: mtf.MultiLoader, number: int) -> list[tuple[str, int, int, int, int]]:
    batches = iter(multi)
    return [(b.name, b.step, b.pass_, b.batch, b.epoch) for b in (next(batches) for _ in range(number))]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "weights": lambda one: one.update_weights([0.0, 0.0, 1.0]),
    "weight": lambda one: one.set_weight("a", 7.0),
    "strategy": lambda one: one.set_strategy("WEIGHTED", dataloader_weights=[1.0, 2.0, 3.0], burst_size=2),
    "removal": lambda one: one.remove_source("b"),
}


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("commits", [False, True])
def test_an_edit_by_hand_is_that_of_the_mixture(change: str, is_held: bool, commits: bool) -> None:
    """Also by a reference that was taken before the draws ahead, and after a resume."""
    by_hand, right = mixture(), mixture()
    held = by_hand.schedule
    for one in (by_hand, right):
        take(one, 37)
        if commits:
            one.commit()
    CHANGES[change](held if is_held else by_hand.schedule)
    CHANGES[change](right) if change != "removal" else right.remove_source("b")
    assert by_hand.state_dict() == right.state_dict()
    assert by_hand.config == right.config
    state = by_hand.state_dict()
    following = take(right, 300)
    assert take(by_hand, 300) == following
    resumed = mixture()
    resumed.load_state_dict(state)
    assert take(resumed, 300) == following
    for one in (by_hand, right, resumed):
        one.close()


@pytest.mark.parametrize("commits", [False, True])
def test_a_move_by_hand_takes_the_mixture_along_at_once(commits: bool) -> None:
    one, right = mixture(), mixture()
    held = one.schedule
    take(one, 37)
    if commits:
        one.commit()
    held.seek(2, 11)
    assert one.epoch == 2
    state = one.state_dict()
    right.set_epoch(2)
    take(right, 11)
    following = take(right, 50)
    assert take(one, 50) == following
    resumed = mixture()
    resumed.load_state_dict(state)
    assert take(resumed, 50) == following
    held.seek(2, 400)
    held.next_epoch()
    assert [(epoch, step) for _, step, _, _, epoch in take(one, 2)] == [(3, 0), (3, 1)]
    one.close()


def test_what_was_handed_out_and_not_committed_comes_again_after_a_move_and_a_rewind() -> None:
    one = mixture()
    take(one, 10)
    one.commit()
    lost = take(one, 5)
    one.schedule.seek(4, 0)
    one.rewind()
    assert take(one, 5) == lost


def test_a_source_cannot_be_added_without_its_loader() -> None:
    one = mixture()
    with pytest.raises(mtf.UsageError, match=r"needs a loader: call MultiLoader\.add_source"):
        one.schedule.add_source("d", 3, 1.0)
    assert [step for _, step, *_ in take(one, 3)] == [0, 1, 2]


def test_an_edit_that_is_refused_changes_nothing() -> None:
    one, right = mixture(), mixture()
    take(one, 5)
    take(right, 5)
    with pytest.raises(mtf.ConfigError):
        one.schedule.update_weights([1.0, -1.0, 0.0])
    with pytest.raises(mtf.ConfigError):
        one.schedule.seek(0, 10_000)
    assert take(one, 100) == take(right, 100)
    one.close()


def test_a_closed_mixture_refuses_edits_and_a_schedule_outlives_it() -> None:
    one = mixture()
    held = one.schedule
    one.close()
    with pytest.raises(mtf.Closed):
        held.update_weights([1.0, 2.0, 3.0])
    del one
    held.update_weights([1.0, 2.0, 3.0])
