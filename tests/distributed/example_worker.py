"""The demonstration and the domain adaptation example on any number of ranks."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import mtf
from distributed import models

WORLD = int(os.environ["WORLD_SIZE"])
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES / "demo"), str(EXAMPLES)]


class Rows(mtf.TrainerHooks):
    """A hash of each sample of each step, in order."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def on_train_batch_start(self, trainer: Any, batch: Any, batch_idx: int, loader: int, name: str) -> None:
        self.steps.append([name, *(models.digest(row.tolist()) for row in batch[0])])


def demo() -> dict[str, Any]:
    """Sixty updates of the demonstration; without dropout, whose noise belongs to a rank's own samples."""
    module: Any = importlib.import_module("demo")
    rows = Rows()
    trainer = module.make_trainer(1, [rows])
    for part in trainer.model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    loaders = {}
    for task in module.load_tasks():
        whole = task.train
        loaders[task.name] = torch.utils.data.DataLoader(
            whole.dataset, batch_size=whole.batch_size // WORLD, shuffle=True
        )
    trainer.fit(loaders, max_steps=60)
    parts: list[Any] = [None] * WORLD
    dist.all_gather_object(parts, rows.steps)
    # A pass's last batch may be too short for all ranks: a repeated sample counts once.
    batches = [list(dict.fromkeys(h for part in same for h in part)) for same in zip(*parts, strict=True)]
    weights = {n: v.flatten().tolist() for n, v in models.whole_weights(trainer.model).items()}
    return {"batches": models.digest(batches), "weights": weights, "num": len(batches)}


class Gradients(mtf.TrainerHooks):
    """Gradients of every update, gathered where they are sharded."""

    def __init__(self) -> None:
        self.updates: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
        grads = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        self.updates.append(
            {n: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for n, g in grads.items()}
        )


def domain(strategy: str) -> dict[str, Any]:
    """Largest difference of any gradient from a loop written by hand, over 18 updates."""
    module: Any = importlib.import_module("domain_adaptation")
    gradients = Gradients()
    trainer = module.make_trainer(strategy, logging=mtf.LoggingConfig(logger_type="none", progress_bar=False))
    trainer.add_hook(gradients)
    trainer.fit(module.make_loaders(), max_steps=18)

    torch.manual_seed(0)
    model = module.DomainAdversarial()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    largest = 0.0
    with mtf.MultiLoader(module.make_loaders(), trainer.config.multi, seed=0) as multi:
        batches = [*multi, *multi][:18]
    for batch, found in zip(batches, gradients.updates, strict=True):
        optimizer.zero_grad()
        module.domain_loss(model, batch.data, batch.source, 0.1).backward()
        for name, p in model.named_parameters():
            largest = max(largest, float((p.grad - found[name]).abs().max()))
        optimizer.step()
    return {"updates": len(gradients.updates), "difference": largest}


if __name__ == "__main__":
    cases = {"demo": demo, "ddp": lambda: domain("ddp"), "fsdp": lambda: domain("fsdp")}
    Path(os.environ["RESULT"]).write_text(json.dumps({name: cases[name]() for name in sys.argv[1:]}))
