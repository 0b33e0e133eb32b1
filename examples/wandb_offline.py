"""Metrics in Weights & Biases without a network: a run logged to files, stopped, and resumed as the same W&B run.

    pip install wandb
    python examples/wandb_offline.py --epochs 2
    python examples/wandb_offline.py --epochs 4

The second command resumes from the checkpoint of the first. The checkpoint keeps the id of the W&B run, so these
epochs appear behind the others and not as another run. ``wandb sync``, printed at the end, sends all parts to a
server.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

import mtf


def make_loaders(training: bool) -> dict[str, mtf.ArrayLoader]:
    """Measurements of tumours, one loader per diagnosis; a fifth is held out."""
    data = load_breast_cancer()
    x = torch.tensor(data.data, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    labels = torch.tensor(data.target)
    kept = (torch.arange(len(x)) % 5 != 0) == training
    return {
        str(name): mtf.ArrayLoader(
            {"x": x[kept & (labels == label)], "y": labels[kept & (labels == label)]}, batch_size=16, shuffle=training
        )
        for label, name in enumerate(data.target_names)
    }


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy, and the share of the diagnosis that is recognised."""
    logits = trainer.model(batch["x"])
    return {"loss": F.cross_entropy(logits, batch["y"]), "recall": (logits.argmax(1) == batch["y"]).float().mean()}


def make_trainer(folder: Path) -> mtf.Trainer:
    """Logs training and validation, learning rates, waiting for data and the shares of the loaders."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            dataloader_weights=[0.5, 0.5],
            dataloader_names=["malignant", "benign"],
        ),
        checkpoint=mtf.CheckpointConfig(root_dir=str(folder / "checkpoints"), save_every_n_epochs=1),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        logging=mtf.LoggingConfig(
            logger_type="wandb",
            log_dir=str(folder),
            wandb_project="mtf-examples",
            wandb_mode="offline",
            wandb_tags=["two loaders"],
            log_scalars_every_n_steps=10,
            progress_bar=False,
        ),
        experiment_name="cancer",
    )
    return mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=1e-3), training_step=step)


def main() -> None:
    """Trains until the end of epoch ``--epochs``, in one W&B run however often it was started."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("logs/wandb_offline"))
    arguments = parser.parse_args()

    trainer = make_trainer(arguments.folder)
    trainer.fit(make_loaders(training=True), make_loaders(training=False), max_epochs=arguments.epochs)
    recall = {name: round(trainer.metrics[f"val/{name}/recall"], 3) for name in ("malignant", "benign")}
    print(f"recall after {trainer.global_step} updates: {recall}")

    # The folder of a part is offline-run-<time>-<id of the run>, with a number behind it where that is taken.
    parts = sorted(arguments.folder.glob("wandb/offline-run-*"))
    print(f"{len({part.name.split('-')[3] for part in parts})} W&B run in {len(parts)} part(s):")
    print("wandb sync", *parts)


if __name__ == "__main__":
    main()
