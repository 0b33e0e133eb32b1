"""The phases of a run: the table of transitions is the only way through them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from trainer_tools import loader, trainer

import mtf
from mtf.trainer.state.run_state import TRANSITIONS, Phase, RunState, StopCondition


def test_every_phase_is_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(Phase)
    reached = {phase for following in TRANSITIONS.values() for phase in following}
    assert reached == set(Phase)
    assert all(TRANSITIONS.values())
    # An error anywhere inside fit leads back between two updates, and only from there to the end.
    inside = [phase for phase in Phase if phase not in (Phase.IDLE, Phase.BETWEEN_UPDATES)]
    assert all(Phase.BETWEEN_UPDATES in TRANSITIONS[phase] for phase in inside)
    assert [phase for phase in Phase if Phase.IDLE in TRANSITIONS[phase]] == [Phase.BETWEEN_UPDATES]


class Phases(RuleBasedStateMachine):
    """Any sequence of wishes and errors: the table decides, and an update that broke off is never forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.run = RunState()
        self.is_broken = False

    @rule(phase=st.sampled_from(Phase))
    def enter(self, phase: Phase) -> None:
        before = self.run.phase
        if phase in TRANSITIONS[before]:
            self.run.enter(phase)
            assert self.run.phase is phase
        else:
            with pytest.raises(mtf.UsageError, match=f"that is {before.value} can't become {phase.value}"):
                self.run.enter(phase)
            assert self.run.phase is before

    @rule()
    def error(self) -> None:
        self.is_broken = self.is_broken or self.run.phase is Phase.STEPPING
        self.run.interrupt()
        assert self.run.phase in (Phase.IDLE, Phase.BETWEEN_UPDATES)

    @rule()
    def load(self) -> None:
        if self.run.phase is Phase.IDLE:
            self.run.mend()
            self.is_broken = False

    @invariant()
    def flags_follow(self) -> None:
        assert self.run.is_fitting == (self.run.phase is not Phase.IDLE)
        assert self.run.is_in_window == (self.run.phase in (Phase.ACCUMULATING, Phase.STEPPING))
        assert self.run.is_mid_update == (self.is_broken or self.run.phase is Phase.STEPPING)


TestPhases = Phases.TestCase
TestPhases.settings = settings(max_examples=50, deadline=None)


def test_a_whole_run_walks_the_table() -> None:
    """Every phase is seen by the hook that belongs to it."""
    seen: dict[str, set[Phase]] = {}

    def note(event: str) -> Any:
        return lambda self, trainer, *rest: seen.setdefault(event, set()).add(trainer._run.phase)

    events = ("on_train_start", "on_before_backward", "on_after_optimizer_step", "on_validation_start", "on_epoch_end")
    run = trainer(hooks=[type("Notes", (mtf.TrainerHooks,), {event: note(event) for event in events})()])
    run.fit([loader(8, 1)], [loader(4, 2)], max_epochs=2)
    assert seen == {
        "on_train_start": {Phase.BETWEEN_UPDATES},
        "on_before_backward": {Phase.ACCUMULATING},
        "on_after_optimizer_step": {Phase.STEPPING},
        "on_validation_start": {Phase.VALIDATING},
        "on_epoch_end": {Phase.EPOCH_END},
    }
    assert run._run.phase is Phase.IDLE


def test_a_stop_condition_says_what_was_reached() -> None:
    run = RunState(epoch=2, global_step=7)
    assert StopCondition(None, None, 2).describe() == {"max_epochs": 3, "max_steps": None}
    assert StopCondition(2, None, 0).reached(run)
    assert not StopCondition(3, 8, 0).reached(run)
    assert "7 updates and max_steps is 7" in StopCondition(None, 7, 0).reason(run)
    with pytest.raises(mtf.ConfigError, match="max_steps must be an int of at least 0"):
        StopCondition(None, -1, 0)
