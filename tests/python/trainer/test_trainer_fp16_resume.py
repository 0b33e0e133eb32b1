"""Mixed precision over a resume: the scaler's scale and its count of good windows go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_tools import config, loader, model, step, trainer

import mtf


def make(precision: Any) -> mtf.Trainer:
    net = model(dropout=0.2)
    return trainer(
        config(["a", "b"], performance=mtf.PerformanceConfig(precision=precision, gradient_accumulation_steps=2)),
        model=net,
        optimizers=torch.optim.Adam(net.parameters(), lr=0.01),
        training_step=sometimes_huge,
    )


def sometimes_huge(trainer: Any, batch: Any, *place: Any) -> Tensor:
    """In step 4 gradients overflow in fp16, so its window is skipped and the scale halved."""
    loss = step(trainer, batch, *place)["loss"]
    return loss * (1e36 if trainer.num_batches == 4 else 1.0)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_run_in_parts_is_the_same(precision: Any, cut: int) -> None:
    loaders = [loader(24, 1, shuffle=True), loader(24, 2)]
    whole = make(precision)
    whole.fit(loaders, max_steps=7)
    part, rest = make(precision), make(precision)
    part.fit(loaders, max_steps=cut)
    rest.load_state(part.get_state())
    rest.fit(loaders, max_steps=7)
    assert rest.get_state().diff(whole.get_state()) == []
    if precision == "fp16":
        assert whole._parts.precision.scaler is not None
        assert whole._parts.precision.scaler.get_scale() < 2.0**16, "it was halved"
