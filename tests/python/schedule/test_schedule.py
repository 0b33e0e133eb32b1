"""Schedules: worked examples, errors, edits, states, files of every version."""

from __future__ import annotations

import copy
import json
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtf import _core
from mtf.config.mixture import MultiDataLoaderConfig, WeightCurve
from mtf.enums import EpochLengthPolicy, Interpolation, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError, StateMismatch
from mtf.schedule.schedule import Draw, Schedule

GOLDEN = Path(__file__).parents[2] / "golden"
FIXED = EpochLengthPolicy.FIXED_NUM_STEPS
MIN, MAX, SUM = EpochLengthPolicy.MIN_LENGTH, EpochLengthPolicy.MAX_LENGTH, EpochLengthPolicy.SUM_OF_LENGTHS
WEIGHTED, ALTERNATING = SamplingStrategy.WEIGHTED, SamplingStrategy.ALTERNATING
SEQUENTIAL = SamplingStrategy.SEQUENTIAL


def make(lengths: Any, seed: int = 0, **options: Any) -> Schedule:
    return Schedule(MultiDataLoaderConfig(**options), lengths, seed)


def shown(schedule: Schedule, epoch: int = 0) -> str:
    return "".join("ABCDE"[i] for i in schedule.sources(epoch))


@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        ((3, 5), {"epoch_length_policy": MIN}, "ABABAB"),
        ((3, 5), {"epoch_length_policy": MAX}, "ABABABABAB"),
        ((3, 5), {}, "ABABABAB"),
        ((3, 5), {"cycle_short_loaders": False}, "ABABABBB"),
        ((3, 5), {"cycle_short_loaders": False, "epoch_length_policy": MAX}, "ABABABBB"),
        (
            (4, 5),
            {"sampling_strategy": ALTERNATING, "alternating_pattern": [0, 0, 1], "epoch_length_policy": MIN},
            "AABAAB",
        ),
        ((3, 5), {"burst_size": 2}, "AABBAABB"),
        ((3, 5), {"burst_size": 2, "cycle_short_loaders": False}, "AABBABBB"),
        ((3, 5), {"sampling_strategy": SEQUENTIAL}, "AAABBBBB"),
        ((3, 5), {"sampling_strategy": SEQUENTIAL, "epoch_length_policy": MAX}, "AAAAABBBBB"),
        ((3, 5), {"sampling_strategy": SEQUENTIAL, "epoch_length_policy": MIN}, "AAABBB"),
        (
            (3, 5),
            {"sampling_strategy": SEQUENTIAL, "epoch_length_policy": FIXED, "steps_per_epoch": 13},
            "AAABBBBBAAABB",
        ),
        ((3, 5), {"epoch_length_policy": FIXED, "steps_per_epoch": 99, "cycle_short_loaders": False}, "ABABABBB"),
        ((9, 2, 9), {"sampling_strategy": ALTERNATING, "alternating_pattern": [0, 2]}, "AC" * 9),
    ],
)
def test_worked_examples(lengths: tuple[int, ...], options: dict[str, Any], expected: str) -> None:
    assert shown(make(lengths, **options)) == expected


def test_epochs_open_afresh_or_go_on() -> None:
    afresh = make([3, 5])
    assert [tuple(d)[1:2] + tuple(d)[3:] for d in afresh][-2:] == [(0, 1, 0), (1, 0, 3)]
    assert afresh.position == (1, 0)
    assert afresh.start_counts == [(2, 0), (1, 0)]
    going_on = make([3, 5], continue_across_epochs=True)
    list(going_on)
    assert going_on.start_counts == [(1, 1), (0, 4)]
    fixed = make([3, 5], epoch_length_policy=FIXED, steps_per_epoch=4)
    list(fixed)
    assert fixed.start_counts == [(0, 2), (0, 2)]


@pytest.mark.parametrize("order", ["RANDOM", "SHUFFLED", "EVEN"])
@pytest.mark.parametrize("burst_size", [1, 5])
def test_every_seed_and_epoch_has_a_weighted_order_of_its_own(order: str, burst_size: int) -> None:
    def orders(seed: int) -> list[str]:
        schedule = make(
            [40] * 5, seed, sampling_strategy=WEIGHTED, dataloader_weights=[1, 1, 1, 2, 3], weighted_order=order,
            burst_size=burst_size,
        )  # fmt: skip
        return [shown(schedule, epoch) for epoch in range(4)]

    found = [order for seed in range(4) for order in orders(seed)]
    assert len(set(found)) == 16
    assert orders(2) == found[8:12]


def test_iteration_moves_the_cursor_and_sees_edits() -> None:
    schedule = make([4, 4], dataloader_names=["a", "b"])
    seen = []
    for draw in schedule:
        seen.append(draw.name)
        if draw.step == 2:
            assert schedule.position == (0, 3)
            schedule.remove_source("a")
    assert seen == ["a", "b", "a", "b", "b", "b"]
    assert schedule.position == (1, 0)
    assert [d.name for d in schedule.epochs(2)] == ["b"] * 8
    assert schedule.position == (3, 0)


@pytest.mark.parametrize("call", ["at", "num_steps", "counts", "seek", "report", "sources"])
def test_ctrl_c_ends_the_way_to_a_far_epoch(call: str) -> None:
    calls: dict[str, Callable[[Schedule], Any]] = {
        "at": lambda schedule: schedule.at(0, epoch=2**40),
        "num_steps": lambda schedule: schedule.num_steps(2**40),
        "counts": lambda schedule: schedule.counts(0, epoch=2**40),
        "seek": lambda schedule: schedule.seek(2**40, 0),
        "report": lambda schedule: schedule.report(2**40),
        "sources": lambda schedule: schedule.sources(epoch=2**40),
    }
    schedule = make([3, 5])
    before = schedule.state_dict()
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come before the call begins
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            calls[call](schedule)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert schedule.state_dict() == before
    assert schedule.at(1, epoch=1000) == make([3, 5]).at(1, epoch=1000)


def test_draw_is_a_plain_tuple_with_names() -> None:
    draw = make([3, 5]).at(3)
    assert isinstance(draw, Draw)
    assert draw == (3, 1, "dl1", 0, 1)
    assert (draw.step, draw.source, draw.name, draw.pass_, draw.batch) == draw
    assert pickle.loads(pickle.dumps(draw)) == draw
    assert copy.deepcopy(draw) == draw
    assert isinstance(pickle.loads(pickle.dumps(draw)), Draw)
    assert repr(draw) == "mtf.Draw(step=3, source=1, name='dl1', pass_=0, batch=1)"
    assert Draw(draw) == draw
    for items in ([], draw[:4], (*draw, 0)):
        with pytest.raises(TypeError, match="takes a sequence of 5 items"):
            Draw(items)
    match draw:
        case Draw(step, source, name, pass_, batch):
            assert (step, source, name, pass_, batch) == draw
    with pytest.raises(AttributeError):
        draw.step = 4  # type: ignore[misc]


@pytest.mark.parametrize("n", [0, 3, 100])
def test_the_next_draws_as_arrays_and_as_lists(n: int) -> None:
    schedule = make([3, 5, 4], sampling_strategy="WEIGHTED", dataloader_weights=[0.5, 0.3, 0.2])
    schedule.advance(2)
    expected = [schedule.at(step) for step in range(2, min(2 + n, schedule.num_steps()))]
    arrays, lists = schedule.draws(n), schedule.draw_lists(n)
    assert lists == ([d.source for d in expected], [d.pass_ for d in expected], [d.batch for d in expected])
    assert tuple(column.tolist() for column in arrays) == lists
    assert [column.dtype for column in arrays] == [np.int32, np.int64, np.int64]
    assert schedule.step == 2


def test_at_takes_what_it_says() -> None:
    schedule = make([3, 5])
    expected = schedule.at(3)
    for same in (schedule.at(np.int64(3)), schedule.at(step=3), schedule.at(3, None), schedule.at(3, epoch=0)):  # type: ignore[arg-type]
        assert same == expected
    assert schedule.at(epoch=1, step=3) == schedule.at(3, 1) != expected
    schedule.seek(1, 0)
    assert schedule.at(3) == schedule.at(3, 1)
    untyped: Any = schedule
    for args, named, message in (
        ((), {}, "needs step"),
        ((1, 2, 3), {}, "got 3 arguments"),
        ((1,), {"step": 1}, "once each, got 'step'"),
        ((1,), {"epok": 1}, "once each, got 'epok'"),
        ((-1,), {}, "step must be an integer in"),
        ((2**64,), {}, "step must be an integer in"),
        ((1.0,), {}, "step must be an integer in"),
        ((1, "a"), {}, "epoch must be an integer in"),
    ):
        with pytest.raises(TypeError, match=message):
            untyped.at(*args, **named)
    with pytest.raises(ConfigError, match="step must be in"):
        schedule.at(8)
    with pytest.raises(TypeError, match="__init__"):
        Schedule.__new__(Schedule).at(0)
    untyped = Schedule
    with pytest.raises(TypeError, match="doesn't apply"):
        untyped.at(1, 2)


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ((), {}, "a mixture needs at least one dataloader, got none"),
        ((3, 0), {}, "dataloader 'dl1' (index 1) is empty: it must have at least one batch, got 0"),
        ((3, -1), {}, "the length of dataloader 'dl1' must be a number of batches or None, got -1"),
        ((3, 2.0), {}, "the length of dataloader 'dl1' must be a number of batches or None, got 2.0"),
        (
            (3, 5),
            {"dataloader_names": ["a"]},
            "lengths must have one entry for each of the 1 dataloader_names (a), got 2",
        ),
        (
            (3, 5),
            {"dataloader_names": ["a", "a"]},
            "dataloader_names[1] must be unique, got 'a', which is also dataloader_names[0]",
        ),
        ((3, 5), {"dataloader_names": ["a", ""]}, "dataloader_names[1] must not be empty"),
        (
            {"tain": 3},
            {"dataloader_names": ["train"]},
            "'tain' is not among the dataloader_names; did you mean 'train'? (known: train)",
        ),
        ({"a": 3}, {"dataloader_names": ["a", "b"]}, "dataloader_names: nothing is given for 'b'"),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "dataloader_weights": [1]},
            "dataloader_weights must have one weight per dataloader (2), got 1",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "dataloader_weights": []},
            "dataloader_weights must have one weight per dataloader (2), got 0",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "dataloader_weights": [1, -0.5]},
            "dataloader_weights[1] ('dl1') must be finite and not negative, got -0.5",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "dataloader_weights": [float("nan"), 1]},
            "dataloader_weights[0] ('dl0') must be finite and not negative, got nan",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "dataloader_weights": [1, float("inf")]},
            "dataloader_weights[1] ('dl1') must be finite and not negative, got inf",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "dataloader_weights": [0, 0]},
            "dataloader_weights must have a positive weight, all are 0",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "dataloader_weights": ["x", 0]},
            "dataloader_weights must be numbers, one per dataloader in order, got ['x', 0]",
        ),
        (
            (3, 5),
            {"sampling_strategy": ALTERNATING},
            "alternating_pattern must have at least one entry with ALTERNATING, got none",
        ),
        (
            (3, 5),
            {"sampling_strategy": ALTERNATING, "alternating_pattern": [0, 2]},
            "alternating_pattern[1] must be the index of a dataloader, in [0, 2), got 2",
        ),
        (
            (3, 5),
            {"sampling_strategy": ALTERNATING, "alternating_pattern": [-1]},
            "alternating_pattern[0] must be the index of a dataloader, in [0, 2), got -1",
        ),
        ((3, 5), {"burst_size": 0}, "burst_size must be at least 1, got 0"),
        ((3, 5), {"burst_size": -3}, "burst_size must be at least 1, got -3"),
        ((3, 5), {"burst_size": 1.5}, "burst_size must be an integer, got 1.5"),
        ((3, 5), {"burst_size": sys.maxsize}, f"burst_size must be below 2^62, got {sys.maxsize}"),
        (
            (3, 5),
            {"epoch_length_policy": FIXED},
            "steps_per_epoch must be set with epoch_length_policy=FIXED_NUM_STEPS, got None",
        ),
        (
            (3, 5),
            {"epoch_length_policy": FIXED, "steps_per_epoch": 0},
            "steps_per_epoch must be at least 1, got 0",
        ),
        (
            (3, 5),
            {"epoch_length_policy": FIXED, "steps_per_epoch": sys.maxsize},
            f"steps_per_epoch must be below 2^62, got {sys.maxsize}",
        ),
        (
            (3, None),
            {},
            "epoch_length_policy=SUM_OF_LENGTHS needs the length of dataloader 'dl1' (index 1), which is unknown; use "
            "epoch_length_policy=FIXED_NUM_STEPS with steps_per_epoch, or cycle_short_loaders=False",
        ),
        (
            (3, None),
            {"epoch_length_policy": MAX},
            "MAX_LENGTH can never end: dataloader 'dl1' (index 1) has no known length and is cycled",
        ),
        (
            (3, None),
            {"sampling_strategy": SEQUENTIAL, "epoch_length_policy": MIN},
            "epoch_length_policy=MIN_LENGTH needs the length of dataloader 'dl1' (index 1), which is unknown; use "
            "epoch_length_policy=FIXED_NUM_STEPS",
        ),
        (
            (3, 5),
            {"epoch_length_policy": "FIXED_NUM_STEP"},
            "got 'FIXED_NUM_STEP'; did you mean 'FIXED_NUM_STEPS'?",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "weight_curve": WeightCurve([])},
            "weight_curve.points must have at least one point, got none",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "weight_curve": WeightCurve([(0, [1, 1]), (0, [1, 2])])},
            "weight_curve.points[1] must come after the point before it: step 0 does not follow 0",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "weight_curve": WeightCurve([(0, [1])])},
            "weight_curve.points[0] must have one weight per source (2), got 1",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "weight_curve": WeightCurve([(0, [0, 0])])},
            "weight_curve.points[0] must have a positive weight, all are 0",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "weight_curve": WeightCurve([(0, [1, 1])], every=0)},
            "weight_curve.every must be at least 1, got 0",
        ),
        (
            (3, 5),
            {"sampling_strategy": WEIGHTED, "weight_curve": WeightCurve([(-1, [1, 1])])},
            "weight_curve.points[0]: the step must not be negative, got -1",
        ),
    ],
)
def test_bad_configurations(lengths: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(lengths, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed must be an integer in"):
        make([3], seed=seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataloader_weights": [1, 2]}, "dataloader_weights has no effect with sampling_strategy=ROUND_ROBIN"),
        ({"alternating_pattern": [0]}, "alternating_pattern has no effect with sampling_strategy=ROUND_ROBIN"),
        ({"weighted_order": WeightedOrder.EVEN}, "weighted_order has no effect with sampling_strategy=ROUND_ROBIN"),
        ({"weight_curve": WeightCurve([(0, [1, 1])])}, "weight_curve has no effect with sampling_strategy=ROUND_ROBIN"),
        (
            {"sampling_strategy": SEQUENTIAL, "burst_size": 2},
            "burst_size has no effect with sampling_strategy=SEQUENTIAL",
        ),
        ({"steps_per_epoch": 3}, "steps_per_epoch has no effect with epoch_length_policy=SUM_OF_LENGTHS"),
        (
            {
                "sampling_strategy": WEIGHTED,
                "dataloader_weights": [1, 1],
                "weight_curve": WeightCurve([(0, [1, 1])]),
            },
            "dataloader_weights has no effect beside weight_curve",
        ),
    ],
)
def test_options_without_effect_warn(options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        make([3, 5], **options)


def test_bad_calls_change_nothing() -> None:
    schedule = make([3, 5], dataloader_names=["easy", "hard"])
    schedule.advance(2)
    before = schedule.state_dict()

    def refuses(message: str, call: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            call()
        assert message in str(caught.value)
        assert schedule.state_dict() == before

    refuses(
        "there is no dataloader 'hrad'; did you mean 'hard'? (known: easy, hard)",
        lambda: schedule.remove_source("hrad"),
    )
    refuses("there is already a dataloader 'easy' (index 0)", lambda: schedule.add_source("easy", 3))
    refuses("dataloader 'x' (index 2) is empty", lambda: schedule.add_source("x", 0))
    refuses("needs the length of dataloader 'x' (index 2)", lambda: schedule.add_source("x"))
    refuses(
        "set_strategy has no option 'burst'; did you mean 'burst_size'?",
        lambda: schedule.set_strategy("WEIGHTED", burst=2),
    )
    refuses("did you mean 'WEIGHTED'?", lambda: schedule.set_strategy("WEIGTED"))
    refuses("alternating_pattern must have at least one entry", lambda: schedule.set_strategy("ALTERNATING"))
    refuses("step must be in [0, 8) in epoch 0, got 8", lambda: schedule.at(8))
    refuses("step must be in [0, 8] in epoch 0, got 9", lambda: schedule.counts(9))
    refuses("step must be in [0, 8] in epoch 0, got 9", lambda: schedule.seek(0, 9))
    refuses("the epoch ends at step 8", lambda: schedule.advance(7))
    refuses("the next epoch opens when this one is done", schedule.next_epoch)
    refuses("its pass cannot end after 2 batches", lambda: schedule.end_pass(0, 2))
    refuses("source must be the index of a dataloader, in [0, 2), got 2", lambda: schedule.end_pass(2, 0))
    refuses("source must be the index of a dataloader, in [0, 2), got -1", lambda: schedule.extend_pass(-1, 9))
    refuses("a state can be taken up to the cursor", lambda: schedule.state_dict(3))
    refuses("epochs must be at least 1, got 0", lambda: schedule.plan(0))
    with pytest.warns(UserWarning, match="update_weights has no effect"):
        refuses("one weight per dataloader (2), got 1", lambda: schedule.update_weights([1.0]))
    schedule.remove_source("easy")
    before = schedule.state_dict()
    refuses("the last dataloader cannot be removed", lambda: schedule.remove_source("hard"))


def test_edits_in_weighted_mixtures() -> None:
    schedule = make([30, 50], sampling_strategy=WEIGHTED, dataloader_weights=[3, 1], dataloader_names=["a", "b"])
    state = schedule.state_dict()
    schedule.update_weights([3, 1])
    schedule.update_weights({"b": 1, "a": 3})
    assert schedule.state_dict() == state
    schedule.advance(10)
    schedule.set_weight("b", 0.2)
    assert schedule.config.dataloader_weights == [3.0, 0.2]
    with pytest.raises(ConfigError, match="weight must be given for dataloader 'c'"):
        schedule.add_source("c", 5)
    schedule.add_source("c", 5, weight=0.5)
    assert schedule.num_steps() == 85
    schedule.remove_source("b")
    assert schedule.config.dataloader_weights == [3.0, 0.5]
    assert schedule.names == ["a", "b", "c"]
    assert schedule.present == [True, False, True]
    given = int(schedule.counts(10)[1])
    assert schedule.num_steps() == 35 + given
    with pytest.raises(ConfigError, match="'b' is not among the dataloader_weights"):
        schedule.update_weights({"a": 1, "b": 2})
    schedule.add_source("b", 50, weight=1)
    assert schedule.present == [True, True, True]


@pytest.mark.parametrize("curve", [None, WeightCurve([(0, [1, 2, 3]), (50, [3, 2, 1])])])
def test_what_a_removed_source_weighed_is_no_edit(curve: WeightCurve | None) -> None:
    weights = [1.0, 2.0, 3.0] if curve is None else None
    config = MultiDataLoaderConfig(
        sampling_strategy=WEIGHTED, dataloader_weights=weights, weight_curve=curve, burst_size=3
    )
    schedule = Schedule(config, lengths=[30, 30, 30])
    schedule.advance(4)
    schedule.remove_source("dl1")
    schedule.advance(4)
    state = schedule.state_dict()
    schedule.set_config(schedule.config)
    schedule.set_strategy(WEIGHTED)
    assert schedule.state_dict() == state


def test_edits_that_have_no_effect_warn() -> None:
    schedule = make([3, 5], sampling_strategy=ALTERNATING, alternating_pattern=[0, 1])
    with pytest.warns(UserWarning, match="alternating_pattern doesn't name it"):
        schedule.add_source("new", 3)
    with pytest.warns(UserWarning, match="set_weight has no effect with sampling_strategy=ALTERNATING"):
        schedule.set_weight("new", 3)


def test_names_cannot_be_edited() -> None:
    schedule = make([3, 5])
    with pytest.raises(ConfigError, match="dataloader_names can't be changed by an edit"):
        schedule.set_config(MultiDataLoaderConfig(dataloader_names=["x", "y"]))


def test_weight_curves() -> None:
    steps = WeightCurve([(0, [1, 0]), (10, [0, 1])])
    schedule = make(
        [30, 50], sampling_strategy=WEIGHTED, weight_curve=steps, epoch_length_policy=FIXED, steps_per_epoch=16
    )
    assert shown(schedule) == "A" * 10 + "B" * 6
    assert shown(schedule, 1) == "B" * 16
    line = WeightCurve([(0, [1, 0]), (1000, [0, 1])], Interpolation.LINEAR, every=10)
    smooth = make(
        [30, 50], sampling_strategy=WEIGHTED, weight_curve=line, epoch_length_policy=FIXED, steps_per_epoch=2000
    )
    counts = [int(smooth.counts(k)[1]) for k in (0, 250, 500, 1000, 2000)]
    assert counts[0] == 0
    assert abs(counts[1] - 31) < 25
    assert abs(counts[2] - 125) < 45
    assert abs(counts[3] - 500) < 60
    assert counts[4] - counts[3] == 1000
    smooth.advance(500)
    weights = smooth.plan().epochs[0].sources[1].expected_share
    with pytest.warns(UserWarning, match="its point at step 1000 won't take effect; keep_curve=True"):
        smooth.set_weight("dl1", 0.0)
    assert smooth.config.weight_curve is None
    assert weights is not None
    assert smooth.config.dataloader_weights == [0.5, 0.0]


def curved(points: list[tuple[int, list[float]]], interpolation: Interpolation = Interpolation.STEP) -> Schedule:
    curve = WeightCurve(points, interpolation, every=10)
    return make([90, 90], sampling_strategy=WEIGHTED, weight_curve=curve, epoch_length_policy=FIXED, steps_per_epoch=90)


def test_an_edit_says_what_becomes_of_the_rest_of_a_curve() -> None:
    points = [(0, [1, 1]), (50, [3, 1]), (80, [0, 1])]
    schedule = curved(points)
    schedule.advance(20)
    with pytest.warns(UserWarning, match="replaces weight_curve at step 20 .* 2 points at steps 50, 80 "):
        schedule.update_weights([1, 2])
    assert schedule.config.weight_curve is None
    late = curved(points)
    late.advance(85)
    late.update_weights([1, 2])  # no point is left to lose
    assert late.config.weight_curve is None


def test_an_edit_can_bend_a_curve() -> None:
    schedule = curved([(0, [1, 1]), (50, [3, 1]), (80, [0, 1])])
    schedule.advance(20)
    schedule.update_weights([1, 2], keep_curve=True)
    curve = schedule.config.weight_curve
    assert curve is not None
    assert curve.points == [(20, [1, 2]), (50, [3, 2]), (80, [0, 2])], "in proportion to the change made here"
    schedule.advance(65)
    schedule.set_weight("dl0", 1, keep_curve=True)
    curve = schedule.config.weight_curve
    assert curve is not None
    assert curve.points == [(85, [1, 2])]
    resumed = Schedule.from_bytes(schedule.to_bytes())
    assert resumed.sources(0, 85).tolist() == schedule.sources(0, 85).tolist()


def test_a_source_without_weight_is_added_to_the_rest_of_a_curve() -> None:
    schedule = curved([(0, [1, 0]), (50, [1, 1])], Interpolation.LINEAR)
    schedule.set_weight("dl1", 0.5, keep_curve=True)
    curve = schedule.config.weight_curve
    assert curve is not None
    assert curve.points == [(0, [1, 0.5]), (50, [1, 1.5])]


def test_enums_have_the_names_of_the_core() -> None:
    enums = (SamplingStrategy, WeightedOrder, EpochLengthPolicy, Interpolation)
    assert _core.enum_names() == {enum.__name__: [member.name for member in enum] for enum in enums}


def test_the_state_stays_small_under_edits() -> None:
    schedule = make(
        [90, 90, 90], sampling_strategy=WEIGHTED, weighted_order=WeightedOrder.EVEN, epoch_length_policy=FIXED,
        steps_per_epoch=10**6,
    )  # fmt: skip
    sizes = []
    for step in range(3000):
        schedule.update_weights([1, 1 + step / 3000, 2])
        schedule.advance(1)
        if step in (100, 2999):
            sizes.append(len(schedule.to_bytes()))
    assert sizes[1] < sizes[0] + 40
    resumed = Schedule.from_bytes(schedule.to_bytes())
    assert resumed.sources(0, 3000, 3100).tolist() == schedule.sources(0, 3000, 3100).tolist()
    with pytest.raises(ConfigError, match="the draws before step 2999 of this epoch are out of reach"):
        resumed.at(0)
    assert resumed.plan().epochs[0].num_steps == 10**6


def test_a_schedule_of_the_first_format_goes_on_writing_it() -> None:
    """Its changes of weights start afresh, so a run that was resumed draws what it would have drawn."""
    schedule = Schedule.from_bytes((GOLDEN / "schedule_v1_curve_even.bin").read_bytes())
    assert schedule.state_dict()["version"] == 1
    schedule.seek(3, 20)
    schedule.update_weights([0.5, 0.3, 0.2])
    schedule.advance(5)
    again = Schedule.from_bytes(schedule.to_bytes())
    assert again.state_dict() == schedule.state_dict()
    assert again.state_dict()["version"] == 1
    assert again.sources(3, 0, 70).tolist() == schedule.sources(3, 0, 70).tolist()


@pytest.mark.parametrize(
    ("interpolation", "every", "promised"),
    [
        # Draws of the second source by steps 50, 90, 100, 110: weights hold from one multiple of `every` to the next.
        (Interpolation.LINEAR, 25, [0.25 * 25, 0.25 * 25 + 0.5 * 25 + 0.75 * 15, 37.5, 47.5]),
        (Interpolation.LINEAR, 40, [0.4 * 10, 0.4 * 40 + 0.8 * 10, 0.4 * 40 + 0.8 * 20, 0.4 * 40 + 0.8 * 30]),
        (Interpolation.LINEAR, 1, [12.25, 40.05, 49.5, 59.5]),
        (Interpolation.STEP, 25, [0.0, 0.0, 0.0, 10.0]),
    ],
)
def test_weight_curves_hold_for_every_steps(interpolation: Interpolation, every: int, promised: list[float]) -> None:
    for order in WeightedOrder:
        schedule = make(
            [300, 300],
            sampling_strategy=WEIGHTED,
            weighted_order=order,
            weight_curve=WeightCurve([(0, [1, 0]), (100, [0, 1])], interpolation, every),
            epoch_length_policy=FIXED,
            steps_per_epoch=200,
        )
        assert [schedule.expected_counts(step)[1] for step in (50, 90, 100, 110)] == pytest.approx(promised)
        assert schedule.counts(0).tolist() == [0, 0]
        assert set(schedule.sources(0, 120).tolist()) == {1}, "behind the last point its weights hold"
        assert set(schedule.sources(1).tolist()) == {1}, "steps count from the beginning of training"


def test_an_end_found_at_run_time() -> None:
    schedule = make([None, 4], epoch_length_policy=MIN)
    assert schedule.num_steps() is None
    with pytest.raises(ConfigError, match="stop must be given"):
        schedule.sources()
    with pytest.raises(ConfigError, match="epoch 1 is not known yet"):
        schedule.at(0, 1)
    assert schedule.sources(stop=6).tolist() == [0, 1, 0, 1, 0, 1]
    schedule.advance(4)
    schedule.end_pass(0, 2)
    assert schedule.epoch_done
    assert schedule.num_steps() == 4
    cycled = make([None, 4], epoch_length_policy=FIXED, steps_per_epoch=8)
    cycled.advance(2)
    cycled.end_pass(0, 1)
    assert tuple(cycled.at(2)) == (2, 0, "dl0", 1, 0)
    with pytest.raises(ConfigError, match="gave no batch in pass 1: an empty source cannot be cycled"):
        cycled.end_pass(0, 0)
    log = cycled.fingerprints["log"]
    cycled.extend_pass(1, 5)
    assert cycled.fingerprints["log"] != log


@pytest.mark.parametrize(
    ("lengths", "options", "num_steps"),
    [
        ((None, 3), {"epoch_length_policy": MIN}, None),
        ((None, 3), {"epoch_length_policy": MIN, "cycle_short_loaders": False}, None),
        ((None, 3), {"cycle_short_loaders": False}, None),
        ((None, 3), {"cycle_short_loaders": False, "epoch_length_policy": MAX}, None),
        ((None, 3), {"epoch_length_policy": FIXED, "steps_per_epoch": 7}, 7),
        ((None, 6), {"epoch_length_policy": FIXED, "steps_per_epoch": 7, "cycle_short_loaders": False}, None),
        ((None, 7), {"epoch_length_policy": FIXED, "steps_per_epoch": 7, "cycle_short_loaders": False}, 7),
        ((None, 3), {"sampling_strategy": ALTERNATING, "alternating_pattern": [1]}, 3),
        ((None, 3), {"sampling_strategy": WEIGHTED, "dataloader_weights": [0, 1], "epoch_length_policy": MIN}, 3),
    ],
)
def test_the_number_of_steps_is_known_or_none(
    lengths: tuple[int | None, ...], options: dict[str, Any], num_steps: int | None
) -> None:
    """Never a bound: a number is final as long as the known lengths are right."""
    assert make(lengths, **options).num_steps() == num_steps


def test_an_unknown_end_closes_the_epoch_once() -> None:
    schedule = make([None, 3], epoch_length_policy=MIN)
    schedule.advance(6)
    assert schedule.num_steps() is None
    schedule.end_pass(0, 3)
    assert (schedule.epoch_done, schedule.num_steps()) == (True, 6)
    schedule.next_epoch()
    assert schedule.start_counts == [(1, 0), (1, 0)]
    assert schedule.num_steps() is None
    assert schedule.num_steps(0) == 6


def test_a_fixed_epoch_is_known_without_following_its_curve() -> None:
    curve = WeightCurve([(0, [1, 0]), (10**12, [0, 1])], Interpolation.LINEAR, every=1)
    schedule = make(
        [3, 5], sampling_strategy=WEIGHTED, weight_curve=curve, epoch_length_policy=FIXED, steps_per_epoch=10**12
    )
    assert schedule.num_steps() == 10**12


def test_a_known_length_that_was_wrong() -> None:
    schedule = make([5, 5], cycle_short_loaders=False)
    schedule.advance(4)
    schedule.end_pass(0, 2)
    assert schedule.num_steps() == 7
    assert shown(schedule) == "ABABBBB"
    schedule = make([5, 5])
    schedule.advance(4)
    schedule.end_pass(0, 2)
    assert shown(schedule) == "ABABABABAB"
    assert tuple(schedule.at(4))[3:] == (1, 0)


def test_state_as_of_an_earlier_step() -> None:
    schedule = make([9, 9])
    schedule.advance(4)
    early = schedule.state_dict()
    schedule.advance(2)
    schedule.remove_source("dl0")
    assert schedule.state_dict(4) == early
    back = make([9, 9])
    back.load_state_dict(schedule.state_dict())
    assert back.state_dict(4) != schedule.state_dict()
    assert np.array_equal(back.sources(0), schedule.sources(0))


def test_seek_back_and_edit_drops_what_came_later() -> None:
    schedule = make([9, 9])
    schedule.advance(6)
    schedule.remove_source("dl1")
    schedule.seek(0, 3)
    schedule.remove_source("dl0")
    assert shown(schedule) == "ABA" + "B" * 8
    with pytest.raises(ConfigError, match=r"cannot be removed"):
        schedule.remove_source("dl1")
    schedule.seek(1, 2)
    schedule.add_source("dl2", 2)
    with pytest.raises(ConfigError, match="epoch 0 is out of reach"):
        schedule.at(0, 0)


def test_refuses_the_state_of_another_schedule() -> None:
    mine = make([3, 5], dataloader_names=["a", "b"])
    mine.advance(3)
    before = mine.state_dict()
    other = make(
        [3, 6],
        seed=4,
        dataloader_names=["a", "c"],
        sampling_strategy=WEIGHTED,
        dataloader_weights=[1, 2],
    )
    with pytest.raises(StateMismatch) as caught:
        mine.load_state_dict(other.state_dict())
    for line in (
        "seed: 4 in the state, 0 here",
        "dataloader_names: 'c' is in the state, not here",
        "dataloader_names: 'b' is here, not in the state",
        "sampling_strategy: WEIGHTED in the state, ROUND_ROBIN here",
    ):
        assert line in str(caught.value)
    with pytest.raises(StateMismatch, match="length of 'b': 5 in the state, 6 here"):
        make([3, 6], dataloader_names=["a", "b"]).load_state_dict(before)
    assert mine.state_dict() == before


def test_sources_are_matched_by_name() -> None:
    options = {"sampling_strategy": WEIGHTED, "weighted_order": WeightedOrder.EVEN}
    first = make([3, 5], dataloader_names=["a", "b"], dataloader_weights=[0.7, 0.3], **options)
    first.advance(3)
    swapped = make([5, 3], dataloader_names=["b", "a"], dataloader_weights=[0.3, 0.7], **options)
    swapped.load_state_dict(first.state_dict())
    assert swapped.names == ["a", "b"]
    assert [d.name for d in swapped] == [d.name for d in first]
    wrong = make([5, 3], dataloader_names=["b", "a"], dataloader_weights=[0.7, 0.3], **options)
    with pytest.raises(StateMismatch, match="dataloader_weights"):
        wrong.load_state_dict(first.state_dict())


def test_fingerprint_does_not_depend_on_the_cursor() -> None:
    one, two = make([3, 5]), make([3, 5])
    one.advance(5)
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != make([3, 5], seed=1).fingerprint()
    assert {k for k, v in make([3, 6]).fingerprints.items() if v != two.fingerprints[k]} >= {"lengths"}
    one.remove_source("dl0")
    assert one.fingerprints["log"] != two.fingerprints["log"]


def test_copies_and_pickles() -> None:
    schedule = make([3, 5])
    schedule.advance(3)
    for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert other.state_dict() == schedule.state_dict()
        assert isinstance(other, Schedule)


def test_state_size_does_not_grow_with_the_step() -> None:
    sizes = set()
    for step in (10**6, 10**12, 10**15):
        schedule = make(
            [10**14, 10**14], sampling_strategy=WEIGHTED, weighted_order=WeightedOrder.EVEN,
            epoch_length_policy=FIXED, steps_per_epoch=10**16,
        )  # fmt: skip
        schedule.seek(0, step)
        sizes.add(len(schedule.to_bytes()))
    assert max(sizes) - min(sizes) < 40


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("schedule_v*.bin")), ids=lambda f: f.stem)
def test_golden_states_load_forever(file: Path) -> None:
    sys.path.insert(0, str(GOLDEN))
    try:
        from make_schedules import next_draws
    finally:
        sys.path.remove(str(GOLDEN))
    content = json.loads(file.with_suffix(".json").read_text())
    from_bytes = Schedule.from_bytes(file.read_bytes())
    assert from_bytes.names == content["names"]
    assert next_draws(from_bytes) == content["next"]
    again = Schedule.from_bytes(file.read_bytes())
    again.load_state_dict(content["state"])
    assert next_draws(again) == content["next"]


def test_golden_files_are_there() -> None:
    assert len(list(GOLDEN.glob("schedule_v1_*.bin"))) == 6
    assert len(list(GOLDEN.glob("schedule_v2_*.bin"))) == 7


def test_damaged_bytes() -> None:
    data = make([3, 5]).to_bytes()
    for i in range(len(data)):
        with pytest.raises(StateMismatch):
            Schedule.from_bytes(data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :])
    with pytest.raises(StateMismatch, match="fewer than a header"):
        Schedule.from_bytes(b"")


def mutate(value: Any, rng: random.Random) -> Any:
    """``value`` with one part replaced by something odd."""
    odd = [None, True, -1, 0, 1, 2**31, 2**62, 2**64, 1e300, "x", [], {}, [0], {"a": 1}]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {k: mutate(v, rng) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return [mutate(v, rng) if k == i else v for k, v in enumerate(value)]
    return rng.choice(odd)


def test_malformed_states_are_refused_or_harmless() -> None:
    """Whatever a state says, loading it raises StateMismatch or gives a schedule that can be used."""
    rng = random.Random(3)
    sys.path.insert(0, str(GOLDEN))
    try:
        from make_schedules import make_schedules
    finally:
        sys.path.remove(str(GOLDEN))
    refused = 0
    messages: set[str] = set()
    for schedule in make_schedules().values():
        state = schedule.state_dict()
        before = schedule.state_dict()
        for _ in range(300):
            try:
                schedule.load_state_dict(mutate(state, rng))
            except StateMismatch as error:
                messages.add(str(error))
                assert schedule.state_dict() == before
                refused += 1
            else:
                schedule.draws(100)
                schedule.load_state_dict(state)
    assert refused > 1000
    assert len(messages) > 100


def test_states_without_a_bottom_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]
    for nested in (endless, deep, {"format": endless}):
        with pytest.raises(StateMismatch, match="lies deeper than 32 levels"):
            Schedule(lengths=[3, 5]).load_state_dict({"format": nested})


def test_state_errors_name_the_field() -> None:
    schedule = make([3, 5])
    schedule.advance(3)
    state = schedule.state_dict()

    def refuses(message: str, **changes: Any) -> None:
        with pytest.raises(StateMismatch) as caught:
            schedule.load_state_dict({**state, **changes})
        assert message in str(caught.value)

    refuses("state.step must be an integer in", step=-1)
    refuses("state.counts[0] must be an integer in [0, 3], got 7", counts=[7, 1])
    refuses("state.counts must be draws that add up to the step (3)", counts=[1, 1])
    refuses("its schedule drew other counts than the state says", counts=[3, 0])
    refuses("format version 4, this mtf reads 1 to 3; a newer mtf wrote it", version=4)
    refuses("state.format must be 'mtf.schedule'", format="x")
    refuses("state.setups must be a list", setups={})
    refuses("state.events must be plain data", events={1, 2})
    refuses("state.tail.count must be a list of 2, one per source", tail={**state["tail"], "count": [1]})
    with pytest.raises(StateMismatch, match="state has no field 'seed'"):
        schedule.load_state_dict({k: v for k, v in state.items() if k != "seed"})


def test_schedules_need_no_torch() -> None:
    script = (
        "import sys, mtf; s = mtf.Schedule(mtf.MultiDataLoaderConfig(), [3, 5]); list(s); s.plan(); s.to_bytes();"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_schedule_that_was_refused_can_be_shown() -> None:
    assert repr(Schedule.__new__(Schedule)) == "Schedule(not constructed)"


def test_edits_at_one_step_commute_where_a_sequential_round_ends() -> None:
    """The source that was added belongs to the round before: its block comes first, whichever edit was made first."""
    config = MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=6)
    edits = [lambda s: s.set_strategy(SamplingStrategy.SEQUENTIAL), lambda s: s.add_source("e", length=1)]
    drawn = []
    for order in (edits, edits[::-1]):
        schedule = Schedule(config, [1] * 4, 0)
        schedule.seek(1, 4)
        for edit in order:
            edit(schedule)
        drawn.append([draw.name for draw in schedule])
    assert drawn == [["e", "dl0"]] * 2
