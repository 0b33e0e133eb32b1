"""A run described by a file: data, model, optimizer and trainer in one YAML, read into nested dataclasses.

    pip install omegaconf
    python examples/yaml_run.py --config examples/yaml_run.yaml --optimizer.lr=1e-3 --trainer.seed=3
    python examples/yaml_run.py --help
    mtf plan examples/yaml_run.yaml --lengths measured=6,noisy=6

Dataclasses that inherit from ``mtf.Config`` are read, checked and written as mtf's own are: a wrong name or a value of
the wrong kind is an error that says where, and what was probably meant.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from torch import Tensor, nn

import mtf


@dataclass
class DataConfig(mtf.Config):
    """What is trained on."""

    batch_size: int = 32
    noise: float = 0.1


@dataclass
class ModelConfig(mtf.Config):
    """Widths of the hidden layers, and dropout after each."""

    hidden: list[int] = field(default_factory=lambda: [32])
    dropout: float = 0.0


@dataclass
class OptimizerConfig(mtf.Config):
    """One optimizer for all parameters."""

    name: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3


@dataclass
class RunConfig(mtf.Config):
    """Everything about a run that isn't code."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: mtf.TrainerConfig = field(default_factory=mtf.TrainerConfig)
    max_epochs: int = 1


def make_loaders(config: DataConfig, training: bool) -> dict[str, mtf.ArrayLoader]:
    """Chemical analyses of wines, as measured and with noise; a fifth is held out."""
    wine = load_wine()
    x = torch.tensor(wine.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    kept = (torch.arange(len(x)) % 5 != 0) == training
    noise = config.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(wine.target)[kept]
    views = {"measured": x[kept], "noisy": (x + noise)[kept]}
    return {
        name: mtf.ArrayLoader({"x": view, "y": labels}, batch_size=config.batch_size, shuffle=training)
        for name, view in views.items()
    }


def make_model(config: ModelConfig) -> nn.Module:
    """13 measurements to 3 growers."""
    widths = [13, *config.hidden]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3))


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer by its name."""
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return kinds[config.name](model.parameters(), lr=config.lr)


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy and accuracy."""
    logits = trainer.model(batch["x"])
    return {"loss": F.cross_entropy(logits, batch["y"]), "accuracy": (logits.argmax(1) == batch["y"]).float().mean()}


def train(config: RunConfig) -> None:
    """Trains and prints the accuracy on both views of the held-out wines."""
    torch.manual_seed(config.trainer.seed)
    model = make_model(config.model)
    trainer = mtf.Trainer(config.trainer, model, make_optimizer(config.optimizer, model), training_step=step)
    trainer.fit(make_loaders(config.data, True), make_loaders(config.data, False), max_epochs=config.max_epochs)
    found = {name: round(trainer.metrics[f"val/{name}/accuracy"], 3) for name in config.trainer.multi.dataloader_names}
    print(f"{config.trainer.experiment_name}: accuracy {found}")


def main() -> int:
    """Trains as the files and the settings say; status 2 where they are wrong."""
    config = RunConfig.from_cli(description=__doc__.splitlines()[0])
    try:
        train(config)
    except mtf.ConfigError as error:  # what shows only where loaders and settings meet
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
