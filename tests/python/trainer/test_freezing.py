"""Freeze schedules: who is trained when, new groups, schedulers, modes, and exact resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from trainer_tools import config, loader, model, same_weights, trainer

import mtf


class Changes(mtf.TrainerHooks):
    """Names of the parameters that each update changed."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []
        self._before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
        now = trainer.model.named_parameters()
        self.names.append({name for name, p in now if not torch.equal(p, self._before[name])})


HEAD, BODY = {"3.weight", "3.bias"}, {"0.weight", "0.bias"}


def frozen_trainer(by: Any, make_scheduler: Any = None, *, has_all: bool = False, **options: Any) -> mtf.Trainer:
    """The head from the beginning; the body from epoch 1 or update 4 on, in a group of its own."""
    net = model()
    if not has_all:
        net[0].requires_grad_(False)
    own = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(own, lr=0.1, momentum=0.9)
    schedulers = [] if make_scheduler is None else [{"scheduler": make_scheduler(optimizer), "interval": "step"}]
    schedule = {0: ["3"], (1 if by == "epoch" else 4): ["*"]}
    hook = mtf.FreezeSchedule(schedule, by, new_group=None if has_all else {"lr": 0.01}, **options)
    return trainer(model=net, optimizers=optimizer, schedulers=schedulers, hooks=[hook, Changes()])


def changes(run: mtf.Trainer) -> list[set[str]]:
    return next(hook for hook in run._hooks if isinstance(hook, Changes)).names


@pytest.mark.parametrize(("by", "first"), [("epoch", 6), ("update", 4)])
@pytest.mark.parametrize("has_all", [False, True])
def test_parts_are_trained_from_their_time_on(by: str, first: int, has_all: bool) -> None:
    run = frozen_trainer(by, has_all=has_all)
    run.fit([loader(24, 1)], max_steps=9)
    assert changes(run) == [HEAD] * first + [HEAD | BODY] * (9 - first)
    assert len(run.optimizers[0].param_groups) == (1 if has_all else 2)


SCHEDULERS: dict[str, Any] = {
    "none": None,
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=20, cycle_momentum=False),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=6), lr_scheduler.LambdaLR(o, lambda k: 0.9**k)], [6]
    ),
}


@pytest.mark.parametrize("by", ["epoch", "update"])
@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@pytest.mark.parametrize("at", [2, 5, 8])
def test_a_resume_before_and_after_a_change_is_exact(by: str, scheduler: str, at: int, tmp_path: Path) -> None:
    straight = frozen_trainer(by, SCHEDULERS[scheduler])
    straight.fit([loader(24, 1)], max_steps=13)
    first = frozen_trainer(by, SCHEDULERS[scheduler])
    first.fit([loader(24, 1)], max_steps=at)
    first.save_checkpoint(str(tmp_path / "c"))
    resumed = frozen_trainer(by, SCHEDULERS[scheduler])
    resumed.fit([loader(24, 1)], max_steps=13, resume_from=str(tmp_path / "c"))
    assert resumed.get_state() == straight.get_state()
    assert changes(resumed) == changes(straight)[at:]


@pytest.mark.parametrize("scheduler", ["lambda", "step", "one cycle"])
def test_a_new_group_follows_the_schedule_of_the_first(scheduler: str) -> None:
    run = frozen_trainer("update", SCHEDULERS[scheduler])
    for update in range(1, 12):
        run.fit([loader(400, 1)], max_steps=update)
        rates = [group["lr"] for group in run.optimizers[0].param_groups]
        if update >= 4:
            assert rates[1] == pytest.approx(rates[0] / (20 if scheduler == "one cycle" else 10))  # 0.2 is its peak


def test_frozen_parts_may_run_in_eval_mode() -> None:
    def made() -> mtf.Trainer:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        net = nn.Sequential(body, nn.Linear(5, 1))
        hook = mtf.FreezeSchedule({0: "1", 2: "*"}, eval_frozen=True)
        return trainer(model=net, optimizers=torch.optim.SGD(net.parameters(), lr=0.1), hooks=[hook])

    run = made()
    run.fit([loader(24, 1)], [loader(8, 2)], max_epochs=2)
    body: Any = run.model[0]  # type: ignore[index]
    assert body[1].num_batches_tracked == 0
    assert (body.training, body[2].training, run.model.training) == (False, False, True)
    resumed = made()
    resumed.load_state(run.get_state())
    for each in (run, resumed):
        each.fit([loader(24, 1)], [loader(8, 2)], max_epochs=4)
    assert body.training
    assert body[1].num_batches_tracked == 12
    assert resumed.get_state() == run.get_state()


def test_momentum_waits_while_its_parameter_is_frozen() -> None:
    net = model()
    run = trainer(
        model=net,
        optimizers=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        hooks=[mtf.FreezeSchedule({0: "*", 2: "3", 4: "*"}, "update")],
    )
    run.fit([loader(400, 1)], max_steps=2)
    weight, momentum = net[0].weight.detach().clone(), run.optimizers[0].state[net[0].weight]["momentum_buffer"].clone()
    run.fit([loader(400, 1)], max_steps=4)
    assert torch.equal(net[0].weight, weight)
    assert torch.equal(run.optimizers[0].state[net[0].weight]["momentum_buffer"], momentum)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({1: "*"},), r"trained must be a dict with an entry for epoch 0"),
        (({0: []},), r"trained\[0\] must be names"),
        (({0: "*", -1: "*"},), r"trained\[-1\] must be names"),
        (({0: "*"}, "step"), r"FreezeSchedule: by must be one of epoch, update"),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        mtf.FreezeSchedule(*arguments)


def test_names_that_the_model_does_not_have_are_refused_before_training() -> None:
    run = trainer(hooks=[mtf.FreezeSchedule({0: "0", 7: "0.wieght"})])
    before = run.get_state()
    with pytest.raises(mtf.ConfigError, match=r"trained\[7\]: no parameter .* did you mean '0\.weight'"):
        run.fit([loader(8, 1)], max_steps=1)
    assert same_weights(run.get_state()["model"], before["model"])
    with pytest.raises(mtf.ConfigError, match="optimizer_idx is 1, there are 1 optimizers"):
        trainer(hooks=[mtf.FreezeSchedule({0: "0"}, optimizer_idx=1)]).fit([loader(8, 1)], max_steps=1)


def test_flags_are_settings_of_the_run(tmp_path: Path) -> None:
    """Weights only: the new run's own schedule decides."""
    first = frozen_trainer("epoch", has_all=True)
    first.fit([loader(24, 1)], max_epochs=2)
    first.save_checkpoint(str(tmp_path / "c"))
    second = frozen_trainer("epoch", has_all=True)
    second.fit([loader(24, 1)], max_steps=1, resume_from=str(tmp_path / "c"), resume_parts="model")
    assert changes(second) == [HEAD]
    assert config().seed == 0
