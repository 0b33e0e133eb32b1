"""Small models, loaders and recorders for the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mtf

FEATURES = 3


def rows(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """``num`` rows of a linear task with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, FEATURES, generator=generator)
    return x, x.sum(1, keepdim=True) + 0.1 * torch.randn(num, 1, generator=generator)


def loader(num: int, seed: int, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    """Batches ``(x [b, 3], y [b, 1])``."""
    return DataLoader(TensorDataset(*rows(num, seed)), batch_size=batch_size, **options)


def model(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A small network; the same for the same seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 1))


def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> dict[str, Tensor]:
    """Mean squared error."""
    x, y = batch
    return {"loss": nn.functional.mse_loss(trainer.model(x), y)}


def config(names: list[str] | None = None, **settings: Any) -> mtf.TrainerConfig:
    """Silent, and with ``settings`` for the trainer; ``names`` in round robin unless ``multi`` says otherwise."""
    settings.setdefault("multi", mtf.MultiDataLoaderConfig(dataloader_names=names or []))
    settings.setdefault("logging", mtf.LoggingConfig(logger_type="none", progress_bar=False))
    return mtf.TrainerConfig(**settings)


def trainer(settings: mtf.TrainerConfig | None = None, **arguments: Any) -> mtf.Trainer:
    """A trainer of ``model()`` by SGD with momentum unless ``arguments`` say otherwise."""
    if "model" not in arguments:
        arguments["model"] = model()
    if "optimizers" not in arguments:
        arguments["optimizers"] = torch.optim.SGD(arguments["model"].parameters(), lr=0.1, momentum=0.9)
    arguments.setdefault("training_step", step)
    return mtf.Trainer(settings or config(), **arguments)


class Trace(mtf.TrainerHooks):
    """Keeps every batch as the training step got it, for hand-written loops over the same batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, Any]] = []

    def on_train_batch_start(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        self.batches.append((dataloader_name, [t.clone() for t in batch]))


def same_weights(a: nn.Module | Mapping[str, Tensor], b: nn.Module | Mapping[str, Tensor]) -> bool:
    """Whether two models agree bit by bit."""
    one = a.state_dict() if isinstance(a, nn.Module) else a
    two = b.state_dict() if isinstance(b, nn.Module) else b
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def compile_eagerly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Lets torch capture graphs, but not lower them to C++, which would take a compiler and half a minute.

    Returns:
        A function that counts the graphs so far.
    """
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, **{**options, "backend": "eager"}))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]
