"""Loaders that come, go and are replaced, and epochs that edits change: in parts, restarted and after errors alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trainer_tools as tools

import mtf


class Fail(Exception):
    """Raised by hooks of these tests only."""


def at(event: str, number: int, action: Callable[[mtf.Trainer], Any]) -> mtf.TrainerHooks:
    """A hook that does ``action`` where ``num_batches`` is ``number``, in a restarted run too."""

    def called(self: Any, trainer: mtf.Trainer, *_: Any) -> None:
        if trainer.num_batches == number:
            action(trainer)

    hook: mtf.TrainerHooks = type("At", (mtf.TrainerHooks,), {event: called})()
    return hook


def make(*hooks: mtf.TrainerHooks, window: int = 1, factories: Any = None, **settings: Any) -> mtf.Trainer:
    settings.setdefault("multi", mtf.MultiDataLoaderConfig(dataloader_names=["a", "b"]))
    settings["performance"] = mtf.PerformanceConfig(gradient_accumulation_steps=window)
    return tools.trainer(tools.config(**settings), hooks=hooks, loader_factories=factories)


def given() -> dict[str, Any]:
    return {"a": tools.loader(12, 1, shuffle=True), "b": mtf.ArrayLoader(tools.rows(8, 2), batch_size=4)}


# Epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 2])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("event", ["on_train_batch_end", "on_after_optimizer_step"])
def test_an_edit_in_an_epochs_last_window_makes_it_longer_however_long_that_is(
    event: str, window: int, cut: int
) -> None:
    """Five steps, and two more by the edit in the fifth; the window may be shorter than the others."""
    longer = at(event, 5, lambda trainer: trainer.add_dataloader(tools.loader(8, 3), "c"))
    whole = make(longer, window=window)
    whole.fit(given())
    assert whole.num_batches == 7
    parts = make(longer, window=window)
    parts.fit(given(), max_steps=cut)
    fresh = make(longer, window=window, factories={"c": lambda: tools.loader(8, 3)})
    fresh.load_state(parts.get_state())
    fresh.fit(given(), max_epochs=1)
    assert fresh.get_state().diff(whole.get_state()) == []


def test_an_edit_after_the_last_update_asked_for_may_end_its_epoch() -> None:
    """Without ``c`` the four steps done are all there are: the epoch's end belongs to this call of ``fit``."""
    validation = mtf.ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=1)
    shorter = at("on_validation_end", 4, lambda trainer: trainer.remove_dataloader("c"))
    multi = mtf.MultiDataLoaderConfig(dataloader_names=["a", "c"], sampling_strategy=mtf.SamplingStrategy.SEQUENTIAL)
    run = make(shorter, multi=multi, validation=validation)
    run.fit({"a": tools.loader(16, 1), "c": tools.loader(8, 3)}, tools.loader(4, 4), max_steps=4)
    assert (run.epoch, run._run.epoch_is_open) == (1, False)


# Settings that name loaders -----------------------------------------------------------------------------------------


def test_settings_of_a_loader_that_was_removed_do_not_stop_the_next_fit() -> None:
    settings: dict[str, Any] = {
        "loss_weights_per_loader": {"b": 0.5},
        "per_loader_optimizers": {"b": {"lr_scale": 2.0}},
    }
    removed = at("on_epoch_end", 5, lambda trainer: trainer.remove_dataloader("b"))
    whole, parts = make(removed, **settings), make(removed, **settings)
    whole.fit(given(), max_steps=8)
    parts.fit(given(), max_steps=6)
    fresh = make(removed, **settings)
    fresh.load_state(parts.get_state())
    for run in (parts, fresh):
        run.fit(run._parts.data.given or given(), max_steps=8)
        assert run.get_state().diff(whole.get_state()) == []


def test_settings_may_name_a_loader_that_a_factory_makes() -> None:
    added = at("on_epoch_end", 5, lambda trainer: trainer.add_dataloader(tools.loader(8, 3), "c"))
    run = make(added, loss_weights_per_loader={"c": 0.5}, factories={"c": lambda: tools.loader(8, 3)})
    run.fit(given(), max_epochs=2)
    with pytest.raises(mtf.ConfigError, match="loss_weights_per_loader: no loader is called 'c'"):
        make(added, loss_weights_per_loader={"c": 0.5}).fit(given())


@pytest.mark.parametrize("edit", ["remove", "add"])
def test_validation_loaders_keep_their_names_whatever_comes_and_goes(edit: str) -> None:
    """A list of as many validation loaders as training began with has their names."""

    def change(trainer: mtf.Trainer) -> None:
        if edit == "add":
            trainer.add_dataloader(tools.loader(8, 3), "c")
        else:
            trainer.remove_dataloader("b")

    edits, validation = at("on_epoch_end", 5, change), [tools.loader(4, 4), tools.loader(8, 5)]
    whole, parts = make(edits), make(edits)
    whole.fit(given(), validation, max_epochs=3)
    assert {"val/a/loss", "val/b/loss"} <= set(whole.metrics)
    parts.fit(given(), validation, max_epochs=1)
    fresh = make(edits, factories={"c": lambda: tools.loader(8, 3)})
    fresh.load_state(parts.get_state())
    fresh.fit(given(), validation, max_epochs=3)
    assert fresh.get_state().diff(whole.get_state()) == []
    assert set(fresh.validate(validation)) == {"val/a/loss", "val/b/loss", "val/loss"}


# Loaders under a name that had another ------------------------------------------------------------------------------


def other(num: int = 12) -> Any:
    return tools.loader(num, 7, shuffle=True)


def replace(num: int) -> Callable[[mtf.Trainer], None]:
    def action(trainer: mtf.Trainer) -> None:
        trainer.remove_dataloader("a")
        trainer.add_dataloader(other(num), "a")

    return action


@pytest.mark.parametrize("num", [12, 20])
@pytest.mark.parametrize("event", ["on_epoch_end", "on_train_batch_end", "on_after_optimizer_step"])
def test_a_loader_that_replaced_another_stays_in_its_place(tmp_path: Path, event: str, num: int) -> None:
    """Also where ``fit`` is given the first one again, and in a restarted script that has a factory for the second."""
    edit = at(event, 5, replace(num))
    whole, parts = make(edit), make(edit)
    whole.fit(given(), max_steps=14)
    loaders = given()
    parts.fit(loaders, max_steps=8)
    parts.save_checkpoint(str(tmp_path / "saved"))
    parts.fit(loaders, max_steps=10)
    parts.fit(given(), max_steps=14)
    assert parts.get_state().diff(whole.get_state()) == []
    fresh = make(edit, factories={"a": lambda: other(num)})
    fresh.load_checkpoint(str(tmp_path / "saved"))
    fresh.fit(given(), max_steps=14)
    assert fresh.get_state().diff(whole.get_state()) == []
    without = make(edit)
    without.load_checkpoint(str(tmp_path / "saved"))
    if num != 12:
        with pytest.raises(mtf.StateMismatch, match=r"added as 'a' during training.*loader_factories=\{'a': \.\.\.\}"):
            without.fit(given(), max_steps=14)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("num_added", [0, 1])
def test_a_window_that_fails_takes_the_loader_it_replaced_back(window: int, num_added: int) -> None:
    """Once; what asked for the edit doesn't ask again. ``num_added``: whether it had replaced another before."""
    armed = True

    def act(trainer: mtf.Trainer) -> None:
        nonlocal armed
        if armed:
            armed = False
            replace(20)(trainer)
            raise Fail

    hooks = [at("on_epoch_end", 5, replace(12))] * num_added
    whole, run = make(*hooks, window=window), make(*hooks, at("on_train_batch_end", 6, act), window=window)
    whole.fit(given(), max_epochs=3)
    loaders = given()
    with pytest.raises(Fail):
        run.fit(loaders, max_epochs=3)
    run.fit(loaders, max_epochs=3)
    assert run.get_state().diff(whole.get_state()) == []


def test_a_state_from_before_a_loader_was_replaced_goes_on_with_the_first() -> None:
    whole = make()
    whole.fit(given(), max_steps=9)
    run, loaders = make(), given()
    run.fit(loaders, max_steps=5)
    state = run.get_state()
    replace(20)(run)
    run.fit(loaders, max_steps=9)
    replaced = run.get_state()
    run.load_state(state)
    run.fit(loaders, max_steps=9)
    assert run.get_state().diff(whole.get_state()) == []
    with pytest.raises(mtf.StateMismatch, match="continues with the loader that was added as 'a'"):
        run.load_state(replaced)
    assert run.get_state().diff(whole.get_state()) == []


def test_a_state_refused_across_a_replacement_puts_the_new_loader_back() -> None:
    class Refusing(mtf.TrainerHooks):
        is_armed = False

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            if self.is_armed:
                self.is_armed = False
                raise Fail

    edit, refusing = at("on_epoch_end", 5, replace(20)), Refusing()
    whole, run = make(edit, Refusing()), make(edit, refusing)
    whole.fit(given(), max_steps=12)
    loaders = given()
    run.fit(loaders, max_steps=4)
    state = run.get_state()
    run.fit(loaders, max_steps=8)
    refusing.is_armed = True
    with pytest.raises(mtf.StateMismatch):
        run.load_state(state)
    run.fit(loaders, max_steps=12)
    assert run.get_state().diff(whole.get_state()) == []


def test_a_replacement_is_not_taken_for_a_loader_that_is_not_deterministic(tmp_path: Path) -> None:
    """A state taken between the edit and the next batch remembers nothing of the loader before."""
    edit = at("on_epoch_end", 5, replace(20))
    settings = {"fault_tolerance": mtf.FaultToleranceConfig(verify_deterministic_resume=True)}
    run = make(edit, at("on_epoch_start", 5, lambda t: t.save_checkpoint(str(tmp_path / "saved"))), **settings)
    run.fit(given(), max_epochs=2)
    fresh = make(edit, factories={"a": lambda: other(20)}, **settings)
    fresh.load_checkpoint(str(tmp_path / "saved"))
    assert fresh.num_batches == 5
    fresh.fit(given(), max_epochs=2)
    assert fresh.get_state().diff(run.get_state()) == []


# A mixture without a trainer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_since", [0, 1])
def test_going_to_another_epoch_keeps_what_was_committed(num_since: int) -> None:
    """Nothing handed out since: the state is the new place. Else it is still the committed one."""
    mixture = mtf.MultiLoader(given(), mtf.MultiDataLoaderConfig(dataloader_names=["a", "b"]))
    batches = iter(mixture)
    for _ in range(3):
        next(batches)
    mixture.commit()
    for _ in range(num_since):
        next(batches)
    mixture.set_epoch(4)
    fresh = mtf.MultiLoader(given(), mtf.MultiDataLoaderConfig(dataloader_names=["a", "b"]))
    fresh.load_state_dict(mixture.state_dict())
    assert (fresh.epoch, fresh.step) == ((4, 0), (0, 3))[num_since]
    mixture.rewind()
    assert (mixture.epoch, mixture.step) == (fresh.epoch, fresh.step)
