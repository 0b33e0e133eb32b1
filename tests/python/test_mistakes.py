"""Mistakes that newcomers make: each is refused at once, or pointed out, by its name and with a way out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from trainer_tools import config, loader, model, rows, step, trainer

import mtf
from mtf.data.sources.resolve import as_source


def loaders() -> dict[str, Any]:
    return {"a": loader(8, 1), "b": loader(8, 2)}


class LightningSignature(mtf.TrainerHooks):
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, idx: int) -> None:  # type: ignore[override]
        pass


class LightningName(mtf.TrainerHooks):
    def on_train_epoch_end(self, trainer: Any) -> None:
        pass


class ShortStep(mtf.Trainer):
    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        return step(self, batch, batch_idx, 0, "a")


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: mtf.Trainer(mtf.MultiDataLoaderConfig(), model()), r"config must be a TrainerConfig, it is MultiData"),  # type: ignore[arg-type]
    (lambda: mtf.Trainer({"seed": 1}, model()), "a dict into TrainerConfig.from_dict"),  # type: ignore[arg-type]
    (
        lambda: mtf.TrainerConfig(multi={"burst_size": 2}),
        "multi must be a MultiDataLoaderConfig, got {'burst_size': 2}",
    ),  # type: ignore[arg-type]
    (lambda: config(val_loader_config={}), "val_loader_config must be a MultiDataLoaderConfig, got {}"),
    (lambda: config(loss_weights_per_loader=[1, 2]), r"loss_weights_per_loader must be a dict .* got \[1, 2\]"),
    (lambda: trainer(config(per_loader_optimizers={"a": [0]})), r"per_loader_optimizers\['a'\] must be a dict such as"),
    (lambda: trainer(optimizers=torch.optim.SGD), r"optimizers\[0\] must be an optimizer made with parameters"),
    (lambda: trainer(optimizers=[torch.optim.SGD]), r"optimizers\[0\] must be an optimizer made with parameters"),
    (
        lambda: trainer(training_step=lambda module, batch: None),
        r"training_step is called with \(trainer, batch, .*\), but takes \(module, batch\)",
    ),
    (lambda: trainer(validation_step=lambda batch: None), r"validation_step is called with .* takes \(batch\)"),
    (
        lambda: ShortStep(config(), model()).fit(loaders()),
        r"training_step is called with \(batch, .*takes \(batch, batch_idx\)",
    ),
    (
        lambda: trainer(hooks=[LightningSignature()]),
        r"LightningSignature.on_train_batch_end is called with .* takes \(tr",
    ),
    (lambda: trainer(hooks=[LightningName()]), "on_train_epoch_end is no event; did you mean 'on_epoch_end'"),
    (lambda: trainer().fit(loaders(), resume_from=True), "resume_from must be 'latest' or .* it is True"),  # type: ignore[arg-type]
    (lambda: trainer().fit({0: loader(8, 1)}), "names of dataloaders must be strings, got 0"),
    (lambda: as_source(None, "a"), "but is None"),
    (lambda: as_source({"x": []}, "a"), r"but is \{'x': \[\]\}"),
    (lambda: config(seed="1"), "seed must be an int, it is '1'"),
    (lambda: config(seed=1.5), "seed must be an int, it is 1.5"),
    (lambda: config(experiment_name=None), "experiment_name must be a string, it is None"),
    (lambda: mtf.CheckpointConfig(root_dir=None), "checkpoint.root_dir must be a string, it is None"),  # type: ignore[arg-type]
    (lambda: mtf.CheckpointConfig(save_best="yes"), "checkpoint.save_best must be True or False"),  # type: ignore[arg-type]
    (lambda: mtf.CheckpointConfig(max_checkpoints=True), "checkpoint.max_checkpoints must be an int, it is True"),
    (lambda: mtf.PerformanceConfig(clip_grad_norm="1"), "performance.clip_grad_norm must be a number, it is '1'"),  # type: ignore[arg-type]
    (lambda: mtf.DDPConfig(timeout_s="9"), "ddp.timeout_s must be a number, it is '9'"),  # type: ignore[arg-type]
    (lambda: mtf.MultiDataLoaderConfig(dataloader_names="ab"), "dataloader_names must be a list of names, got 'ab'"),  # type: ignore[arg-type]
    (lambda: mtf.Schedule([3, 3]), r"config must be a MultiDataLoaderConfig, .* but is \[3, 3\]"),  # type: ignore[arg-type]
    (
        lambda: mtf.MultiLoader(loaders(), config()),
        r"config must be a MultiDataLoaderConfig, .* but is TrainerConfig\(",
    ),  # type: ignore[arg-type]
    (lambda: mtf.MultiLoader(loaders()).add_source(loader(8, 1), "c"), "name of a loader must be a string, got <torch"),  # type: ignore[arg-type]
    (
        lambda: as_source(TensorDataset(*rows(4, 1)), "a"),
        r"'a' is a dataset, TensorDataset, .* pass DataLoader\(dataset",
    ),
]


@pytest.mark.parametrize(("mistake", "message"), REFUSED)
def test_is_refused(mistake: Callable[[], Any], message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        mistake()


def test_a_misspelt_public_name_is_recognised() -> None:
    with pytest.raises(
        AttributeError, match="no attribute 'MultiDataloaderConfig'; did you mean 'MultiDataLoaderConfig'"
    ):
        _ = mtf.MultiDataloaderConfig


def test_kinds_that_are_as_good_are_taken(tmp_path: Path) -> None:
    assert mtf.CheckpointConfig(root_dir=tmp_path).root_dir == tmp_path  # type: ignore[arg-type]
    assert mtf.PerformanceConfig(clip_grad_norm=1).clip_grad_norm == 1
    assert mtf.TrainerConfig(seed=np.int64(3)).seed == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("multi", "burst_sise", "MultiDataLoaderConfig has no field 'burst_sise'; did you mean 'burst_size'"),
        ("checkpoint", "save_every", "CheckpointConfig has no field 'save_every'; did you mean 'save_every_n_steps'"),
        ("ddp", "strategi", "DDPConfig has no field 'strategi'; did you mean 'strategy'"),
    ],
)
def test_a_misspelt_assignment_is_refused(part: str, name: str, message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        setattr(getattr(mtf.TrainerConfig(), part), name, 1)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("performance", "gradient_accumulation_steps", 0),
        ("performance", "precision", "bf17"),
        ("checkpoint", "save_every_n_steps", 0),
        ("validation", "frequency", "every_n_stepps"),
        ("ddp", "strategy", "dpp"),
    ],
)
@pytest.mark.parametrize("is_made", [False, True])
def test_what_is_assigned_later_is_checked_as_well(part: str, name: str, value: Any, is_made: bool) -> None:
    settings = config()
    made = trainer(settings) if is_made else None
    setattr(getattr(settings, part), name, value)
    with pytest.raises(mtf.ConfigError, match=rf"{part}\.{name} must be "):
        (made or trainer(settings)).fit(loaders(), max_steps=1)


def test_a_choice_may_be_assigned_by_its_name() -> None:
    settings = config()
    settings.validation.every_n_steps = 1
    settings.validation.frequency = "every_n_steps"  # type: ignore[assignment]
    run = trainer(settings)
    run.fit(loaders(), loaders(), max_steps=1)
    assert "val/loss" in run.metrics


def test_a_metric_that_no_validation_gives_cannot_choose_the_best(tmp_path: Path) -> None:
    checkpoint = mtf.CheckpointConfig(root_dir=str(tmp_path), save_best=True, monitor_metric="val_loss")
    with pytest.raises(mtf.ConfigError, match="the validation gives no 'val_loss'; did you mean 'val/loss'"):
        trainer(config(checkpoint=checkpoint)).fit(loaders(), loaders(), max_epochs=1)
    with pytest.warns(UserWarning, match="save_best has no effect without validation: pass val_loaders"):
        trainer(config(checkpoint=checkpoint)).fit(loaders(), max_epochs=1)
    checkpoint = mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_epochs=1, monitor_metric="val_loss")
    with pytest.warns(UserWarning, match="no metric 'val_loss' so far; did you mean 'val/loss'") as seen:
        trainer(config(checkpoint=checkpoint)).fit(loaders(), loaders(), max_epochs=2)
    assert len(seen) == 1


def test_a_run_without_an_optimizer_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match="there is no optimizer, so fit changes no parameter"):
        trainer(optimizers=[]).fit(loaders(), max_steps=1)
