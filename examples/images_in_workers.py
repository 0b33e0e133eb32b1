"""Digits with random shifts and noise, made in worker processes: the same run for 0, 2 or 4 workers.

    python examples/images_in_workers.py --workers 2

Two loaders show the same images, plain and augmented. Each batch is produced under random generators seeded from its
position, so the augmentation depends neither on the number of workers nor on interruptions.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import mtf


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images ``[1, 8, 8]``, moved by up to a pixel, with noise."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        shifts = (random.randint(-1, 1), random.randint(-1, 1))
        image = torch.roll(self.images[index], shifts, dims=(1, 2))
        return image + 0.05 * torch.randn_like(image), self.labels[index]


def make_loaders(num_workers: int) -> tuple[dict[str, DataLoader[Any]], DataLoader[Any]]:
    """Training loaders by name, and one for validation."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out, kept = slice(None, None, 5), torch.arange(len(images)) % 5 != 0
    training = {
        "plain": DataLoader(TensorDataset(images[kept], labels[kept]), batch_size=32, shuffle=True),
        "augmented": DataLoader(
            Augmented(images[kept], labels[kept]),
            batch_size=32,
            shuffle=True,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        ),
    }
    return training, DataLoader(TensorDataset(images[held_out], labels[held_out]), batch_size=64)


def step(
    trainer: mtf.Trainer, batch: list[Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy and accuracy."""
    images, labels = batch
    logits = trainer.model(images)
    return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(1) == labels).float().mean()}


def train(num_workers: int, steps: int = 300) -> mtf.Trainer:
    """Trains for ``steps`` updates."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 10)
    )
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.ALTERNATING,
            alternating_pattern=[0, 1, 1],
            dataloader_names=["plain", "augmented"],
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=steps,
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trainer = mtf.Trainer(config, model, optimizer, training_step=step)
    training, validation = make_loaders(num_workers)
    trainer.fit(training, {"held_out": validation}, max_steps=steps)
    return trainer


def main() -> None:
    """Trains and prints the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    trainer = train(arguments.workers, arguments.steps)
    print(f"accuracy on held-out digits: {trainer.metrics['val/accuracy']:.3f}")


if __name__ == "__main__":
    main()
