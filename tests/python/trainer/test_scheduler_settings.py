"""A longer run: settings of schedulers that the script has changed are named, or used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from trainer_tools import config, loader, model, trainer

import mtf

Make = Callable[[torch.optim.Optimizer, int], Any]


def cosine(optimizer: torch.optim.Optimizer, length: int) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, length)


def warm_up_and_cosine(optimizer: torch.optim.Optimizer, length: int) -> Any:
    parts: list[Any] = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4), cosine(optimizer, length)]
    return lr_scheduler.SequentialLR(optimizer, parts, [4])


def one_cycle(optimizer: torch.optim.Optimizer, length: int) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=length, cycle_momentum=False)


def run_of(make: Make, length: int, source: str = "saved") -> mtf.Trainer:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    settings = config(fault_tolerance=mtf.FaultToleranceConfig(optimizer_settings=source))  # type: ignore[arg-type]
    schedulers = [{"scheduler": make(optimizer, length), "interval": "step"}]
    return trainer(settings, model=net, optimizers=optimizer, schedulers=schedulers)


def rates(run: mtf.Trainer, until: int) -> list[float]:
    """Rates after each update up to ``until``."""
    found = []
    while run.global_step < until:
        run.fit([loader(400, 1)], max_steps=run.global_step + 1)
        found.append(run.optimizers[0].param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (cosine, r"schedulers\[0\] \(CosineAnnealingLR\): T_max=40 in the script, 20 in the state"),
        (warm_up_and_cosine, r"\(SequentialLR\), part 1: T_max=40 in the script, 20 in the state"),
        (one_cycle, r"\(OneCycleLR\): total_steps=40 in the script, 20 in the state"),
    ],
)
@pytest.mark.parametrize("source", ["saved", "script"])
@pytest.mark.parametrize("at", [2, 12])
def test_a_longer_schedule_is_named_or_used(make: Make, named: str, source: str, at: int, tmp_path: Path) -> None:
    first = run_of(make, 20)
    rates(first, at)
    first.save_checkpoint(str(tmp_path / "c"))
    longer = run_of(make, 40, source)
    if source == "saved":
        with pytest.warns(UserWarning, match=named):
            longer.load_checkpoint(str(tmp_path / "c"))
        expected = rates(first, 19)
    else:
        longer.load_checkpoint(str(tmp_path / "c"))
        expected = rates(run_of(make, 40), 19)[at:]
    assert rates(longer, 19) == pytest.approx(expected, rel=1e-9)


def test_the_same_script_says_nothing_also_later(tmp_path: Path) -> None:
    first = run_of(warm_up_and_cosine, 20)
    rates(first, 7)
    first.save_checkpoint(str(tmp_path / "c"))
    again = run_of(warm_up_and_cosine, 20)
    again.load_checkpoint(str(tmp_path / "c"))
    assert rates(again, 12) == rates(first, 12)
    assert again.get_state() == first.get_state()


def test_the_scripts_settings_are_the_next_checkpoints(tmp_path: Path) -> None:
    first = run_of(cosine, 20)
    rates(first, 7)
    first.save_checkpoint(str(tmp_path / "a"))
    second = run_of(cosine, 40, "script")
    second.load_checkpoint(str(tmp_path / "a"))
    second.save_checkpoint(str(tmp_path / "b"))
    run_of(cosine, 40).load_checkpoint(str(tmp_path / "b"))  # names nothing
    with pytest.warns(UserWarning, match="T_max=20 in the script, 40 in the state"):
        run_of(cosine, 20).load_checkpoint(str(tmp_path / "b"))


def test_what_steps_change_is_no_setting(tmp_path: Path) -> None:
    """The best value of a plateau scheduler is where the run stands, and stays."""

    def plateau(optimizer: torch.optim.Optimizer, length: int) -> Any:
        return lr_scheduler.ReduceLROnPlateau(optimizer, patience=length)

    def run_with(patience: int, source: str) -> mtf.Trainer:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        settings = config(fault_tolerance=mtf.FaultToleranceConfig(optimizer_settings=source))  # type: ignore[arg-type]
        scheduler = {"scheduler": plateau(optimizer, patience), "monitor": "train/loss"}
        return trainer(settings, model=net, optimizers=optimizer, schedulers=[scheduler])

    first = run_with(3, "saved")
    first.fit([loader(16, 1)], max_epochs=3)
    first.save_checkpoint(str(tmp_path / "c"))
    second = run_with(5, "script")
    second.load_checkpoint(str(tmp_path / "c"))
    here, there = (run._parts.schedulers.general[0].scheduler for run in (second, first))
    assert (here.patience, here.best, here.num_bad_epochs) == (5, there.best, there.num_bad_epochs)
