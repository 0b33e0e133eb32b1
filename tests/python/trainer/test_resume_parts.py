"""Resuming from parts of a checkpoint: each part alone, what begins anew, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_tools import config, loader, model, same_weights, trainer

import mtf


class Counter:
    """A component of a user's."""

    value = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.value = state["value"]


def adam_trainer(settings: mtf.TrainerConfig | None = None, **arguments: Any) -> mtf.Trainer:
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    scheduler = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5), "interval": "step"}
    return trainer(settings, model=net, optimizers=optimizer, schedulers=[scheduler], **arguments)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[mtf.Trainer, str]:
    run = adam_trainer(config(seed=1), hooks=[mtf.EarlyStopping(patience=50)])
    counter = Counter()
    counter.value = 5
    run.register("counter", counter)
    run.fit([loader(40, 1)], [loader(8, 2)], max_steps=13)
    run.save_checkpoint(str(tmp_path / "first"))
    return run, str(tmp_path / "first")


def test_weights_only_is_a_new_run_that_begins_with_them(saved: tuple[mtf.Trainer, str]) -> None:
    first, path = saved
    tuned, by_hand = adam_trainer(config(seed=2)), adam_trainer(config(seed=2))
    tuned.fit([loader(24, 3)], max_steps=9, resume_from=path, resume_parts="model")
    by_hand.model.load_state_dict(first.model.state_dict())
    by_hand.fit([loader(24, 3)], max_steps=9)
    assert tuned.get_state() == by_hand.get_state()
    assert tuned.global_step == 9


@pytest.mark.parametrize("part", ["model", "optimizers", "schedulers", "hooks", "position", "counter"])
def test_each_part_alone_changes_nothing_else(saved: tuple[mtf.Trainer, str], part: str) -> None:
    def made() -> mtf.Trainer:
        run = adam_trainer(config(seed=1), hooks=[mtf.EarlyStopping(patience=50)])
        run.register("counter", Counter())
        return run

    first, path = saved
    fresh, run, old = made().get_state().tree, made(), first.get_state().tree
    run.load_checkpoint(path, parts=part)
    now = run.get_state().tree
    entries = {
        "optimizers": {"optimizers", "requires_grad", "eval_modules", "hyperparameters", "scaler"},
        "schedulers": {"schedulers", "scheduler_settings"},
    }.get(part, {part})
    others = {"model", "optimizers", "requires_grad", "hyperparameters", "scaler", "hooks", "counter", "other_ranks"}
    others |= {"schedulers", "scheduler_settings", "eval_modules"}
    if part == "position":
        entries = set(now) - others
        assert run.global_step == 13
    changed = {name for name in now if mtf.TrainerState({"x": now[name]}) != mtf.TrainerState({"x": fresh[name]})}
    assert changed
    assert changed <= entries
    for name in entries - {"multi"}:  # the mixture's own state waits for its loaders
        assert mtf.TrainerState({"x": now[name]}) == mtf.TrainerState({"x": old[name]})


def test_all_parts_together_continue_the_run(saved: tuple[mtf.Trainer, str]) -> None:
    first, path = saved
    run = adam_trainer(config(seed=1), hooks=[mtf.EarlyStopping(patience=50)])
    run.register("counter", Counter())
    parts = ["model", "optimizers", "schedulers", "hooks", "position", "counter"]
    loaders: Any = [loader(40, 1)], [loader(8, 2)]
    run.fit(*loaders, max_steps=25, resume_from=path, resume_parts=parts)
    first.fit(*loaders, max_steps=25)
    assert run.get_state() == first.get_state()


def test_what_is_left_out_is_in_the_log(saved: tuple[mtf.Trainer, str], caplog: pytest.LogCaptureFixture) -> None:
    run = adam_trainer(config(seed=1))
    with caplog.at_level(logging.INFO, "mtf"):
        run.load_checkpoint(saved[1], parts=["model", "schedulers"])
    assert "loaded model, schedulers from" in caplog.text
    assert "and not: optimizers, hooks, position" in caplog.text


def test_a_restart_of_the_new_run_continues_it_and_not_the_weights(
    saved: tuple[mtf.Trainer, str], tmp_path: Path
) -> None:
    settings: Any = {
        "checkpoint": mtf.CheckpointConfig(root_dir=str(tmp_path / "second"), save_at_end=True),
        "fault_tolerance": mtf.FaultToleranceConfig(auto_resume=True),
    }
    run = adam_trainer(config(**settings))
    run.fit([loader(24, 3)], max_steps=4, resume_from=saved[1], resume_parts="model")
    again = adam_trainer(config(**settings))
    with pytest.warns(UserWarning, match="isn't used"):
        again.fit([loader(24, 3)], max_steps=8, resume_from=saved[1], resume_parts="model")
    straight = adam_trainer(config(checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path / "third"))))
    straight.fit([loader(24, 3)], max_steps=8, resume_from=saved[1], resume_parts="model")
    assert same_weights(again.model, straight.model)


@pytest.mark.parametrize(
    ("source", "parts", "message"),
    [
        ("PATH", "modle", "resume_parts: the state has no part 'modle'; did you mean 'model'"),
        ("PATH", [], "resume_parts is empty"),
        ("PATH", 3, "resume_parts must be one or several of"),
        ("latest", "model", "resume_parts='model' needs resume_from, the path of a checkpoint, which is 'latest'"),
        (None, "model", "needs resume_from"),
    ],
)
def test_bad_parts_are_refused_before_anything_changes(
    saved: tuple[mtf.Trainer, str], source: str | None, parts: Any, message: str
) -> None:
    run = adam_trainer()
    before = run.get_state()
    with pytest.raises(mtf.ConfigError, match=message):
        run.fit([loader(24, 3)], max_steps=4, resume_from=saved[1] if source == "PATH" else source, resume_parts=parts)
    assert run.get_state() == before


def test_weights_of_another_model_are_refused_by_name(saved: tuple[mtf.Trainer, str]) -> None:
    other = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh())
    run = trainer(model=other)
    with pytest.raises(mtf.StateMismatch, match=r"the model has no '3\.weight'"):
        run.load_checkpoint(saved[1], parts="model")


def test_parts_are_refused_in_the_middle_of_a_broken_update(saved: tuple[mtf.Trainer, str]) -> None:
    run = adam_trainer()
    run._run._is_broken = True
    with pytest.raises(mtf.UsageError, match="broke off in the middle"):
        run.load_checkpoint(saved[1], parts="optimizers")
