"""mtf below a training loop of your own: MultiLoader, its state, and an exact resume in the middle of an epoch.

python examples/raw_loop.py
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtf


def make_batches() -> mtf.MultiLoader:
    """Two loaders, drawn three to one."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 8, generator=generator)
    targets = inputs.sum(1, keepdim=True)
    loaders = {
        "large": DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True),
        "small": DataLoader(TensorDataset(inputs[:64], targets[:64]), batch_size=8, shuffle=True),
    }
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        dataloader_weights=[3, 1],
        weighted_order=mtf.WeightedOrder.EVEN,
        dataloader_names=list(loaders),
    )
    return mtf.MultiLoader(loaders, config, seed=1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: mtf.MultiLoader, num_steps: int) -> None:
    """Your loop."""
    for _, batch in zip(range(num_steps), batches, strict=False):
        inputs, targets = batch.data
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        optimizer.step()


def main() -> None:
    """Trains 30 steps, and 12 + 18 steps with a resume between them; the weights are the same bits."""
    torch.manual_seed(0)
    start = nn.Linear(8, 1)

    whole = copy.deepcopy(start)
    with make_batches() as batches:
        train(whole, torch.optim.SGD(whole.parameters(), lr=0.01), batches, 30)

    parts = copy.deepcopy(start)
    with make_batches() as batches:
        train(parts, torch.optim.SGD(parts.parameters(), lr=0.01), batches, 12)
        state = batches.state_dict()  # plain numbers: put it into any checkpoint
    with make_batches() as batches:
        batches.load_state_dict(state)
        train(parts, torch.optim.SGD(parts.parameters(), lr=0.01), batches, 18)

    same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    print(f"30 steps against 12 + 18 steps: the same bits: {same}")


if __name__ == "__main__":
    main()
