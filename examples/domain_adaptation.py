"""Three domains in turns, and a head that tells them apart, whose gradients the encoder follows backwards.

One process:    python examples/domain_adaptation.py
Several ranks:  torchrun --nproc-per-node 2 examples/domain_adaptation.py --strategy fsdp

The same script, and the same global batches: 24 samples per update, whatever the number of ranks.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtf

DOMAINS = ["source_domain", "target_domain", "augmented"]


class DomainAdversarial(nn.Module):
    """An encoder, a head for the task and a head for the domain; the training step calls the parts themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.Tanh())
        self.task_head = nn.Linear(32, 4)
        self.domain_head = nn.Linear(32, len(DOMAINS))


def domain_data(seed: int, shift: float, num: int = 240) -> dict[str, Tensor]:
    """Four classes of points, moved by ``shift``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (num,), generator=generator)
    centres = 2 * torch.eye(4, 16)
    return {"x": centres[labels] + shift + 0.5 * torch.randn(num, 16, generator=generator), "y": labels}


def make_loaders() -> dict[str, mtf.ArrayLoader]:
    """One loader per domain; the last global batch of a pass is a short one."""
    sizes = {"source_domain": 240, "target_domain": 100, "augmented": 50}
    return {
        name: mtf.ArrayLoader(domain_data(seed, 0.3 * seed, sizes[name]), global_batch_size=24, shuffle=True)
        for seed, name in enumerate(DOMAINS)
    }


def domain_loss(model: DomainAdversarial, batch: dict[str, Tensor], domain: int, adversarial: float) -> Tensor:
    """The task's loss, minus what helps to tell the domains apart."""
    features = model.encoder(batch["x"])
    task = F.cross_entropy(model.task_head(features), batch["y"])
    labels = torch.full_like(batch["y"], domain)
    return task - adversarial * F.cross_entropy(model.domain_head(features), labels)


def training_step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Any]:
    """The guide's signature; the parts of the bare model are called, on several ranks as well."""
    loss = domain_loss(trainer.model, batch, dataloader_idx, trainer.config.adversarial)
    return {"loss": loss, f"{dataloader_name}_loss": loss}


def make_trainer(strategy: str = "ddp", **settings: Any) -> mtf.Trainer:
    """The same weights in every process."""
    torch.manual_seed(0)
    model = DomainAdversarial()
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.ROUND_ROBIN, dataloader_names=DOMAINS, cycle_short_loaders=True
        ),
        ddp=mtf.DDPConfig(strategy=strategy),
        extras={"adversarial": 0.1},
        **settings,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return mtf.Trainer(config, model, optimizer, training_step=training_step)


def main() -> None:
    """Trains for two epochs and validates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp")
    arguments = parser.parse_args()
    trainer = make_trainer(arguments.strategy, logging=mtf.LoggingConfig(progress_bar=False))
    trainer.fit(make_loaders(), max_epochs=2)
    row = trainer.validate({name: mtf.ArrayLoader(domain_data(10 + i, 0.3 * i), 60) for i, name in enumerate(DOMAINS)})
    trainer.print(f"{trainer.world_size} ranks, {trainer.global_step} updates:", row)


if __name__ == "__main__":
    main()
