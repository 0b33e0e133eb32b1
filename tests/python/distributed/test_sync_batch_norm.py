"""Batch normalisation of all ranks: what is replaced, and what is refused. That it runs only a GPU can show."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mtf
from mtf.distributed.sync_batch_norm import synchronise_batch_norm


def test_each_is_replaced_in_place_with_its_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4)), nn.BatchNorm2d(4))
    parameters, keys = list(net.parameters()), list(net.state_dict())
    assert synchronise_batch_norm(net, "cuda") == 2
    assert [type(module).__name__ for module in net.modules() if "Norm" in type(module).__name__] == [
        "SyncBatchNorm"
    ] * 2
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True)), "optimizers hold these"
    assert list(net.state_dict()) == keys
    assert torch.equal(net[2].running_var, torch.ones(4))


@pytest.mark.parametrize(
    ("net", "device", "message"),
    [
        (nn.Sequential(nn.BatchNorm1d(4)), "cpu", "sync_batch_norm needs GPUs"),
        (nn.Linear(3, 4), "cuda", "no effect, because the model has no batch normalisation"),
        (nn.BatchNorm1d(4), "cuda", "the model itself is a batch normalisation"),
    ],
)
def test_mistakes_are_refused(net: nn.Module, device: str, message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        synchronise_batch_norm(net, device)
