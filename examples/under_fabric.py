"""mtf's trainer in the processes and the process group that Lightning Fabric has made.

    pip install lightning && python examples/under_fabric.py --ranks 2

Fabric starts the processes and their process group; mtf uses the group and leaves it alone at the end. The same script
runs on any number of ranks with the same global batches.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

import mtf


def make_loaders() -> dict[str, mtf.ArrayLoader]:
    """Two arrays, drawn in turns; the batch size is that of all ranks together."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    return {
        "all": mtf.ArrayLoader((x, x.sum(1, keepdim=True)), global_batch_size=12, shuffle=True),
        "few": mtf.ArrayLoader((x[:40], x[:40].sum(1, keepdim=True)), global_batch_size=12, shuffle=True),
    }


def step(
    trainer: mtf.Trainer, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> Tensor:
    """Squared error."""
    inputs, targets = batch
    return F.mse_loss(trainer.model(inputs), targets)


def main() -> None:
    """40 updates, saved every 10."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", default="checkpoints/under_fabric")
    arguments = parser.parse_args()

    fabric = Fabric(accelerator="cpu", devices=arguments.ranks, strategy="ddp" if arguments.ranks > 1 else "auto")
    fabric.launch()
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    config = mtf.TrainerConfig(
        checkpoint=mtf.CheckpointConfig(root_dir=arguments.folder, save_every_n_steps=10),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    trainer = mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=0.01), training_step=step)
    trainer.fit(make_loaders(), max_steps=40)
    fabric.barrier()  # the group is still Fabric's
    size = sum(float(p.detach().double().square().sum()) for p in model.parameters()) ** 0.5
    trainer.print(f"{trainer.world_size} rank(s), update {trainer.global_step}: norm of the weights {size:.6f}")


if __name__ == "__main__":
    main()
