"""Activation checkpointing: the same bits, fewer activations, names unchanged, mistakes refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import config, loader, same_weights, trainer

import mtf


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        self.calls += 1
        out: torch.Tensor = x + self.dropout(self.linear(x).tanh()) * scale
        return out


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block(), nn.Identity()])
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, scale=0.5) if isinstance(block, Block) else block(x)
        out: torch.Tensor = self.head(x)
        return out


def fitted(rule: Any, **more: Any) -> Deep:
    net = Deep()
    run = trainer(
        config(performance=mtf.PerformanceConfig(activation_checkpointing=rule, **more)),
        model=net,
        optimizers=torch.optim.Adam(net.parameters(), lr=0.05),
    )
    run.fit([loader(24, 1)], [loader(8, 2)], max_steps=6)
    return net


@pytest.mark.parametrize("rule", [True, ["Block"], lambda name, module: name == "blocks.1"])
def test_it_runs_again_and_changes_no_bit(rule: Any) -> None:
    plain, found = fitted(False), fitted(rule)
    assert same_weights(plain, found)
    blocks: Any = [*found.blocks][:2]
    training = [6 * (1 if callable(rule) and i == 0 else 2) for i in range(2)]
    validation = 2 + 2  # two batches, in the sanity validation and at the end of the epoch
    assert [block.calls for block in blocks] == [n + validation for n in training]
    assert [type(block).__name__ for block in blocks] == ["Block", "Block"]


def test_a_deep_copy_runs_its_own_weights() -> None:
    net = fitted(True)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    x = torch.randn(2, 3)
    assert torch.equal(twin.blocks[0](x), x)
    assert not torch.equal(net.blocks[0].eval()(x), x)


@pytest.mark.parametrize(
    ("net", "rule", "message"),
    [
        (nn.Sequential(nn.Linear(3, 1)), True, "matches no module: True .*classes in the model: Linear"),
        (nn.Sequential(nn.Linear(3, 1)), ["Lin"], r"matches no module: \['Lin'\]"),
        (nn.Sequential(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))), ["Sequential"], "'0' has a BatchNorm1d"),
    ],
)
def test_mistakes_are_refused(net: nn.Module, rule: Any, message: str) -> None:
    settings = config(performance=mtf.PerformanceConfig(activation_checkpointing=rule))
    with pytest.raises(mtf.ConfigError, match=message):
        trainer(settings, model=net, optimizers=torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(mtf.ConfigError, match=r"activation_checkpointing must be True, a list"):
        mtf.PerformanceConfig(activation_checkpointing="Block")  # type: ignore[arg-type]
