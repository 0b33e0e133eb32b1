"""mtf's mixture in a loop of Hugging Face accelerate, saved and resumed in the middle of an epoch.

    pip install accelerate && python examples/under_accelerate.py

The mixture isn't prepared by accelerate: it knows its ranks and its position itself. `register_for_checkpointing` makes
`save_state` and `load_state` carry it.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

import mtf


def make_batches(accelerator: Accelerator) -> mtf.MultiLoader:
    """Two arrays, drawn two to one."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    loaders = {
        "all": mtf.ArrayLoader((x, x.sum(1, keepdim=True)), batch_size=10, shuffle=True),
        "few": mtf.ArrayLoader((x[:40], x[:40].sum(1, keepdim=True)), batch_size=10, shuffle=True),
    }
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.ALTERNATING,
        alternating_pattern=[0, 0, 1],
        dataloader_names=list(loaders),
    )
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    return mtf.MultiLoader(loaders, config, seed=1, device=accelerator.device, **ranks)


def run(num_steps: int, save_to: str | None = None, load_from: str | None = None) -> dict[str, torch.Tensor]:
    """Trains until step ``num_steps`` of the epoch; returns the weights."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    prepared: Any = accelerator.prepare(module, torch.optim.Adam(module.parameters(), lr=0.01))
    model, optimizer = prepared
    with make_batches(accelerator) as batches:
        accelerator.register_for_checkpointing(batches)
        if load_from is not None:
            accelerator.load_state(load_from)
        for batch in batches:
            inputs, targets = batch.data
            optimizer.zero_grad()
            accelerator.backward(F.mse_loss(model(inputs), targets))
            optimizer.step()
            if batch.step + 1 == num_steps:
                break
        if save_to is not None:
            accelerator.save_state(save_to)
    accelerator.free_memory()
    return accelerator.unwrap_model(model).state_dict()


def main() -> None:
    """30 steps in one go, and 12 steps, a checkpoint, and the rest."""
    whole = run(30)
    with tempfile.TemporaryDirectory() as folder:
        run(12, save_to=folder)
        resumed = run(30, load_from=folder)
    print("the same bits:", all(torch.equal(whole[name], resumed[name]) for name in whole))


if __name__ == "__main__":
    main()
