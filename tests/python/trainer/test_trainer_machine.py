"""A state machine of training: parts, saves, loads, errors and validations in any order end where one run ends."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from torch import Tensor, nn
from trainer_tools import config, loader, model, step, trainer

import mtf

pytestmark = pytest.mark.timeout(240)

MOST_UPDATES = 36


class Planned(mtf.TrainerHooks):
    """Edits the mixture behind fixed updates: the same in every run, whatever interrupts it."""

    def __init__(self, edits: dict[int, str]) -> None:
        self.edits = edits

    def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
        match self.edits.get(trainer.global_step + 1):
            case "weights":
                trainer.multi_loader_manager.update_weights([1.0] * len(trainer.multi_loader_manager.names))
            case "remove" if "b" in trainer.multi_loader_manager.names:
                trainer.remove_dataloader("b")
            case "add" if "added" not in trainer.multi_loader_manager.names:
                trainer.add_dataloader(added(), "added", weight=0.5)
            case "rate":
                for group in trainer.optimizers[0].param_groups:
                    group["lr"] *= 0.5


class Weights(mtf.TrainerHooks):
    """The model's bits behind every update."""

    def __init__(self) -> None:
        self.seen: dict[int, list[Tensor]] = {0: []}

    def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
        self.seen[trainer.global_step + 1] = bits(trainer.model)


class Interrupted(Exception):
    """What a training step raises."""


class Failing:
    """The training step, which may be told to raise at its n-th call from now."""

    def __init__(self) -> None:
        self.left = -1

    def __call__(self, trainer: Any, batch: Any, *place: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise Interrupted
        return step(trainer, batch, *place)


def bits(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def added() -> Any:
    return loader(9, seed=8, batch_size=2, shuffle=True)


def given() -> dict[str, Any]:
    return {"a": loader(22, seed=1, shuffle=True), "b": loader(13, seed=2, shuffle=True), "c": loader(9, seed=3)}


class TrainerMachine(RuleBasedStateMachine):
    """After k updates the model is bit for bit that of a run which was never interrupted."""

    states = Bundle("states")

    @initialize(
        accumulation=st.sampled_from([1, 2, 3]),
        order=st.sampled_from(list(mtf.WeightedOrder)),
        edits=st.dictionaries(
            st.integers(1, MOST_UPDATES), st.sampled_from(["weights", "remove", "add", "rate"]), max_size=3
        ),
        dropout=st.sampled_from([0.0, 0.3]),
        fixed=st.booleans(),
    )
    def start(self, accumulation: int, order: Any, edits: dict[int, str], dropout: float, fixed: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.num_saved = 0
        self.edits, self.dropout = edits, dropout
        self.settings: dict[str, Any] = {
            "performance": mtf.PerformanceConfig(gradient_accumulation_steps=accumulation),
            "seed": 4,
        }
        self.mixture: dict[str, Any] = {
            "sampling_strategy": mtf.SamplingStrategy.WEIGHTED,
            "weighted_order": order,
            "dataloader_weights": [0.5, 0.3, 0.2],
            "dataloader_names": ["a", "b", "c"],
        }
        if fixed:
            self.mixture |= {"epoch_length_policy": mtf.EpochLengthPolicy.FIXED_NUM_STEPS, "steps_per_epoch": 10}
        whole, weights = self.fresh()[0], Weights()
        weights.seen[0] = bits(whole.model)
        whole.add_hook(weights)
        whole.fit(given(), max_steps=MOST_UPDATES)
        self.expected = weights.seen
        self.trainer, self.step = self.fresh()

    def fresh(self) -> tuple[mtf.Trainer, Failing]:
        failing = Failing()
        made = trainer(
            config(multi=mtf.MultiDataLoaderConfig(**self.mixture), **self.settings),
            model=model(dropout=self.dropout),
            training_step=failing,
            hooks=[Planned(self.edits)],
            loader_factories={"added": added},
        )
        return made, failing

    def check(self) -> None:
        here = bits(self.trainer.model)
        assert all(
            torch.equal(one, two) for one, two in zip(here, self.expected[self.trainer.global_step], strict=True)
        )

    @rule(num=st.integers(1, 9), validate=st.booleans())
    def fit(self, num: int, validate: bool) -> None:
        upto = min(MOST_UPDATES, self.trainer.global_step + num)
        if upto > self.trainer.global_step:
            validation = {"v": loader(7, seed=9)} if validate else None
            self.trainer.fit(given(), validation, max_steps=upto)
            assert self.trainer.global_step == upto
        self.check()

    @rule(after=st.integers(1, 12))
    def fail(self, after: int) -> None:
        """A step raises in the middle of a window; the run stands behind the last update, and continues."""
        if self.trainer.global_step == MOST_UPDATES:
            return
        self.step.left = after
        try:
            self.trainer.fit(given(), max_steps=MOST_UPDATES)
        except Interrupted:
            assert self.trainer.global_step < MOST_UPDATES
        self.step.left = -1
        self.check()

    @rule(target=states, as_file=st.booleans())
    def save(self, as_file: bool) -> Any:
        if not as_file:
            return self.trainer.get_state(), self.trainer.global_step
        self.num_saved += 1
        path = Path(self.folder.name) / f"checkpoint{self.num_saved}"
        self.trainer.save_checkpoint(str(path))
        return path, self.trainer.global_step

    @rule(state=states, here=st.booleans())
    def load(self, state: Any, here: bool) -> None:
        saved, global_step = state
        if not here:
            self.trainer, self.step = self.fresh()
        if isinstance(saved, Path):
            self.trainer.load_checkpoint(str(saved))
        else:
            self.trainer.load_state(saved)
        assert self.trainer.global_step == global_step
        self.check()

    @rule()
    def validate_alone(self) -> None:
        self.trainer.validate({"v": loader(7, seed=9)})
        self.check()

    def teardown(self) -> None:
        if not hasattr(self, "trainer"):
            return
        try:
            if self.trainer.global_step < MOST_UPDATES:
                self.trainer.fit(given(), max_steps=MOST_UPDATES)
            self.check()
        finally:
            self.folder.cleanup()


# Explaining a failure traces every line, too slow for training.
LIMITS = settings(max_examples=25, stateful_step_count=12, phases=[Phase.explicit, Phase.generate, Phase.shrink])


def test_any_sequence_ends_where_one_run_ends() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run_state_machine_as_test(TrainerMachine, settings=LIMITS)


def test_a_state_from_before_the_first_fit_goes_back_to_the_start() -> None:
    """The machine found this: the loaders stayed where they were."""
    run = trainer(config(["a", "b", "c"]))
    at_start, weights = run.get_state(), Weights()
    run.add_hook(weights)
    run.fit(given(), max_steps=7)
    expected, weights.seen = weights.seen, {}
    run.load_state(at_start)
    run.fit(given(), max_steps=7)
    assert all(torch.equal(one, two) for one, two in zip(expected[7], weights.seen[7], strict=True))
