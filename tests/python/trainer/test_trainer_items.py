"""Steps that return ``num_samples`` train on the mean over items, and a step may leave a batch out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import config, loader, model, rows, same_weights, trainer

import mtf

SIZES = [4, 1, 3, 7, 2, 5, 6, 4]


def batches(sizes: Sequence[int] = SIZES) -> list[Any]:
    """A list of batches of unequal sizes is a loader, too."""
    x, y = rows(sum(sizes), 1)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def counting(trainer: Any, batch: Any, *place: Any) -> dict[str, Any]:
    x, y = batch
    error = (trainer.model(x) - y) ** 2
    return {"loss": error.mean(), "error": error.mean().detach(), "num_samples": len(x)}


def by_hand(window: int, clip: float | None = None) -> nn.Module:
    """The mean over all rows of each window, as one batch."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    given = batches()
    for start in range(0, len(given), window):
        part = given[start : start + window]
        total = sum(((net(x) - y) ** 2).sum() for x, y in part)
        (total / sum(len(x) for x, _ in part)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return net


def distance(a: nn.Module, b: nn.Module) -> float:
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def fitted(step: Any, window: int = 1, loaders: Any = None, **settings: Any) -> mtf.Trainer:
    net = model()
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=window, **settings)
    run = trainer(
        config(performance=performance),
        model=net,
        optimizers=torch.optim.SGD(net.parameters(), lr=0.1),
        training_step=step,
    )
    run.fit([batches() if loaders is None else loaders], max_epochs=1)
    return run


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_an_update_is_the_mean_over_the_items_of_its_window(window: int, clip: float | None) -> None:
    run = fitted(counting, window, clip_grad_norm=clip)
    assert distance(run.model, by_hand(window, clip=clip)) < 1e-6
    if window > 1:
        plain = fitted(lambda t, b, *p: {"loss": counting(t, b)["loss"]}, window, clip_grad_norm=clip)
        assert distance(plain.model, by_hand(window, clip=clip)) > 1e-3, "a mean of means is something else"


def test_fp16_and_large_counts_agree() -> None:
    def many(t: Any, b: Any, *p: Any) -> dict[str, Any]:
        return {**counting(t, b), "num_samples": 100_000 * len(b[0])}

    net = model()
    run = trainer(
        config(performance=mtf.PerformanceConfig(gradient_accumulation_steps=2, precision="fp16")),
        model=net,
        optimizers=torch.optim.SGD(net.parameters(), lr=0.1),
        training_step=many,
    )
    run._parts.precision.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    run.fit([batches()], max_epochs=1)
    assert distance(run.model, by_hand(2)) < 1e-2
    assert run._parts.precision.scaler.get_scale() == 64.0, "counts of 400,000 overflow nothing"


def test_logged_means_are_over_items() -> None:
    run = trainer(config(), optimizers=(), training_step=counting)
    with pytest.warns(UserWarning, match="no optimizer"):
        run.fit([batches()], max_epochs=1)
    x, y = rows(sum(SIZES), 1)
    expected = ((model()(x) - y) ** 2).mean().item()
    assert run.metrics["train/loss"] == pytest.approx(expected, rel=1e-6)
    assert run.metrics["train/dl0/error"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("way", ["none", "zero"])
@pytest.mark.parametrize("window", [1, 3])
def test_a_batch_left_out_is_not_there(way: str, window: int) -> None:
    def step(t: Any, b: Any, batch_idx: int, *p: Any) -> Any:
        if batch_idx in (0, 4):
            return None if way == "none" else {"loss": torch.tensor(float("nan")), "num_samples": 0}
        return counting(t, b)

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    given = batches()
    for start in range(0, len(given), window):
        part = [b for i, b in enumerate(given[start : start + window], start) if i not in (0, 4)]
        if part:
            total = sum(((net(x) - y) ** 2).sum() for x, y in part)
            (total / sum(len(x) for x, _ in part)).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = fitted(step, window)
    assert distance(run.model, net) < 1e-6
    assert run.num_batches == len(SIZES)


def test_a_batch_left_out_where_nothing_is_counted() -> None:
    def step(t: Any, b: Any, batch_idx: int, *p: Any) -> Any:
        return None if batch_idx == 1 else counting(t, b)["loss"]

    kept = [b for i, b in enumerate(batches(SIZES[:2])) if i != 1]
    assert distance(fitted(step, 2, batches(SIZES[:2])).model, fitted(step, 1, kept).model) < 1e-6


def test_a_step_that_never_returns_a_loss_is_told_so() -> None:
    with pytest.raises(mtf.ConfigError, match=r"loader 'dl0' \(batch 0\).*it returned None, as for each of its 8"):
        fitted(lambda *_: None)
    with pytest.raises(mtf.ConfigError, match="each of its 50"):
        fitted(lambda *_: None, loaders=batches([1] * 100))


@pytest.mark.parametrize(
    ("count", "words"),
    [(-1, "at least 0, it is -1"), ("4", "it is '4'"), (float("inf"), "it is inf"), (None, "for some batches only")],
)
def test_bad_counts_are_refused(count: Any, words: str) -> None:
    def step(t: Any, b: Any, batch_idx: int, *p: Any) -> Any:
        if batch_idx == 2:
            return {"loss": counting(t, b)["loss"], **({} if count is None else {"num_samples": count})}
        return counting(t, b)

    with pytest.raises(mtf.ConfigError, match=words):
        fitted(step)


def test_counting_and_other_steps_share_no_window() -> None:
    def step(t: Any, b: Any, i: int, j: int, name: str) -> Any:
        return counting(t, b) if name == "a" else counting(t, b)["loss"]

    run = trainer(
        config(["a", "b"], performance=mtf.PerformanceConfig(gradient_accumulation_steps=2)), training_step=step
    )
    with pytest.raises(mtf.ConfigError, match="no common mean"):
        run.fit([loader(8, 1), loader(8, 2)])


def test_loss_weights_multiply_as_before() -> None:
    run = fitted(counting, 2)
    weighted = trainer(
        config(loss_weights_per_loader={"dl0": 0.5}, performance=mtf.PerformanceConfig(gradient_accumulation_steps=2)),
        optimizers=torch.optim.SGD((net := model()).parameters(), lr=0.2),
        model=net,
        training_step=counting,
    )
    weighted.fit([batches()], max_epochs=1)
    assert distance(run.model, weighted.model) < 1e-6


def test_a_resume_inside_an_epoch_is_exact() -> None:
    whole = fitted(counting, 2)
    first = fitted_part(2)
    fresh = fitted_part(0)
    fresh.load_state(first.get_state())
    fresh.fit([batches()], max_epochs=1)
    assert fresh.get_state().diff(whole.get_state()) == []
    assert same_weights(fresh.model, whole.model)


def fitted_part(updates: int) -> mtf.Trainer:
    net = model()
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=2)
    run = trainer(
        config(performance=performance),
        model=net,
        optimizers=torch.optim.SGD(net.parameters(), lr=0.1),
        training_step=counting,
    )
    if updates:
        run.fit([batches()], max_steps=updates)
    return run
