"""A curriculum that is written down before the run: the weights follow a curve, and the plan shows it in advance.

    python examples/curriculum_by_curve.py

Handwritten digits at three levels of noise. The curve starts with clean images and ends with noisy ones; it is part of
the configuration, so a resume follows it without any of this script's code.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mtf

NOISE = {"clean": 0.1, "noisy": 0.4, "very_noisy": 0.8}
STEPS_PER_EPOCH = 100


def make_loaders(training: bool) -> dict[str, mtf.ArrayLoader]:
    """One loader per level; a fifth of the images is held out. The noise is made on the way, anew in each pass."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    kept = (torch.arange(len(images)) % 5 != 0) == training

    def loader(noise: float) -> mtf.ArrayLoader:
        def add_noise(batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
            draws = rng.standard_normal(batch["x"].shape, dtype=np.float32)
            return {"x": batch["x"] + noise * torch.from_numpy(draws), "y": batch["y"]}

        data = {"x": images[kept], "y": labels[kept]}
        return mtf.ArrayLoader(data, batch_size=32, shuffle=training, transform=add_noise)

    return {name: loader(noise) for name, noise in NOISE.items()}


def mixture(epochs: int) -> mtf.MultiDataLoaderConfig:
    """From mostly clean to mostly very noisy, in straight lines between three points."""
    end = epochs * STEPS_PER_EPOCH
    return mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        weighted_order=mtf.WeightedOrder.EVEN,
        weight_curve=mtf.WeightCurve(
            points=[
                (0, [0.9, 0.1, 0.0]),
                (end // 3, [0.4, 0.5, 0.1]),
                (2 * end // 3, [0.1, 0.3, 0.6]),
            ],
            interpolation=mtf.Interpolation.LINEAR,
            every=STEPS_PER_EPOCH // 10,
        ),
        dataloader_names=list(NOISE),
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=STEPS_PER_EPOCH,
    )


def planned_shares(epochs: int) -> list[dict[str, float]]:
    """What each epoch will draw, known before a single batch is read."""
    lengths = {name: len(loader) for name, loader in make_loaders(training=True).items()}
    plan = mtf.Schedule(mixture(epochs), lengths=lengths).plan(epochs)
    return [{source.name: source.share for source in epoch.sources} for epoch in plan.epochs]


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy and accuracy."""
    logits = trainer.model(batch["x"])
    return {
        "loss": F.cross_entropy(logits, batch["y"]),
        "accuracy": (logits.argmax(1) == batch["y"]).float().mean(),
    }


def make_trainer(epochs: int) -> mtf.Trainer:
    """A small network; nothing but the configuration knows of the curve."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    config = mtf.TrainerConfig(
        multi=mixture(epochs),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    return mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=1e-3), training_step=step)


def main() -> None:
    """Trains for nine epochs; shows planned shares and accuracies on held-out images, level by level."""
    epochs = 9
    trainer = make_trainer(epochs)
    training, validation = make_loaders(training=True), make_loaders(training=False)
    print(f"{'':7}{'share of the steps':^36}{'accuracy':^36}")
    print("epoch  " + "".join(f"{name:>12}" for name in [*NOISE, *NOISE]))
    for epoch, shares in enumerate(planned_shares(epochs)):
        trainer.fit(training, validation, max_epochs=epoch + 1)
        row = [f"{shares[name]:12.0%}" for name in NOISE]
        row += [f"{trainer.metrics[f'val/{name}/accuracy']:12.3f}" for name in NOISE]
        print(f"{epoch:5}  " + "".join(row))


if __name__ == "__main__":
    main()
