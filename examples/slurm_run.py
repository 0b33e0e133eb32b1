"""A run that outlives its time limit: saved on Slurm's warning, requeued, and resumed exactly.

    sbatch examples/slurm_run.sbatch

The batch script asks Slurm for SIGUSR1 before the time is up. On the signal all ranks finish the same update and save,
rank 0 calls ``scontrol requeue``, and the processes exit with 75. The job starts again with the same command, and
``auto_resume`` resumes from the checkpoint. Without Slurm the script runs as it is; a signal then only saves and stops:

    python examples/slurm_run.py & sleep 5; kill -USR1 $!; wait $!; echo "exit code $?"
    python examples/slurm_run.py
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mtf


def make_loaders() -> dict[str, mtf.ArrayLoader]:
    """Handwritten digits, as they are and turned by a quarter."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    views = {"upright": images, "turned": images.rot90(1, (1, 2))}
    return {
        name: mtf.ArrayLoader({"x": view.flatten(1), "y": labels}, global_batch_size=32, shuffle=True)
        for name, view in views.items()
    }


class Report(mtf.TrainerHooks):
    """Says where the run begins, and how far it is after each epoch."""

    def on_train_start(self, trainer: mtf.Trainer) -> None:
        """Update 0, or the update of the checkpoint."""
        trainer.print(f"begins after update {trainer.global_step}, on {trainer.world_size} rank(s)")

    def on_epoch_end(self, trainer: mtf.Trainer, epoch: int) -> None:
        """The mean loss of the epoch's last interval."""
        trainer.print(f"epoch {epoch}: loss {trainer.metrics['train/loss']:.4f}")


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(trainer.model(batch["x"]), batch["y"])


def make_trainer(folder: str) -> mtf.Trainer:
    """Everything that preemption needs is configuration."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(dataloader_names=["upright", "turned"]),
        checkpoint=mtf.CheckpointConfig(root_dir=folder, save_every_n_minutes=10),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        preemption=mtf.PreemptionConfig(signals=("SIGUSR1", "SIGTERM"), requeue_job=True, agree_every=10),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return mtf.Trainer(config, model, optimizer, training_step=step, hooks=[Report()])


def main() -> None:
    """Trains for ``--epochs`` epochs, in as many jobs as that takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--folder", default="checkpoints/slurm_run", help="on a file system that all nodes share")
    arguments = parser.parse_args()

    trainer = make_trainer(arguments.folder)
    trainer.fit(make_loaders(), max_epochs=arguments.epochs)
    trainer.save_checkpoint(f"{arguments.folder}/done")
    trainer.print(f"done after update {trainer.global_step}: loss {trainer.metrics['train/loss']:.4f}")


if __name__ == "__main__":
    main()
