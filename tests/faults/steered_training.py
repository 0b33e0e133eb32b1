"""A run with spikes, rollbacks and left out updates that kills itself where it is told to: FOLDER UPDATE [TIME].

Killed before the TIME-th update of number UPDATE, or never (UPDATE -1). Prints the state at its end as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtf

SPIKES = (17, 26, 33)
BATCH = 4


class Kill(mtf.TrainerHooks):
    """kill -9 before an update."""

    def __init__(self, update: int, time: int) -> None:
        self.update, self.left = update, time

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.left -= trainer.global_step == self.update
        if trainer.global_step == self.update and not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, update: int, time: int = 1) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 3)
    y = x.sum(1, keepdim=True) + torch.randn(400, 1)
    for spike in SPIKES:
        y[spike * BATCH : (spike + 1) * BATCH] += 1e4
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.1), nn.Linear(5, 1))

    def step(trainer: Any, batch: Any, *_: Any) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    guard = mtf.SpikeGuard(sigma=1000, window=8, action="rollback", max_rollbacks=9)
    config = mtf.TrainerConfig(
        checkpoint=mtf.CheckpointConfig(root_dir=folder, save_every_n_steps=10),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    trainer = mtf.Trainer(config, model, optimizer, training_step=step, hooks=[guard, Kill(update, time)])
    trainer.fit(DataLoader(TensorDataset(x, y), BATCH), max_steps=60, skip=[(4, 6), (43, 45)])
    weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
    print(json.dumps({"weights": weights, "guard": guard.state_dict(), "batches": trainer.num_batches}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
