"""A plan of batches warns of shares of rows that aren't those of batches, and of short windows under loss weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mtf


def loader(kind: str, rows: int, batch_size: int, *, drop_last: bool = False) -> Any:
    if kind == "array":
        return mtf.ArrayLoader(torch.zeros(rows), batch_size, shuffle=True, drop_last=drop_last)
    if kind == "torch":
        return DataLoader(TensorDataset(torch.zeros(rows)), batch_size, shuffle=True, drop_last=drop_last)
    return mtf.Blend({"x": torch.zeros(rows)}, global_batch_size=batch_size)


def plan(loaders: dict[str, Any], weights: list[float] | None = None, steps: int = 100, **options: Any) -> Any:
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy="WEIGHTED",
        weighted_order="EVEN",
        dataloader_weights=weights,
        epoch_length_policy="FIXED_NUM_STEPS",
        steps_per_epoch=steps,
    )
    with mtf.MultiLoader(loaders, config) as multi:
        return multi.plan(**options)


@pytest.mark.parametrize("kind", ["array", "torch"])
def test_the_share_of_rows_of_a_short_source_is_seen(kind: str) -> None:
    """The corpus of 243 rows among batches of 1,024."""
    found = plan({"big": loader(kind, 10_240, 1024), "small": loader(kind, 243, 1024)}, [0.9, 0.1], 1000)
    (warning,) = found.warnings
    assert warning.startswith("epoch 0: 'small' gives 10.0 % of the batches and 2.6 % of the rows")
    assert "243.0 rows on average, those of 'big' 1,024.0" in warning


@pytest.mark.parametrize("kind", ["array", "torch"])
def test_a_pass_is_counted_with_its_last_batch(kind: str) -> None:
    # 10 and 1 rows: 5.5 on average
    assert "5.5 rows" in plan({"a": loader(kind, 11, 10), "b": loader(kind, 100, 10)}).warnings[0]
    assert plan({"a": loader(kind, 11, 10, drop_last=True), "b": loader(kind, 100, 10)}).warnings == []
    assert plan({"a": loader(kind, 109, 10), "b": loader(kind, 100, 10)}).warnings == []  # 9.9 on average


def test_a_blend_has_no_short_batch_and_unknown_sizes_say_nothing() -> None:
    assert plan({"a": loader("blend", 11, 10), "b": loader("array", 100, 10)}).warnings == []
    assert "'a' gives 50.0 %" in plan({"a": loader("blend", 11, 5), "b": loader("array", 100, 10)}).warnings[0]
    unknown = [[torch.zeros(2)], [torch.zeros(2)]]
    assert not any("of the rows" in w for w in plan({"a": unknown, "b": loader("array", 100, 10)}).warnings)


def alternating(steps: int) -> mtf.MultiDataLoaderConfig:
    """A batch of each of three loaders in turn: with windows of three, what a CombinedLoader does."""
    return mtf.MultiDataLoaderConfig(
        sampling_strategy="ROUND_ROBIN",
        dataloader_names=["a", "b", "c"],
        epoch_length_policy="FIXED_NUM_STEPS",
        steps_per_epoch=steps,
    )


def test_a_short_last_window_under_loss_weights_is_seen_in_the_plan() -> None:
    loaders = {name: loader("array", 100, 10) for name in "abc"}
    weights = {"a": 0.5, "b": 1.0, "c": 2.0}
    with mtf.MultiLoader(loaders, alternating(31)) as multi:
        (warning,) = multi.plan(gradient_accumulation_steps=3, loss_weights=weights).warnings
        assert "the last accumulation window has 1 of 3 batches ('a')" in warning
        assert "counts 3 times as much" in warning
        assert multi.plan(gradient_accumulation_steps=3).warnings == []
        assert multi.plan(gradient_accumulation_steps=31, loss_weights=weights).warnings == []
        assert multi.plan(loss_weights=weights).warnings == []
    with mtf.MultiLoader(loaders, alternating(32)) as multi:
        (warning,) = multi.plan(gradient_accumulation_steps=3, loss_weights=weights).warnings
        assert "has 2 of 3 batches ('a', 'b')" in warning
        assert "counts 1.5 times" in warning


@pytest.mark.parametrize(("steps", "is_short"), [(7, True), (6, False)])
def test_fit_says_it_before_the_first_batch(steps: int, is_short: bool) -> None:
    model = torch.nn.Linear(1, 1)
    said: list[bool] = []

    def step(trainer: Any, batch: Any, *where: Any) -> torch.Tensor:
        said.append(any("the last accumulation window has 1 of 3 batches ('a')" in str(w.message) for w in caught))
        return model(batch[:, None]).square().mean()

    config = mtf.TrainerConfig(
        multi=alternating(steps),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=3),
        loss_weights_per_loader={"a": 0.5, "b": 1.0, "c": 2.0},
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    trainer = mtf.Trainer(config, model, torch.optim.SGD(model.parameters(), lr=0.1), training_step=step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit({name: loader("array", 100, 10) for name in "abc"}, max_epochs=1)
    assert said == [is_short] * steps
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name] * is_short
    assert bool(trainer.multi_loader_manager.plan().warnings) is is_short
