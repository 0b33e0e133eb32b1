"""Clipping by value and per optimizer, against a loop written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import Trace, config, loader, model, same_weights, trainer

import mtf


def two_optimizers(net: nn.Sequential) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(net[0].parameters(), lr=0.3), torch.optim.SGD(net[3].parameters(), lr=0.1)]


class Norms(mtf.TrainerHooks):
    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_gradient_clip(self, trainer: Any, grad_norm: Any) -> None:
        self.norms.append(float(grad_norm))


@pytest.mark.parametrize("norm", [None, 0.2, [0.1, 0.3], [None, 0.05]])
@pytest.mark.parametrize("value", [None, 0.04])
def test_gradients_are_clipped_as_by_hand(norm: Any, value: float | None) -> None:
    net, trace, norms = model(), Trace(), Norms()
    performance = mtf.PerformanceConfig(clip_grad_norm=norm, clip_grad_value=value)
    run = trainer(config(performance=performance), model=net, optimizers=two_optimizers(net), hooks=[trace, norms])
    run.fit([loader(40, 1)], max_epochs=1)
    other, expected = model(), []
    optimizers = two_optimizers(other)
    for _, (x, y) in trace.batches:
        nn.functional.mse_loss(other(x), y).backward()
        if value is not None:
            nn.utils.clip_grad_value_(other.parameters(), value)
        if isinstance(norm, list):
            for part, limit in zip((other[0], other[3]), norm, strict=True):
                if limit is not None:
                    expected.append(float(nn.utils.clip_grad_norm_(part.parameters(), limit)))
        elif norm is not None:
            expected.append(float(nn.utils.clip_grad_norm_(other.parameters(), norm)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert same_weights(net, other)
    assert norms.norms == expected


def test_there_is_one_norm_for_each_optimizer() -> None:
    with pytest.raises(mtf.ConfigError, match=r"one norm, or None, for each of the 1 optimizers"):
        trainer(config(performance=mtf.PerformanceConfig(clip_grad_norm=[1.0, 2.0])))
    for wrong in ("1", [1.0, "a"], [-1.0], True):
        with pytest.raises(mtf.ConfigError, match=r"clip_grad_norm must be"):
            mtf.PerformanceConfig(clip_grad_norm=wrong)  # type: ignore[arg-type]
    with pytest.raises(mtf.ConfigError, match=r"clip_grad_value must be positive"):
        mtf.PerformanceConfig(clip_grad_value=0.0)
