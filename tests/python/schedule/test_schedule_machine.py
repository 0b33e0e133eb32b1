"""State machines of a schedule: edits, steps, ends of epochs, saved and loaded states in any order, against a model."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference_schedule import Draw, Edit, Reference
from test_schedule_reference import EDITS, WEIGHTS, make, specs, step_once

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.enums import EpochLengthPolicy, SamplingStrategy
from mtf.errors import ConfigError
from mtf.schedule.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Place = tuple[int, int]
MOST_STEPS = 60  # of an epoch


def through(way: str, schedule: Schedule, fresh: Callable[[], Schedule]) -> Schedule:
    """The schedule after it was saved and put in place again in one of the ways there are."""
    if way == "bytes":
        return Schedule.from_bytes(schedule.to_bytes())
    if way == "copy":
        return copy.deepcopy(schedule)
    other = fresh()
    other.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    return other


class Stepping(RuleBasedStateMachine):
    """What all have: a schedule that is stepped, saved and loaded, and a log of what was done to it.

    ``restart_model`` makes the model anew, ``model_step`` gives its draw at the place; after a load it is walked there
    again from the start, since it has no state of its own.
    """

    saved = Bundle("saved")

    def begin(self, fresh: Callable[[], Schedule], true_lengths: list[int]) -> None:
        self.fresh, self.schedule = fresh, fresh()
        self.true_lengths = true_lengths
        self.log: list[tuple[Place, Any]] = []
        self.place: Place = (0, 0)
        self.restart_model()

    def restart_model(self) -> None:
        raise NotImplementedError

    def model_step(self) -> Draw | None:
        raise NotImplementedError

    def model_next_epoch(self) -> None:
        raise NotImplementedError

    def step(self) -> bool:
        """One step of both, or the next epoch."""
        expected, (epoch, at) = self.model_step(), self.place
        assert step_once(self.schedule, self.true_lengths) == expected
        if expected is not None:
            self.place = (epoch, at + 1)
            return True
        assert self.schedule.epoch_done
        assert self.schedule.num_steps() == at
        self.schedule.next_epoch()
        self.model_next_epoch()
        self.place = (epoch + 1, 0)
        return False

    @rule(num=st.integers(1, 15))
    def advance(self, num: int) -> None:
        for _ in range(num):
            if self.place[1] >= MOST_STEPS or not self.step():
                return

    @precondition(lambda self: self.place[1] < MOST_STEPS)
    @rule()
    def finish_the_epoch(self) -> None:
        while self.place[1] < MOST_STEPS and self.step():
            pass

    @rule(target=saved, way=st.sampled_from(["dict", "bytes"]))
    def save(self, way: str) -> Any:
        state = json.dumps(self.schedule.state_dict()) if way == "dict" else self.schedule.to_bytes()
        return state, self.place, list(self.log), list(self.true_lengths)

    @rule(state=saved, here=st.booleans())
    def load(self, state: Any, here: bool) -> None:
        saved, place, log, true_lengths = state
        if isinstance(saved, bytes):
            self.schedule = Schedule.from_bytes(saved)
        else:
            self.schedule = self.schedule if here else self.fresh()
            self.schedule.load_state_dict(json.loads(saved))
        self.log, self.true_lengths = list(log), list(true_lengths)
        self.restart_model()
        while self.place != place:
            epoch, at = self.place
            if self.model_step() is None:
                self.model_next_epoch()
                self.place = (epoch + 1, 0)
            else:
                self.place = (epoch, at + 1)

    @rule(way=st.sampled_from(["dict", "bytes", "copy"]))
    def save_and_load(self, way: str) -> None:
        other = through(way, self.schedule, self.fresh)
        assert other.fingerprint() == self.schedule.fingerprint()
        assert other.state_dict() == self.schedule.state_dict()
        self.schedule = other

    @invariant()
    def the_cursor_is_where_the_model_is(self) -> None:
        if hasattr(self, "place"):
            assert self.schedule.position == self.place

    @invariant()
    def steps_of_is_the_inverse_of_at(self) -> None:
        if not hasattr(self, "place"):
            return
        epoch, end = self.place
        for step in range(self.schedule.known_from(epoch), end):
            draw = self.schedule.at(step, epoch)
            passes, batches = np.array([draw.pass_]), np.array([draw.batch])
            assert self.schedule.steps_of(draw.source, passes, batches, end) == [step]
            assert self.schedule.steps_of(draw.source, passes, batches, step) == [-1]
            assert self.schedule.places(step)[draw.source] in [
                (draw.pass_, draw.batch),
                (draw.pass_ - 1, self.schedule.places(step)[draw.source][1]),  # at the end of the pass before
            ]
        for source, (pass_, batch) in enumerate(self.schedule.places(end)):
            assert self.schedule.steps_of(source, np.array([pass_]), np.array([batch]), end) == [-1]


class FollowsTheReference(Stepping):
    """Orders without weights, against the walk step by step."""

    @initialize(spec=specs(["ROUND_ROBIN", "ALTERNATING", "SEQUENTIAL"]))
    def start(self, spec: Any) -> None:
        self.spec = copy.deepcopy(spec)
        self.may_edit = not (None in spec.lengths and spec.policy == "MIN_LENGTH")
        self.begin(lambda: make(copy.deepcopy(self.spec)), list(spec.true_lengths))

    def restart_model(self) -> None:
        edits: dict[Place, list[Edit]] = {}
        for place, (edit, _) in self.log:
            edits.setdefault(place, []).append(edit)
        self.reference = Reference(copy.deepcopy(self.spec), edits)
        self.draws = self.reference.run_epoch()
        self.place = (0, 0)

    def model_step(self) -> Draw | None:
        draw = next(self.draws, None)
        self.true_lengths = list(self.reference.spec.true_lengths)
        return draw

    def model_next_epoch(self) -> None:
        self.draws = self.reference.run_epoch()

    @precondition(lambda self: getattr(self, "may_edit", False))
    @rule(edit=EDITS)
    def edit(self, edit: Any) -> None:
        reference, native = edit
        native(self.schedule)
        self.log.append((self.place, edit))
        self.reference.edits.setdefault(self.place, []).append(reference)


class FollowsItsLog(Stepping):
    """Weighted orders: the model is a schedule that was never saved, which gets the same edits at the same steps."""

    @initialize(
        spec=specs(["ROUND_ROBIN"]),
        weights=WEIGHTS,
        order=st.sampled_from(["RANDOM", "SHUFFLED", "EVEN"]),
        seed=st.integers(0, 2**64 - 1),
    )
    def start(self, spec: Any, weights: list[float], order: str, seed: int) -> None:
        weights = weights[: len(spec.lengths)]
        config = MultiDataLoaderConfig(
            sampling_strategy=SamplingStrategy.WEIGHTED,
            dataloader_weights=weights if any(weights) else None,
            weighted_order=order,  # type: ignore[arg-type]
            burst_size=spec.burst,
            epoch_length_policy=EpochLengthPolicy[spec.policy],
            steps_per_epoch=spec.steps,
            cycle_short_loaders=spec.cycle,
            continue_across_epochs=spec.keep_going,
        )
        self.begin(lambda: Schedule(config, spec.lengths, seed), list(spec.true_lengths))

    def restart_model(self) -> None:
        self.shadow = self.fresh()
        self.place = (0, 0)
        self.pending = list(self.log)

    def model_step(self) -> Draw | None:
        while self.pending and self.pending[0][0] == self.place:
            self.pending.pop(0)[1](self.shadow)
        return step_once(self.shadow, self.true_lengths)

    def model_next_epoch(self) -> None:
        self.shadow.next_epoch()

    def edit(self, edit: Callable[[Schedule], None]) -> bool:
        """Whether the edit was allowed; one that isn't changes nothing."""
        before = self.schedule.state_dict()
        try:
            edit(self.schedule)
        except ConfigError:
            assert self.schedule.state_dict() == before
            return False
        self.log.append((self.place, edit))
        self.pending.append((self.place, edit))
        return True

    @rule(weights=WEIGHTS)
    def update_weights(self, weights: list[float]) -> None:
        self.edit(lambda s: s.update_weights((weights * 4)[: sum(s.present)]))

    @rule(source=st.integers(0, 5), weight=st.sampled_from([0.0, 0.25, 1.0, 3.0]))
    def set_weight(self, source: int, weight: float) -> None:
        self.edit(lambda s: s.set_weight(f"dl{source}", weight))

    @rule(length=st.integers(1, 6), weight=st.sampled_from([None, 0.5, 2.0]))
    def add(self, length: int, weight: float | None) -> None:
        if self.edit(lambda s: s.add_source(f"dl{len(s.names)}", length, weight)):
            self.true_lengths.append(length)

    @rule(source=st.integers(0, 5))
    def remove(self, source: int) -> None:
        self.edit(lambda s: s.remove_source(f"dl{source}"))

    @rule(strategy=st.sampled_from(["WEIGHTED", "ROUND_ROBIN", "SEQUENTIAL"]), burst=st.integers(1, 3))
    def set_strategy(self, strategy: str, burst: int) -> None:
        self.edit(lambda s: s.set_strategy(strategy, burst_size=burst))


LIMITS = settings(max_examples=120, stateful_step_count=30)


@pytest.mark.parametrize("machine", [FollowsTheReference, FollowsItsLog])
def test_any_sequence(machine: type[Stepping]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run_state_machine_as_test(machine, settings=LIMITS)


def test_a_block_that_ends_at_its_first_demand_is_over_for_its_round() -> None:
    """A machine found this: the end counted for the round before, and the source was drawn again at once."""
    config = MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=3)
    schedule, true_lengths = Schedule(config, [None, 1]), [1, 1]
    while step_once(schedule, true_lengths) is not None:
        pass
    schedule.next_epoch()
    assert step_once(schedule, true_lengths) == (0, 2, 0)
    schedule.set_strategy(SamplingStrategy.SEQUENTIAL)
    assert step_once(schedule, true_lengths) == (1, 1, 0)  # the first source's block is done
    assert step_once(schedule, true_lengths) == (1, 2, 0)  # it has nothing left in the next round, either
