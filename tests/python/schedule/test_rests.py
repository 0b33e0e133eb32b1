"""What an edit leaves of passes under way: known answers for the rests that ``Schedule.edit`` takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.errors import ConfigError
from mtf.schedule.schedule import Schedule


def at_step_5() -> tuple[Schedule, dict[str, Any]]:
    """Three batches of a, which has 4, and two of b, which has 3; and a setup in which a has 7."""
    config = MultiDataLoaderConfig(
        sampling_strategy="round_robin",
        dataloader_names=["a", "b"],
        epoch_length_policy="fixed_num_steps",
        steps_per_epoch=20,
    )
    schedule = Schedule(config, {"a": 4, "b": 3}, seed=1)
    schedule.seek(0, 5)
    setup = copy.deepcopy(schedule.state_dict()["setups"][0])
    setup["sources"][0]["length"] = 7
    return schedule, setup


BEFORE = [("a", 0, 0), ("b", 0, 0), ("a", 0, 1), ("b", 0, 1), ("a", 0, 2)]


@pytest.mark.parametrize(
    ("left", "place", "draws_of_a"),
    [
        (0, (0, 7), [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]),  # the pass is over
        (1, (0, 6), [(0, 6), (1, 0), (1, 1), (1, 2), (1, 3)]),
        (2, (0, 5), [(0, 5), (0, 6), (1, 0), (1, 1), (1, 2)]),
        (7, (0, 0), [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]),  # all of it again
    ],
)
def test_the_rest_has_the_last_numbers_of_the_pass(left: int, place: Any, draws_of_a: Any) -> None:
    schedule, setup = at_step_5()
    assert schedule.places(5, 0) == [(0, 3), (0, 2)]
    assert schedule.edit(setup, [(0, left)], setup)
    assert schedule.places(5, 0) == [place, (0, 2)]
    draws = [(schedule.names[d.source], d.pass_, d.batch) for d in (schedule.at(step, 0) for step in range(15))]
    assert draws[:5] == BEFORE
    assert sorted(draws[5:7]) == [("a", *draws_of_a[0]), ("b", 0, 2)]
    assert [(pass_, batch) for name, pass_, batch in draws[5:] if name == "a"] == draws_of_a
    assert [(pass_, batch) for name, pass_, batch in draws[5:] if name == "b"][:4] == [(0, 2), (1, 0), (1, 1), (1, 2)]
    again = Schedule.from_bytes(Schedule.pack_state(schedule.state_dict()))
    assert [(again.names[d.source], d.pass_, d.batch) for d in (again.at(step, 0) for step in range(15))] == draws


def test_a_rest_of_more_than_a_pass_is_refused_and_changes_nothing() -> None:
    schedule, setup = at_step_5()
    before = schedule.state_dict()
    for rests in ([(0, 8)], [(2, 1)], [(-1, 1)]):
        with pytest.raises(ConfigError, match="which is more than a pass has"):
            schedule.edit(setup, rests, setup)
        assert schedule.state_dict() == before
