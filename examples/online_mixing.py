"""Weights of the sources from their losses: DoReMi, DoGE and ODM as functions for ``mtf.OnlineMixing``.

    python examples/online_mixing.py

Each is the update rule of its paper; what else the papers do (proxy models, gradients of a validation set) belongs to
the training step and the metric that it returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

import mtf

Mixing = Callable[[mtf.MixingRound], Mapping[str, float]]


def doremi(reference: Mapping[str, float], rate: float = 1.0, smoothing: float = 1e-3) -> Mixing:
    """Weights grow with the excess over a reference model's loss.

    Xie et al., "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining", NeurIPS 2023, algorithm 1.
    """

    def fn(found: mtf.MixingRound) -> Mapping[str, float]:
        excess = {name: max(mean - reference[name], 0.0) for name, mean in found.means.items()}
        raw = {name: weight * math.exp(rate * excess.get(name, 0.0)) for name, weight in found.weights.items()}
        total = sum(raw.values())
        return {name: (1 - smoothing) * value / total + smoothing / len(raw) for name, value in raw.items()}

    return fn


def doge(rate: float = 0.1, mu: float = 0.05) -> Mixing:
    """Weights grow with how well a source's gradient agrees with that of all: the metric is that inner product.

    Fan et al., "DoGE: Domain Reweighting with Generalization Estimation", ICML 2024, equation 5.
    """

    def fn(found: mtf.MixingRound) -> Mapping[str, float]:
        return {
            name: weight * math.exp(rate * found.means.get(name, 0.0) / mu) for name, weight in found.weights.items()
        }

    return fn


def odm(smoothing: float = 0.9) -> Mixing:
    """A bandit: a source's reward is its loss over its weight, averaged; less is explored as time goes by.

    Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training", 2023, algorithm 1.
    """

    def fn(found: mtf.MixingRound) -> Mapping[str, float]:
        rewards, num = found.memory.setdefault("rewards", {}), len(found.weights)
        for name, loss in found.means.items():
            rewards[name] = smoothing * rewards.get(name, 0.0) + (1 - smoothing) * loss / found.weights[name]
        rounds = max(1, found.number), found.number + 1
        before, now = (min(1 / num, math.sqrt(math.log(num) / (num * t))) for t in rounds)
        raw = {name: math.exp(before * rewards.get(name, 0.0)) for name in found.weights}
        total = sum(raw.values())
        return {name: (1 - num * now) * value / total + now for name, value in raw.items()}

    return fn


def main() -> None:
    """Three regressions of unlike noise, mixed inside each batch; ODM gives more of what is hard."""
    torch.manual_seed(0)
    slope = torch.tensor([[1.0], [-2.0]])
    data = {}
    for name, noise, num in (("easy", 0.1, 500), ("hard", 1.0, 300), ("rare", 0.5, 40)):
        inputs = torch.randn(num, 2)
        data[name] = {"x": inputs, "y": inputs @ slope + noise * torch.randn(num, 1)}
    blend = mtf.Blend(data, global_batch_size=32)

    def step(trainer: mtf.Trainer, batch: dict[str, torch.Tensor], *_: object) -> dict[str, object]:
        losses = F.mse_loss(trainer.model(batch["x"]), batch["y"], reduction="none")[:, 0]
        return {"loss": losses.mean(), "row_loss": mtf.sources_of(batch).means(losses)}

    model = nn.Linear(2, 1)
    config = mtf.TrainerConfig(logging=mtf.LoggingConfig(logger_type="none", progress_bar=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    mixing = mtf.OnlineMixing(odm(), every=8, metric="row_loss")
    mtf.Trainer(config, model, optimizer, training_step=step, hooks=[mixing]).fit(blend, max_steps=200)
    print({name: round(weight, 3) for name, weight in blend.weights.items()})


if __name__ == "__main__":
    main()
