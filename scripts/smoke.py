"""Use an installed mtf from outside its sources: schedule, loaders, a short training run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mtf

assert "torch" not in sys.modules, "import mtf imported torch"
assert Path(mtf.__file__).parent.name == "mtf"
assert "site-packages" in mtf.__file__, mtf.__file__

config = mtf.MultiDataLoaderConfig(
    sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
    dataloader_weights=[0.7, 0.3],
    dataloader_names=["a", "b"],
    weighted_order=mtf.WeightedOrder.EVEN,
)
schedule = mtf.Schedule(config, lengths=[7, 3], seed=0)
assert list(schedule.counts(10)) == [7, 3]
assert "torch" not in sys.modules, "a schedule imported torch"

import torch  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402


def training_step(trainer: mtf.Trainer, batch: Any, batch_idx: int, dataloader_idx: int, name: str) -> torch.Tensor:
    """Least squares."""
    x, y = batch
    return torch.nn.functional.mse_loss(trainer.model(x), y)


model = torch.nn.Linear(4, 1)
loaders = {
    name: DataLoader(TensorDataset(torch.randn(8, 4), torch.randn(8, 1)), batch_size=4, shuffle=True) for name in "ab"
}
trainer = mtf.Trainer(
    mtf.TrainerConfig(multi=config),
    model=model,
    optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)],
    training_step=training_step,
)
trainer.fit(loaders, max_steps=3)
assert trainer.global_step == 3

from model_training_framework.trainer import GenericTrainer  # type: ignore[attr-defined]  # noqa: E402

assert GenericTrainer is mtf.Trainer
print(f"mtf {mtf.__version__} works from {Path.cwd()}")
