"""A learning rate that a training step sets and puts back before the optimizer steps: without effect, and said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from trainer_tools import config, loader, model, step, trainer

import mtf

SCALES = {"easy": 1.0, "medium": 0.5, "hard": 0.1}


def of_the_guide(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Any:
    for group in trainer.optimizers[0].param_groups:
        group["lr"] *= SCALES[dataloader_name]
    result = step(trainer, batch, batch_idx, dataloader_idx, dataloader_name)
    for group in trainer.optimizers[0].param_groups:
        group["lr"] /= SCALES[dataloader_name]
    return result


def by_update(trainer: Any, batch: Any, *place: Any) -> Any:
    for group in trainer.optimizers[0].param_groups:
        rate = group["lr"]
        group.update(lr=0.5 * rate)
        group.update({"lr": rate})
    return step(trainer, batch, *place)


def given() -> dict[str, Any]:
    return {name: loader(12, seed) for seed, name in enumerate(SCALES)}


@pytest.mark.parametrize("function", [of_the_guide, by_update])
@pytest.mark.parametrize("window", [1, 2])
def test_it_is_said_once_and_names_lr_scale(function: Any, window: int) -> None:
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=window)
    one = trainer(config(list(SCALES), performance=performance), training_step=function)
    group = one.optimizers[0].param_groups[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        one.fit(given(), max_epochs=1)
    texts = [str(w.message) for w in said]
    assert len([t for t in texts if "per_loader_optimizers={'easy': {'lr_scale': ...}}" in t]) == 1
    assert one.optimizers[0].param_groups[0] is group
    assert group["lr"] == pytest.approx(0.1)


def test_watching_changes_no_update_and_the_way_named_has_an_effect() -> None:
    plain, scaled = trainer(config(list(SCALES))), None
    plain.fit(given(), max_epochs=1)
    watched = trainer(config(list(SCALES)), training_step=of_the_guide)
    with pytest.warns(UserWarning, match="lr_scale"):
        watched.fit(given(), max_epochs=1)
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.allclose(a, b)
    rules = {name: {"lr_scale": scale} for name, scale in SCALES.items()}
    scaled = trainer(config(list(SCALES), per_loader_optimizers=rules))
    scaled.fit(given(), max_epochs=1)
    assert not torch.allclose(next(plain.model.parameters()), next(scaled.model.parameters()))


def test_a_rate_that_stays_is_not_named_and_takes_effect() -> None:
    def halves(trainer: Any, batch: Any, *place: Any) -> Any:
        trainer.optimizers[0].param_groups[0]["lr"] = 0.05
        return step(trainer, batch, *place)

    one = trainer(config(), training_step=halves)
    one.fit(loader(8, 1), max_steps=1)
    assert one.optimizers[0].param_groups[0]["lr"] == 0.05


def test_an_error_in_the_step_and_a_group_that_the_step_adds_leave_the_optimizer_whole() -> None:
    net = model()
    extra = torch.nn.Parameter(torch.ones(1))
    net.register_parameter("extra", extra)

    def adds(trainer: Any, batch: Any, *place: Any) -> Any:
        optimizer = trainer.optimizers[0]
        if len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": [extra], "lr": 0.3})
        raise ValueError("wanted")

    optimizer = torch.optim.SGD([p for n, p in net.named_parameters() if n != "extra"], lr=0.1)
    with pytest.warns(UserWarning, match="belong to no optimizer"):
        one = trainer(config(), model=net, optimizers=optimizer, training_step=adds)
    with pytest.raises(ValueError, match="wanted"):
        one.fit(loader(8, 1), max_steps=1)
    assert [type(group) for group in optimizer.param_groups] == [dict, dict]
    assert optimizer.param_groups[1]["lr"] == 0.3
