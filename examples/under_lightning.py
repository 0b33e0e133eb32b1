"""mtf's mixture as the training dataloader of Lightning's Trainer, resumed in the middle of an epoch.

    pip install lightning && python examples/under_lightning.py

Lightning saves the mixture unasked, because it has `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtf


def make_batches() -> mtf.MultiLoader:
    """Two arrays, drawn two to one."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    loaders = {
        "all": mtf.ArrayLoader((x, x.sum(1, keepdim=True)), batch_size=10, shuffle=True),
        "few": mtf.ArrayLoader((x[:40], x[:40].sum(1, keepdim=True)), batch_size=10, shuffle=True),
    }
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.ALTERNATING,
        alternating_pattern=[0, 0, 1],
        dataloader_names=list(loaders),
    )
    return mtf.MultiLoader(loaders, config, seed=1)


class Regression(lightning.LightningModule):
    """A LightningModule that is told by the batch where it came from."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.seen: list[tuple[str, int, int]] = []

    def training_step(self, batch: mtf.Batch, batch_idx: int) -> Tensor:
        """The mean squared error."""
        inputs, targets = batch.data
        self.seen.append((batch.name, batch.pass_, batch.batch))
        return F.mse_loss(self.layer(inputs), targets)

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(num_steps: int, folder: str, checkpoint: str | None = None) -> Regression:
    """Trains until update ``num_steps``."""
    model = Regression()
    trainer = lightning.Trainer(
        max_steps=num_steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with make_batches() as batches:
        trainer.fit(model, batches, ckpt_path=checkpoint, weights_only=False)
        trainer.save_checkpoint(Path(folder) / "last.ckpt")
    return model


def main() -> None:
    """30 steps in one go, and 12 steps, a checkpoint, and the rest."""
    with tempfile.TemporaryDirectory() as folder:
        whole = fit(30, folder)
        first = fit(12, folder)
        rest = fit(30, folder, checkpoint=str(Path(folder) / "last.ckpt"))
    print("the same batches:", whole.seen == first.seen + rest.seen)
    print("the same bits:", torch.equal(whole.layer.weight, rest.layer.weight))


if __name__ == "__main__":
    main()
