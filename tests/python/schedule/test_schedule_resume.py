"""Any mixture, any edits, any cuts: what follows a state is what would have followed without it."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf.config.mixture import MultiDataLoaderConfig, WeightCurve
from mtf.enums import EpochLengthPolicy, Interpolation, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError
from mtf.schedule.schedule import Schedule

MAX_STEPS = 60
Step = tuple[int, int, str, int, int]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[MultiDataLoaderConfig, list[int | None]]:
    """A configuration with lengths; not each is a valid one."""
    n = draw(st.integers(1, 5))
    lengths = draw(st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=n, max_size=n))
    weights = st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0, 1 / 3]), min_size=n, max_size=n)
    strategy = draw(st.sampled_from(list(SamplingStrategy)))
    options: dict[str, Any] = {}
    if strategy is SamplingStrategy.WEIGHTED:
        options["weighted_order"] = draw(st.sampled_from(list(WeightedOrder)))
        if draw(st.booleans()):
            steps = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=4)))
            points = [(step, draw(weights)) for step in steps]
            options["weight_curve"] = WeightCurve(
                points, draw(st.sampled_from(list(Interpolation))), draw(st.integers(1, 7))
            )
        elif draw(st.booleans()):
            options["dataloader_weights"] = draw(weights)
    if strategy is SamplingStrategy.ALTERNATING:
        options["alternating_pattern"] = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    policy = draw(st.sampled_from(list(EpochLengthPolicy)))
    if policy is EpochLengthPolicy.FIXED_NUM_STEPS:
        options["steps_per_epoch"] = draw(st.integers(1, 30))
    config = MultiDataLoaderConfig(
        sampling_strategy=strategy,
        epoch_length_policy=policy,
        burst_size=draw(st.integers(1, 4)),
        cycle_short_loaders=draw(st.booleans()),
        continue_across_epochs=draw(st.sampled_from([None, True, False])),
        **options,
    )
    return config, lengths


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A call of a schedule: method, arguments, options. Not each is allowed everywhere."""
    name = draw(st.sampled_from(["dl0", "dl1", "dl2", "new0", "new1"]))
    weight = draw(st.sampled_from([0.0, 0.5, 2.0]))
    kind = draw(st.sampled_from(["update_weights", "set_weight", "add_source", "remove_source", "set_strategy"]))
    if kind == "update_weights":
        return kind, (draw(st.lists(st.sampled_from([0.0, 1.0, 0.3]), min_size=1, max_size=5)),), {}
    if kind == "set_weight":
        return kind, (name, weight), {}
    if kind == "add_source":
        return kind, (name, draw(st.one_of(st.none(), st.integers(1, 6))), weight), {}
    if kind == "remove_source":
        return kind, (name,), {}
    strategy = draw(st.sampled_from(list(SamplingStrategy)))
    options: dict[str, Any] = {"burst_size": draw(st.integers(1, 3))}
    if strategy is SamplingStrategy.ALTERNATING:
        options["alternating_pattern"] = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    if strategy is SamplingStrategy.WEIGHTED:
        options["weighted_order"] = draw(st.sampled_from(list(WeightedOrder)))
        options["weight_curve"] = None
    return kind, (strategy,), options


class Walk:
    """A loop over a schedule, with edits at given places and sources that end where ``true_length`` says."""

    def __init__(self, schedule: Schedule, calls: dict[tuple[int, int], list[Any]]) -> None:
        self.schedule = schedule
        self.calls = calls
        self.steps: list[Step] = []
        self.at = (0, 0)

    def true_length(self, source: int) -> int:
        length = self.schedule.lengths[source]
        return source + 2 if length is None else length

    def edit(self) -> None:
        for method, arguments, options in self.calls.get(self.at, []):
            before = self.schedule.state_dict()
            try:
                getattr(self.schedule, method)(*arguments, **options)
            except ConfigError:
                assert self.schedule.state_dict() == before

    def step(self) -> None:
        """One more draw, in the next epoch if this one is done."""
        self.edit()
        while True:
            sources, passes, batches = (column.tolist() for column in self.schedule.draws(1))
            if not sources:
                assert self.schedule.epoch_done
                assert self.schedule.num_steps() == self.schedule.step
                self.schedule.next_epoch()
                self.at = (self.at[0] + 1, 0)
                return
            if batches[0] == self.true_length(sources[0]):
                self.schedule.end_pass(sources[0], batches[0])
                continue
            epoch, step = self.schedule.position
            self.steps.append((epoch, step, self.schedule.names[sources[0]], passes[0], batches[0]))
            self.schedule.advance(1)
            self.at = (epoch, step + 1)
            return


def cut(schedule: Schedule, fresh: Schedule, through_bytes: bool) -> Schedule:
    """What a restarted process has: ``fresh``, or nothing, and the state."""
    if through_bytes:
        data = schedule.to_bytes()
        again = Schedule.from_bytes(data)
        assert again.to_bytes() == data
    else:
        fresh.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        again = fresh
    assert again.state_dict() == schedule.state_dict()
    assert again.fingerprints == schedule.fingerprints
    assert again.names == schedule.names
    assert again.position == schedule.position
    assert again.num_steps() == schedule.num_steps()
    return again


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=400, deadline=None)
@given(
    mixture=mixtures(),
    seed=st.integers(0, 2**64 - 1),
    calls=st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 15)), st.lists(edits(), max_size=2), max_size=5),
    cuts=st.sets(st.integers(0, MAX_STEPS), min_size=1, max_size=5),
)
def test_a_resumed_schedule_goes_on_as_the_original(
    mixture: tuple[MultiDataLoaderConfig, list[int | None]],
    seed: int,
    calls: dict[tuple[int, int], list[Any]],
    cuts: set[int],
) -> None:
    config, lengths = mixture
    try:
        original = Walk(Schedule(config, lengths, seed), calls)
    except ConfigError:
        return
    resumed = Walk(Schedule(config, lengths, seed), calls)
    for k in range(MAX_STEPS):
        if k in cuts:
            resumed.schedule = cut(resumed.schedule, Schedule(config, lengths, seed), through_bytes=k % 2 == 0)
        original.step()
        resumed.step()
        assert resumed.steps == original.steps
        assert resumed.at == original.at
    assert resumed.schedule.state_dict() == original.schedule.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resumed.schedule.config == original.schedule.config
