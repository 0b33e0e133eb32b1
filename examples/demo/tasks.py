"""Three real data sets that scikit-learn ships, and one model for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Task:
    """One data set as a task.

    Attributes:
        name: Name of the source.
        train: Batches to learn from, shuffled.
        validation: A fifth of the data, held out, in order.
        num_inputs: Features per row.
        num_outputs: Classes, or 1 for a regression.
    """

    name: str
    train: DataLoader[tuple[Tensor, ...]]
    validation: DataLoader[tuple[Tensor, ...]]
    num_inputs: int
    num_outputs: int


def load_tasks() -> list[Task]:
    """Digits and breast cancer as classifications, diabetes as a regression: 1,797, 569 and 442 rows."""
    return [
        _task("digits", datasets.load_digits(), batch_size=32, num_classes=10),
        _task("diabetes", datasets.load_diabetes(), batch_size=16, num_classes=0),
        _task("cancer", datasets.load_breast_cancer(), batch_size=24, num_classes=2),
    ]


def _task(name: str, data: datasets._base.Bunch, batch_size: int, num_classes: int) -> Task:
    x = torch.tensor(data.data, dtype=torch.float32)
    y = torch.tensor(data.target, dtype=torch.int64 if num_classes else torch.float32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, kept = order[: len(x) // 5], order[len(x) // 5 :]
    mean, std = x[kept].mean(0), x[kept].std(0)
    # A pixel that is always blank has no spread to divide by; one that nearly always is must not grow out of bounds.
    x = ((x - mean) / torch.where(std > 0, std, 1.0)).clamp(-5, 5)
    if not num_classes:
        y = ((y - y[kept].mean()) / y[kept].std()).unsqueeze(1)
    return Task(
        name,
        train=DataLoader(TensorDataset(x[kept], y[kept]), batch_size=batch_size, shuffle=True),
        validation=DataLoader(TensorDataset(x[held_out], y[held_out]), batch_size=64),
        num_inputs=x.shape[1],
        num_outputs=num_classes or 1,
    )


class MultiTaskModel(nn.Module):
    """Each task has its own way in and its own head; what lies between them is shared."""

    def __init__(self, tasks: list[Task], width: int = 64) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({task.name: nn.Linear(task.num_inputs, width) for task in tasks})
        self.shared = nn.Sequential(nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({task.name: nn.Linear(width, task.num_outputs) for task in tasks})

    def forward(self, x: Tensor, task: str) -> Tensor:
        return self.heads[task](self.shared(self.adapters[task](x)))

    def parameters_of(self, *tasks: str) -> list[nn.Parameter]:
        """The parameters that belong to these tasks alone."""
        return [p for name in tasks for part in (self.adapters, self.heads) for p in part[name].parameters()]


def task_loss(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Cross entropy and accuracy for classes; squared error for numbers (of unit variance: 1 - R^2)."""
    if target.dtype == torch.int64:
        accuracy = (output.detach().argmax(1) == target).float().mean()
        return {"loss": F.cross_entropy(output, target), "accuracy": accuracy}
    return {"loss": F.mse_loss(output, target)}
