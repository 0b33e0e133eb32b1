"""What ``trainer_checkpoint_v1`` holds, made by ``python tests/golden/make_trainer_checkpoint.py PATH``.

A trainer of format 1 saved it inside its second epoch; every later release must resume from it. Never write it anew.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtf

UPDATES = 11


def loaders() -> dict[str, Any]:
    """Two shuffled loaders of 5 and 3 batches."""
    x = torch.arange(32.0).reshape(-1, 1) / 32
    return {
        name: DataLoader(TensorDataset(x[:rows]), batch_size=4, shuffle=True) for name, rows in (("a", 20), ("b", 12))
    }


def trainer(seen: list[tuple[str, list[float]]]) -> mtf.Trainer:
    """One weight, Adam, and a step that notes each batch in ``seen``."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)

    def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> torch.Tensor:
        seen.append((dataloader_name, batch[0].flatten().tolist()))
        loss: torch.Tensor = trainer.model(batch[0]).square().mean()
        return loss

    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED, dataloader_weights=[0.5, 0.5], dataloader_names=["a", "b"]
        ),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        seed=7,
    )
    return mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=0.125), training_step=step)


if __name__ == "__main__":
    run = trainer([])
    run.fit(loaders(), max_steps=UPDATES)
    run.save_checkpoint(sys.argv[1])
