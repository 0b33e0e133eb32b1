"""A small model with parts that only some loaders use, data for it, and a loop written by hand."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtf


class TwoHeads(nn.Module):
    """An encoder and two heads; ``b`` calls the parts directly, as users do."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 16)
        self.head_a = nn.Linear(16, 3)
        self.head_b = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head_a(self.encoder(x).relu())
        return out


def model() -> TwoHeads:
    """The same weights on every rank and in every process."""
    torch.manual_seed(3)
    return TwoHeads()


def data(num: int, seed: int) -> dict[str, Tensor]:
    """``num`` samples, each with its number."""
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(num, 8, generator=g),
        "y": torch.randint(0, 3, (num,), generator=g),
        "id": torch.arange(num) + 1000 * seed,
    }


def loss(net: TwoHeads, batch: dict[str, Tensor], name: str) -> Tensor:
    """Of loader ``a``: the whole model; of ``b``: parts of it."""
    if name == "a":
        return F.cross_entropy(net(batch["x"]), batch["y"])
    return net.head_b(net.encoder(batch["x"])).pow(2).mean()


def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> dict[str, Tensor]:
    """A training step with a metric that has a graph of its own."""
    value = loss(trainer.model, batch, dataloader_name)
    return {"loss": value, "double": 2 * value, "num_samples": len(batch["x"])}


def config(**more: Any) -> mtf.TrainerConfig:
    """Two loaders in turns, nothing logged."""
    multi = mtf.MultiDataLoaderConfig(dataloader_names=["a", "b"])
    logging = mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=3)
    return mtf.TrainerConfig(**{"multi": multi, "logging": logging, **more})


def loaders(world_size: int, global_batch: int = 12) -> dict[str, Any]:
    """An ArrayLoader and a shuffled DataLoader with the same global batch on any number of ranks; both end short."""
    whole = data(101, 2)
    rows = [{key: value[i] for key, value in whole.items()} for i in range(101)]
    generator = torch.Generator().manual_seed(5)
    return {
        "a": mtf.ArrayLoader(data(90, 1), global_batch_size=global_batch, shuffle=True),
        "b": torch.utils.data.DataLoader(
            rows,
            batch_size=global_batch // world_size,
            shuffle=True,
            generator=generator,  # type: ignore[arg-type]
        ),
    }


class Recorder(mtf.TrainerHooks):
    """Which samples each step trained on, over all ranks."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, list[int]]] = []

    def on_train_batch_start(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        self.steps.append((dataloader_name, batch["id"].tolist()))


def digest(values: Any) -> str:
    """A short hash of anything with a repr."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def by_hand(num_steps: int, window: int = 1, clip: float | None = None, optimizers: int = 1) -> dict[str, Tensor]:
    """Weights after ``num_steps`` updates of a loop over the global batches, without a trainer and without ranks."""
    net = model()
    made = make_optimizers(net, optimizers)
    with mtf.MultiLoader(loaders(1), config().multi, seed=0) as multi:
        windows: list[list[Any]] = []
        while len(windows) < num_steps:
            epoch = list(multi)
            windows.extend(epoch[i : i + window] for i in range(0, len(epoch), window))
    for batches in windows[:num_steps]:
        num_items = sum(len(batch.data["x"]) for batch in batches)  # the step says how many its mean is over
        for batch in batches:
            (loss(net, batch.data, batch.name) * (len(batch.data["x"]) / num_items)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None], clip)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def make_optimizers(net: TwoHeads, number: int) -> list[torch.optim.Optimizer]:
    """One for all parameters, or one per part."""
    if number == 1:
        return [torch.optim.Adam(net.parameters(), 1e-2)]
    parts = (net.encoder, net.head_a, net.head_b)
    return [torch.optim.Adam(part.parameters(), 1e-2) for part in parts]


def whole_weights(net: nn.Module) -> dict[str, Tensor]:
    """Weights, gathered where they are sharded."""
    return {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for n, p in net.named_parameters()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of two sets of weights."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)
