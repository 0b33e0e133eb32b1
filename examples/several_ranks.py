"""The same run on any number of ranks, stopped on some and resumed on others.

    torchrun --nproc-per-node 2 examples/several_ranks.py --steps 60
    torchrun --nproc-per-node 3 examples/several_ranks.py --steps 120
    python examples/several_ranks.py --steps 180

Each command resumes from the checkpoint in ``--folder``, where the one before it stopped. The batch size is that
of all ranks together, so every number of ranks trains on the same global batches, and the weights agree up to the
order in which floating-point sums are taken.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mtf


def make_loaders(training: bool) -> dict[str, mtf.ArrayLoader]:
    """Images of small and of large digits; a fifth of them is held out."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    kept = (torch.arange(len(images)) % 5 != 0) == training
    parts = {"zero_to_four": kept & (labels < 5), "five_to_nine": kept & (labels >= 5)}
    return {
        name: mtf.ArrayLoader({"x": images[part], "y": labels[part]}, global_batch_size=24, shuffle=training)
        for name, part in parts.items()
    }


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy and accuracy over this rank's part of the global batch."""
    logits = trainer.model(batch["x"])
    return {
        "loss": F.cross_entropy(logits, batch["y"]),
        "accuracy": (logits.argmax(1) == batch["y"]).float().mean(),
    }


def make_trainer(folder: str) -> mtf.Trainer:
    """Saves every 20 updates and resumes from there; under torchrun it makes the process group itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.ROUND_ROBIN, dataloader_names=["zero_to_four", "five_to_nine"]
        ),
        checkpoint=mtf.CheckpointConfig(root_dir=folder, save_every_n_steps=20),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    return mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=2e-3), training_step=step)


def main() -> None:
    """Trains until update ``--steps``, wherever the last command stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="updates since the beginning of training")
    parser.add_argument("--folder", default="checkpoints/several_ranks")
    arguments = parser.parse_args()

    trainer = make_trainer(arguments.folder)
    trainer.fit(make_loaders(training=True), max_steps=arguments.steps)
    row = trainer.validate(make_loaders(training=False))
    size = sum(float(p.detach().double().square().sum()) for p in trainer.model.parameters()) ** 0.5
    trainer.print(
        f"{trainer.world_size} rank(s), update {trainer.global_step}: "
        f"accuracy {row['val/accuracy']:.3f}, norm of the weights {size:.6f}"
    )


if __name__ == "__main__":
    main()
