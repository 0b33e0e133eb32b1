"""Two tasks on one encoder, each with an optimizer for its own head: a classification and a regression.

    python examples/multi_task.py

The images are handwritten digits. One loader asks which digit it is, the other where the ink's centre lies. A head's
optimizer steps only in updates of its own loader, the encoder's in all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mtf

TASKS = ["classification", "regression"]


class MultiTaskModel(nn.Module):
    """A shared encoder and one head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.heads = nn.ModuleDict({"classification": nn.Linear(128, 10), "regression": nn.Linear(128, 2)})

    def forward(self, images: Tensor, task: str) -> Tensor:
        """Images ``[batch, 64]`` to logits ``[batch, 10]`` or a centre ``[batch, 2]``."""
        return self.heads[task](self.encoder(images))


def make_loaders(training: bool) -> dict[str, DataLoader[tuple[Tensor, ...]]]:
    """One loader per task over the same images; a fifth of them is held out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    places = torch.linspace(-1, 1, 8)
    ink = images.sum((1, 2))
    centres = torch.stack([(images.sum(2) @ places) / ink, (images.sum(1) @ places) / ink], dim=1)
    kept = (torch.arange(len(images)) % 5 != 0) == training
    inputs = images[kept].flatten(1)
    targets = {"classification": torch.tensor(digits.target)[kept], "regression": centres[kept]}
    return {name: DataLoader(TensorDataset(inputs, targets[name]), batch_size=32, shuffle=training) for name in TASKS}


def step(
    trainer: mtf.Trainer, batch: list[Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """The loss of the batch's task; the loader's name says which task that is."""
    inputs, targets = batch
    output = trainer.model(inputs, task=dataloader_name)
    if dataloader_name == "classification":
        return {
            "loss": F.cross_entropy(output, targets),
            "accuracy": (output.argmax(1) == targets).float().mean(),
        }
    return {"loss": F.mse_loss(output, targets), "distance": (output - targets).norm(dim=1).mean()}


def make_trainer() -> mtf.Trainer:
    """Three optimizers; ``per_loader_optimizers`` says which of them step for which loader."""
    torch.manual_seed(0)
    model = MultiTaskModel()
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(model.heads["classification"].parameters(), lr=1e-3),
        torch.optim.SGD(model.heads["regression"].parameters(), lr=0.01, momentum=0.9),
        torch.optim.Adam(model.encoder.parameters(), lr=5e-4),
    ]
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            weighted_order=mtf.WeightedOrder.EVEN,
            dataloader_weights=[0.6, 0.4],
            dataloader_names=TASKS,
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=100,
        ),
        per_loader_optimizers={
            "classification": {"optimizer_idx": [0, 2]},
            "regression": {"optimizer_idx": [1, 2]},
        },
        loss_weights_per_loader={"regression": 5.0},
        validation=mtf.ValidationConfig(
            aggregation=mtf.ValAggregation.PRIMARY_METRIC_PER_LOADER,
            primary_metrics={"classification": "accuracy", "regression": "distance"},
        ),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    return mtf.Trainer(config, model, optimizers, training_step=step)


def main() -> None:
    """Trains for ten epochs of 100 steps and shows both tasks on held-out images."""
    trainer = make_trainer()
    trainer.fit(make_loaders(training=True), make_loaders(training=False), max_epochs=10)
    row, pixels = trainer.metrics, 3.5  # per unit: eight pixels lie between -1 and 1
    print(f"which digit:       {row['val/classification/accuracy']:.1%} right")
    print(f"centre of the ink: {pixels * row['val/regression/distance']:.2f} pixels off")


if __name__ == "__main__":
    main()
