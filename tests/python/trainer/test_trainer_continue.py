"""Going on in the same process, after an error or from an earlier state: nothing of what was abandoned is left."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_tools as tools
from torch import Tensor
from torch.utils.data import IterableDataset

import mtf
from mtf.trainer.rng import StepRng


class Fail(Exception):
    """Raised by hooks and steps of these tests only."""


class Once:
    """Raises when called for the ``number``-th time (from 0)."""

    def __init__(self, number: int = 0) -> None:
        self._left = number

    def __call__(self) -> None:
        self._left -= 1
        if self._left == -1:
            raise Fail


def fits(run: mtf.Trainer, given: Any, max_steps: int, validation: Any = None) -> mtf.Trainer:
    """Fits, once more after each ``Fail``."""
    for _ in range(3):
        try:
            run.fit(given, validation, max_steps=max_steps)
        except Fail:
            continue
        return run
    raise AssertionError("failed three times")


# Random numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 2])
def test_half_of_a_pair_of_gaussians_comes_back_with_a_state(first: int) -> None:
    drawn: list[float] = []

    def noisy(trainer: Any, *place: Any) -> Tensor:
        drawn.append(float(np.random.randn()))
        return tools.step(trainer, *place)["loss"] * (1 + 0.1 * drawn[-1])

    np.random.seed(5)
    run, given = tools.trainer(tools.config(step_rng="saved"), training_step=noisy), tools.loader(32, 1)
    run.fit(given, max_steps=first)
    state = run.get_state()
    run.fit(given, max_steps=first + 2)
    whole, seen = run.get_state(), drawn[first:]
    drawn.clear()
    run.load_state(state)
    run.fit(given, max_steps=first + 2)
    assert drawn == seen
    assert run.get_state() == whole


def test_a_run_with_saved_random_numbers_inside_another_draws_as_if_alone() -> None:
    drawn: list[float] = []

    def noisy(trainer: Any, *place: Any) -> Tensor:
        drawn.append(float(np.random.rand()))
        return tools.step(trainer, *place)["loss"] * (1 + drawn[-1])

    def inner() -> None:
        np.random.seed(3)
        torch.manual_seed(3)
        tools.trainer(tools.config(step_rng="saved"), training_step=noisy).fit(
            tools.loader(16, 1, shuffle=True), max_steps=3
        )

    inner()
    alone = list(drawn)
    drawn.clear()

    class Inside(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: mtf.Trainer, epoch: int) -> None:
            inner()

    tools.trainer(hooks=[Inside()]).fit(tools.loader(8, 1))
    assert drawn == alone


@pytest.mark.parametrize("event", ["on_validation_start", "on_validation_batch_end"])
def test_a_state_taken_in_a_validation_holds_the_random_numbers_of_training(event: str) -> None:
    def noisy(trainer: Any, *place: Any) -> Tensor:
        return tools.step(trainer, *place)["loss"] * (1 + 0.1 * torch.rand(()))

    states: list[mtf.TrainerState] = []

    def keep(self: Any, trainer: mtf.Trainer, *args: Any) -> None:
        states.append(trainer.get_state())

    hook = type("Keep", (mtf.TrainerHooks,), {event: keep})()
    run = tools.trainer(tools.config(step_rng="saved"), training_step=noisy, hooks=[hook])
    run.fit(tools.loader(16, 1), tools.loader(4, 2), max_steps=6)
    whole = run.get_state()
    run.load_state(states[0])
    run.fit(tools.loader(16, 1), tools.loader(4, 2), max_steps=6)
    assert run.get_state().diff(whole) == []


def test_a_validation_that_raises_puts_the_gpus_generator_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: its generator is a number here."""
    words = [1]

    class Generator:
        def manual_seed(self, key: int) -> None:
            words[0] = key

    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device: words[0])
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, device: words.__setitem__(0, state))
    monkeypatch.setattr("torch.cuda.default_generators", (Generator(),))
    rng = StepRng(0, "saved", torch.device("cuda", 0))
    inside = []
    with suppress(Fail), rng.validation():
        inside += words
        raise Fail
    assert inside != [1]
    assert words == [1]


@pytest.mark.parametrize("number", range(4))
def test_a_window_that_failed_gives_its_random_numbers_back(number: int) -> None:
    """Where they run on; numpy's and Python's as well as torch's."""

    def make(fails: Callable[[], None]) -> mtf.Trainer:
        def noisy(trainer: Any, *place: Any) -> Tensor:
            noise = 1 + 0.1 * (random.random() + float(np.random.rand()))
            loss: Tensor = tools.step(trainer, *place)["loss"] * noise
            fails()
            return loss

        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(7)
        window = mtf.PerformanceConfig(gradient_accumulation_steps=2)
        settings = tools.config(step_rng="saved", performance=window)
        return tools.trainer(settings, model=tools.model(dropout=0.2), training_step=noisy)

    whole = fits(make(lambda: None), tools.loader(32, 1), 4).get_state()
    assert fits(make(Once(number)), tools.loader(32, 1), 4).get_state().diff(whole) == []


# What an abandoned window noted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("goes_back", [False, True])
def test_a_bad_loss_of_a_window_that_failed_is_forgotten_with_it(policy: Any, goes_back: bool) -> None:
    def make(bad: list[int]) -> mtf.Trainer:
        def sometimes(trainer: Any, *place: Any) -> Tensor:
            loss = tools.step(trainer, *place)["loss"]
            return loss * float("nan") if trainer.num_batches in bad else loss

        class Checks(mtf.TrainerHooks):
            def on_before_backward(self, trainer: mtf.Trainer, loss: Tensor) -> None:
                if not loss.isfinite():
                    raise Fail

        performance = mtf.PerformanceConfig(on_nonfinite=policy)
        return tools.trainer(tools.config(performance=performance), training_step=sometimes, hooks=[Checks()])

    whole, bad, given = make([]), [4], tools.loader(32, 1)
    whole.fit(tools.loader(32, 1), max_steps=6)
    run = make(bad)
    run.fit(given, max_steps=3)
    state = run.get_state()
    with pytest.raises(Fail):
        run.fit(given, max_steps=6)
    bad.clear()
    if goes_back:
        run.load_state(state)
    run.fit(given, max_steps=6)
    assert run.get_state().diff(whole.get_state()) == []


def test_a_bad_loss_that_nobody_had_looked_at_is_forgotten_with_what_was_abandoned() -> None:
    """On a GPU losses are looked at later: here the run breaks off before that, and goes back."""
    bad = [2]

    def sometimes(trainer: Any, *place: Any) -> Tensor:
        if trainer.num_batches == 3 and bad:
            raise Fail
        loss = tools.step(trainer, *place)["loss"]
        return loss * float("nan") if trainer.num_batches in bad else loss

    whole, run, given = tools.trainer(), tools.trainer(training_step=sometimes), tools.loader(32, 1)
    run._parts.nonfinite.every_window = False
    whole.fit(tools.loader(32, 1), max_steps=6)
    run.fit(given, max_steps=1)
    state = run.get_state()
    with pytest.raises(Fail):
        run.fit(given, max_steps=6)
    assert run.global_step == 3
    bad.clear()
    run.load_state(state)
    run.fit(given, max_steps=6)
    assert run.get_state().diff(whole.get_state()) == []


@pytest.mark.parametrize("event", ["step", "on_epoch_start", "on_epoch_end", "on_validation_end", "on_source_pass_end"])
@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_what_hooks_log_counts_once_whatever_raises(event: str, number: int) -> None:
    """A hook that raises after another has logged: its event comes again, so what was logged in it goes first."""

    def make(fail: Callable[[], None]) -> mtf.Trainer:
        class Logs(mtf.TrainerHooks):
            def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
                trainer.log("start", float(trainer.global_step))

            def on_epoch_end(self, trainer: mtf.Trainer, epoch: int) -> None:
                trainer.log("end", float(trainer.global_step))

            def on_validation_end(self, trainer: mtf.Trainer, metrics: Any) -> None:
                trainer.log("validation", float(trainer.global_step))

            def on_source_pass_end(self, trainer: mtf.Trainer, name: str, pass_: int) -> None:
                trainer.log("pass", float(trainer.global_step))

        def step(trainer: Any, *place: Any) -> Any:
            if event == "step" and trainer.model.training:
                fail()
            return tools.step(trainer, *place)

        raising: Any = type("Raising", (mtf.TrainerHooks,), {} if event == "step" else {event: lambda *_: fail()})
        settings = tools.config(
            validation=mtf.ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=2),
            logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=5),
        )
        return tools.trainer(settings, training_step=step, hooks=[Logs(), raising()])

    whole, run, given = make(lambda: None), make(Once(number)), tools.loader(12, 1)
    for max_steps in (5, 17):
        whole.fit(given, tools.loader(4, 2), max_steps=max_steps)
        fits(run, given, max_steps, tools.loader(4, 2))
        assert run.get_state().diff(whole.get_state()) == []


class Items(IterableDataset[Any]):
    """Twelve rows; nothing says so before the end."""

    def __iter__(self) -> Any:
        return iter(zip(*tools.rows(12, 1), strict=True))


@pytest.mark.filterwarnings("ignore:.*are produced again")
@pytest.mark.parametrize("way", ["same", "state"])
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("number", range(7))
def test_the_end_of_a_pass_is_told_again_with_the_batch_that_found_it(number: int, window: int, way: str) -> None:
    def make(fail: Callable[[], None]) -> tuple[mtf.Trainer, list[Any]]:
        told: list[Any] = []

        class Tells(mtf.TrainerHooks):
            def on_source_pass_end(self, trainer: mtf.Trainer, name: str, pass_: int) -> None:
                told.append((trainer.global_step, name, pass_))

        def step(trainer: Any, *place: Any) -> Any:
            fail()
            return tools.step(trainer, *place)

        multi = mtf.MultiDataLoaderConfig(
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=8, dataloader_names=["a"]
        )
        performance = mtf.PerformanceConfig(gradient_accumulation_steps=window)
        return tools.trainer(
            tools.config(multi=multi, performance=performance), training_step=step, hooks=[Tells()]
        ), told

    def given() -> Any:
        return torch.utils.data.DataLoader(Items(), batch_size=4)

    whole, expected = make(lambda: None)
    whole.fit(given(), max_steps=8 // window)
    assert len(expected) == 2
    run, told = make(Once(number))
    with pytest.raises(Fail):
        run.fit(given(), max_steps=8 // window)
    if way == "state":
        state, before = run.get_state(), told
        run, told = make(lambda: None)
        told += before
        run.load_state(state)
    run.fit(given(), max_steps=8 // window)
    assert told == expected
    assert run.get_state().diff(whole.get_state()) == []


def test_an_edit_after_the_end_of_a_pass_was_found_is_part_of_the_state() -> None:
    """A mixture without a trainer: the end of an epoch is found, an edit follows, nothing was handed out since."""
    config = mtf.MultiDataLoaderConfig(cycle_short_loaders=False, dataloader_names=["a"], sampling_strategy="WEIGHTED",
                                       dataloader_weights=[1.0], epoch_length_policy="MIN_LENGTH")  # fmt: skip
    mixture = mtf.MultiLoader({"a": torch.utils.data.DataLoader(Items(), batch_size=4)}, config)
    for _ in mixture:
        mixture.commit()
    mixture.add_source("b", tools.loader(8, 2), weight=1.0)
    assert list(mixture.state_dict()["sources"]) == ["a", "b"]
    assert mixture.state_dict()["schedule"] == mixture.schedule.state_dict()


# Saves -------------------------------------------------------------------------------------------------------------


def saving(root: Path, *hooks: mtf.TrainerHooks, **checkpoint: Any) -> mtf.Trainer:
    settings = mtf.CheckpointConfig(root_dir=str(root), **checkpoint)
    return tools.trainer(tools.config(checkpoint=settings), hooks=hooks)


@pytest.mark.filterwarnings("ignore:checkpoint. with save_every_n_steps=4 nothing is saved")  # by the first fit
def test_going_back_saves_again_where_it_had_saved(tmp_path: Path) -> None:
    run, given = saving(tmp_path / "run", save_every_n_steps=4), tools.loader(32, 1)
    run.fit(given, max_steps=2)
    state = run.get_state()
    run.fit(given, max_steps=4)
    run.load_state(state)
    run.optimizers[0].param_groups[0]["lr"] = 0.5
    run.fit(given, max_steps=4)
    fresh = saving(tmp_path / "run")
    fresh.load_checkpoint(str(tmp_path / "run" / "latest"))
    assert fresh.get_state().diff(run.get_state()) == []


@pytest.mark.parametrize("every", ["save_every_n_steps", "save_every_n_epochs"])
@pytest.mark.parametrize("where", ["hook", "state"])
def test_a_save_that_a_hook_broke_comes_next(tmp_path: Path, every: str, where: str) -> None:
    told: list[tuple[str, str]] = []
    fail = Once()

    class First(mtf.TrainerHooks):
        def on_checkpoint_save(self, trainer: mtf.Trainer, path: str) -> None:
            if where == "hook":
                fail()
            told.append(("first", Path(path).name))

        def state_dict(self) -> dict[str, Any]:
            if where == "state":
                fail()
            return {}

        def load_state_dict(self, state: Any) -> None:
            pass

    class Second(mtf.TrainerHooks):
        def on_checkpoint_save(self, trainer: mtf.Trainer, path: str) -> None:
            told.append(("second", Path(path).name))

    run = saving(tmp_path / "run", First(), Second(), max_checkpoints=9, **{every: 1})
    fits(run, tools.loader(8, 1), 4)
    numbers = (1, 2, 3, 4) if every == "save_every_n_steps" else (2, 4)
    names = [f"step-{number:08}" for number in numbers]

    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == names
    assert told == [(who, name) for name in names for who in ("first", "second")]
    assert not run._run.pending.is_anything


@pytest.mark.parametrize("event", ["on_after_optimizer_step", "on_validation_end"])
def test_a_save_asked_for_in_an_update_comes_though_an_error_follows_it(tmp_path: Path, event: str) -> None:
    path, fail = tmp_path / "asked", Once()

    class Asks(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: mtf.Trainer, *_: Any) -> None:
            if trainer.num_batches == 2:
                trainer.save_checkpoint(str(path))

    def raising(hook: Any, trainer: mtf.Trainer, *_: Any) -> None:
        if trainer.num_batches == 2:
            fail()

    validation = mtf.ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=2)
    hooks = [Asks(), type("Raising", (mtf.TrainerHooks,), {event: raising})()]
    run = tools.trainer(tools.config(validation=validation), hooks=hooks)
    with pytest.raises(Fail):
        run.fit(tools.loader(16, 1), tools.loader(4, 2), max_steps=4)
    assert not path.exists()
    run.fit(run._parts.data.given, tools.loader(4, 2), max_steps=4)
    fresh = tools.trainer(tools.config(validation=validation), hooks=hooks)
    fresh.load_checkpoint(str(path))
    assert fresh.global_step == 2


def test_a_save_asked_for_in_a_window_that_failed_is_asked_for_again_or_not(tmp_path: Path) -> None:
    fail, path = Once(), tmp_path / "asked"

    class Asks(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: mtf.Trainer, *_: Any) -> None:
            if trainer.num_batches == 2 and not path.with_name("not again").exists():
                trainer.save_checkpoint(str(path))
                path.with_name("not again").touch()
                fail()

    run = tools.trainer(hooks=[Asks()])
    fits(run, tools.loader(16, 1), 4)
    assert not path.exists()


# States --------------------------------------------------------------------------------------------------------------


def test_an_error_of_an_update_that_broke_off_is_not_raised_in_a_later_one() -> None:
    """A hook and then a scheduler raise in one update; the state from before it knows of neither."""

    class Scheduler:
        num, fail = 0, Once(1)

        def step(self) -> None:
            self.num += 1
            self.fail()

        def state_dict(self) -> dict[str, int]:
            return {"num": self.num}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.num = state["num"]

    class Raising(mtf.TrainerHooks):
        is_armed = True

        def on_after_optimizer_step(self, trainer: mtf.Trainer, optimizer_idx: int) -> None:
            if self.is_armed and trainer.global_step == 1:
                self.is_armed = False
                raise KeyError("of long ago")

    run = tools.trainer(schedulers=[{"scheduler": Scheduler(), "interval": "step"}], hooks=[Raising()])
    given = tools.loader(32, 1)
    run.fit(given, max_steps=1)
    state = run.get_state()
    with pytest.raises(Fail):
        run.fit(given, max_steps=4)
    run.load_state(state)
    run.fit(given, max_steps=4)
    assert run.global_step == 4


def test_a_state_from_before_the_first_fit_that_is_refused_leaves_the_loaders() -> None:
    fail = Once()

    class Refusing(mtf.TrainerHooks):
        def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
            if epoch == 1 and "x" not in trainer.multi_loader_manager.names:
                trainer.add_dataloader(tools.loader(8, 3), "x")

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            fail()

    run, given = tools.trainer(hooks=[Refusing()]), tools.loader(16, 1)
    empty = run.get_state()
    run.fit(given, max_steps=6)
    before = run.get_state()
    with pytest.raises(mtf.StateMismatch, match="malformed"):
        run.load_state(empty)
    assert run.get_state() == before
    assert run.multi_loader_manager.names == ["dl0", "x"]
    run.fit(given, max_steps=8)
    assert run.global_step == 8
    run.load_state(empty)
    run.fit(given, max_steps=1)
    assert run.multi_loader_manager.names == ["dl0"]
