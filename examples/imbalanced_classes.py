"""Rare classes: one loader per class, drawn as often as the data have it, then by weights against the imbalance.

    python examples/imbalanced_classes.py

Handwritten digits of which most threes, eights and nines were taken away. With weights by size the model hardly sees
them; with the square root of the sizes it sees them more often, and with equal weights as often as the others. Recall
is measured per class on held-out images, which have all classes in equal parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mtf

CLASSES = [f"digit_{label}" for label in range(10)]
KEPT_OF_RARE = {3: 8, 8: 8, 9: 8}


def make_loaders(training: bool) -> dict[str, mtf.ArrayLoader]:
    """One loader per class."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(images)) % 4 == 0
    loaders = {}
    for label, name in enumerate(CLASSES):
        rows = images[(labels == label) & (held_out != training)]
        if training:
            rows = rows[: KEPT_OF_RARE.get(label)]
        data = {"x": rows, "y": torch.full((len(rows),), label)}
        loaders[name] = mtf.ArrayLoader(data, batch_size=8, shuffle=training)
    return loaders


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy; the share of a class that is recognised is the recall of its loader."""
    logits = trainer.model(batch["x"])
    return {
        "loss": F.cross_entropy(logits, batch["y"]),
        "recall": (logits.argmax(1) == batch["y"]).float().mean(),
    }


def recalls(power: float, steps: int = 300) -> dict[str, float]:
    """Recall per class after training with weights ``size ** power``: 1 as the data are, 0 all equal.

    Eight steps make an update, so that each is over several classes.
    """
    loaders = make_loaders(training=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            weighted_order=mtf.WeightedOrder.SHUFFLED,
            dataloader_weights=[loader.num_rows**power for loader in loaders.values()],
            dataloader_names=CLASSES,
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=8 * steps,
        ),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=8),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    trainer = mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=2e-3), training_step=step)
    trainer.fit(loaders, max_steps=steps)
    row = trainer.validate(make_loaders(training=False))
    return {name: row[f"val/{name}/recall"] for name in CLASSES}


def main() -> None:
    """Trains three times and prints the recalls side by side."""
    powers = {"by size": 1.0, "square root": 0.5, "equal": 0.0}
    found = {title: recalls(power) for title, power in powers.items()}
    sizes = {name: loader.num_rows for name, loader in make_loaders(training=True).items()}
    print(f"{'class':10} {'images':>6}  " + "  ".join(f"{title:>11}" for title in found))
    for name in CLASSES:
        print(f"{name:10} {sizes[name]:6}  " + "  ".join(f"{row[name]:11.2f}" for row in found.values()))
    worst = "  ".join(f"{min(row.values()):11.2f}" for row in found.values())
    mean = "  ".join(f"{sum(row.values()) / len(row):11.2f}" for row in found.values())
    print(f"{'worst':10} {'':6}  {worst}\n{'mean':10} {'':6}  {mean}")


if __name__ == "__main__":
    main()
