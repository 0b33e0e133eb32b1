"""The number of updates of a run is the one that fit makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainer_tools import config, loader, trainer

import mtf

TWO = {"a": 20, "b": 52}


def loaders() -> dict[str, Any]:
    return {name: loader(num, i, shuffle=True) for i, (name, num) in enumerate(TWO.items())}


@pytest.mark.parametrize("steps", [1, 3, {0: 1, 1: 4}, {0: 2, 5: 3, 9: 1}])
@pytest.mark.parametrize("by", ["epoch", "update"])
@pytest.mark.parametrize(
    "multi",
    [
        {},
        {"sampling_strategy": "weighted", "dataloader_weights": {"a": 3, "b": 1}},
        {"epoch_length_policy": "fixed_num_steps", "steps_per_epoch": 11},
        {"epoch_length_policy": "max_of_lengths", "drop_last": True},
    ],
)
@pytest.mark.parametrize("limits", [{}, {"max_epochs": 3}, {"max_epochs": 3, "max_steps": 13}, {"max_steps": 7}])
def test_it_is_the_number_that_fit_makes(steps: Any, by: Any, multi: Any, limits: Any) -> None:
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=steps, accumulate_by=by)
    names = {"dataloader_names": ["a", "b"]} if "dataloader_weights" not in multi else {}
    settings = config(performance=performance, multi=mtf.MultiDataLoaderConfig(**names, **multi))
    given = loaders()
    expected = mtf.total_updates(settings, given, **limits)
    run = trainer(settings)
    run.fit(given, **limits)
    assert run.global_step == expected
    again = trainer(settings)
    again.fit(loaders(), **limits)
    assert again.get_state() == run.get_state(), "counting changes nothing"


def test_a_warm_up_and_cosine_ends_where_the_run_ends() -> None:
    settings, given = config(["a", "b"]), loaders()
    run = trainer(settings)
    optimizer = run.optimizers[0]
    total = mtf.total_updates(settings, given, max_epochs=2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    run = trainer(
        settings, model=run.model, optimizers=optimizer, schedulers=[{"scheduler": scheduler, "interval": "step"}]
    )
    run.fit(given, max_epochs=2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_what_cannot_be_known_is_an_error() -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(mtf.ConfigError, match=r"needs the length of dataloader 'dl0'"):
        mtf.total_updates(config(), [Endless()], max_epochs=1)
    open_ended = config(multi=mtf.MultiDataLoaderConfig(cycle_short_loaders=False))
    with pytest.raises(mtf.ConfigError, match=r"shows only when its loaders end: give max_steps"):
        mtf.total_updates(open_ended, [Endless()], max_epochs=1)
    assert mtf.total_updates(config(), [Endless()], max_steps=5) == 5
    with pytest.raises(mtf.ConfigError, match=r"max_epochs must be an int of at least 0"):
        mtf.total_updates(config(), loaders(), max_epochs=-1)
