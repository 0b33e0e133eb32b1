"""Counters that pass 2^31, 2^32 and 2^53 in the middle of a run: nothing repeats, nothing is lost, resume is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_tools as tools

import mtf
from mtf.checkpoint.format import layout
from mtf.checkpoint.manager import CheckpointManager

POWERS = [2**31, 2**32, 2**53]
STEPS = 6


class Noise(mtf.TrainerHooks):
    """The random numbers that each step draws, and where its batch is from."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.drawn.append(float(torch.rand(())))


def make(root: Path | None = None) -> mtf.Trainer:
    settings: dict[str, Any] = {}
    if root is not None:
        settings["checkpoint"] = mtf.CheckpointConfig(root_dir=str(root), save_every_n_steps=1, max_checkpoints=3)
    trainer = tools.trainer(tools.config(["a", "b"], **settings), model=tools.model(dropout=0.3))
    trainer.add_hook(Noise())
    return trainer


def loaders() -> list[Any]:
    return [tools.loader(7, 1, 2, shuffle=True), mtf.ArrayLoader(tools.rows(9, 2), 2, shuffle=True)]


def moved(schedule: dict[str, Any], epoch: int, first_step: int, passes: list[int]) -> dict[str, Any]:
    """A schedule's state at the beginning of an epoch, put into a far one."""
    parts = {name: {**schedule[name], "pass": passes} for name in ("opening", "tail")}
    return {**schedule, "epoch": epoch, "first_step": first_step, **parts}


def far(first: int) -> mtf.TrainerState:
    """The state before a run's first update, with counters as if it had done ``first`` updates, and as many epochs."""
    trainer = make()
    with pytest.warns(UserWarning, match="nothing to do"):
        trainer.fit(loaders(), max_steps=0, max_epochs=1)
    tree = dict(trainer.get_state().tree)
    # In an epoch of 9 steps the first source begins two passes, the second one.
    schedule = moved(tree["multi"]["schedule"], first, 9 * first, [2 * first, first])
    tree.update(global_step=first, num_batches=first, epoch=first, multi={**tree["multi"], "schedule": schedule})
    return mtf.TrainerState(tree)


def run(state: mtf.TrainerState, max_steps: int, root: Path | None = None) -> tuple[mtf.Trainer, list[float]]:
    trainer = make(root)
    trainer.load_state(state)
    trainer.fit(loaders(), max_steps=max_steps, max_epochs=2**60)
    return trainer, next(hook for hook in trainer._hooks if isinstance(hook, Noise)).drawn


@pytest.mark.parametrize("power", POWERS)
def test_resume_is_exact_across_the_boundary(power: int, tmp_path: Path) -> None:
    first = power - STEPS // 2
    whole, drawn = run(far(first), first + 12, tmp_path)
    assert (whole.global_step, whole.num_batches) == (first + 12, first + 12)
    assert whole.epoch == first + 1, "one epoch ended"
    assert len(set(drawn)) == len(drawn)
    expected = whole.get_state()
    assert CheckpointManager(whole.config.checkpoint).latest() == tmp_path / f"step-{first + 12}"
    for path in sorted(tmp_path.glob("step-*"))[:-1]:
        again = make()
        again.fit(loaders(), max_steps=first + 12, max_epochs=2**60, resume_from=str(path))
        assert again.get_state().diff(expected) == []
        assert layout.read(path).manifest["step"] == int(path.name[5:])
    for cut in range(1, 12):
        part, _ = run(far(first), first + cut)
        later, _ = run(part.get_state(), first + 12)
        assert later.get_state().diff(expected) == []


@pytest.mark.parametrize("power", POWERS)
def test_numbers_are_not_those_of_a_step_or_pass_a_power_before(power: int) -> None:
    """As they would be where a counter is cut to so many bits."""
    _, here = run(far(power), power + STEPS)
    _, there = run(far(0), STEPS)
    assert not set(here) & set(there)
    orders = []
    for epoch in (0, power):
        with mtf.MultiLoader([mtf.ArrayLoader(torch.arange(64), 64, shuffle=True)]) as mixture:
            state = mixture.state_dict()
            mixture.load_state_dict({**state, "schedule": moved(state["schedule"], epoch, epoch, [epoch])})
            batch = next(iter(mixture))
            assert batch.epoch == batch.pass_ == epoch
            orders.append(batch.data.tolist())
    assert orders[0] != orders[1]
    assert sorted(orders[1]) == list(range(64))


@pytest.mark.parametrize("power", POWERS)
def test_far_positions_of_a_long_epoch(power: int) -> None:
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        dataloader_weights=[3.0, 1.0],
        weighted_order="EVEN",
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=power + 100,
    )
    given = {"a": mtf.ArrayLoader(torch.arange(5), 2), "b": mtf.ArrayLoader(torch.arange(4), 2)}
    schedule = mtf.Schedule(config, lengths={"a": 3, "b": 2}, seed=0)
    schedule.seek(0, power - 5)
    with mtf.MultiLoader(given, config) as mixture:
        mixture.load_state_dict({**mixture.state_dict(), "schedule": schedule.state_dict()})
        batches = [batch for batch, _ in zip(mixture, range(10), strict=False)]
        assert mixture.state_dict()["schedule"]["step"] >= power + 5
    assert [batch.step for batch in batches] == list(range(power - 5, power + 5))
    for batch in batches:
        draw = schedule.at(batch.step)
        assert (draw.name, draw.pass_, draw.batch) == (batch.name, batch.pass_, batch.batch)
        rows = list(range(5 if batch.name == "a" else 4))
        assert batch.data.tolist() == rows[2 * batch.batch : 2 * batch.batch + 2]
