"""Ranks that Ray Train starts, watches and starts again: mtf uses Ray's process group and resumes from its checkpoints.

    pip install "ray[train]" && python examples/under_ray.py --workers 2

One worker is killed in the middle. Ray starts all again (`FailureConfig`), and `auto_resume` continues from the newest
checkpoint. Ray runs its workers in folders of its own, so paths must be absolute; on several machines, on storage that
all of them share.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import ray
import torch
import torch.nn.functional as F
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mtf


def make_loaders() -> dict[str, mtf.ArrayLoader]:
    """Images of small and of large digits; the batch size is that of all workers together."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    parts = {"zero_to_four": labels < 5, "five_to_nine": labels >= 5}
    return {
        name: mtf.ArrayLoader({"x": images[part], "y": labels[part]}, global_batch_size=24, shuffle=True)
        for name, part in parts.items()
    }


class Die(mtf.TrainerHooks):
    """Kills the last worker once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_train_batch_start(self, trainer: Any, *batch: Any) -> None:
        """At update 30, in the first attempt."""
        if trainer.global_step == 30 and trainer.rank == trainer.world_size - 1 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(trainer.model(batch["x"]), batch["y"])


def train(settings: dict[str, Any]) -> None:
    """What each worker runs; an attempt after a failure runs it again."""
    torch.manual_seed(0)
    folder = Path(settings["folder"])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    config = mtf.TrainerConfig(
        checkpoint=mtf.CheckpointConfig(root_dir=str(folder), save_every_n_steps=10),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        preemption=mtf.PreemptionConfig(signals=()),  # Ray calls this function outside the main thread
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    hooks = [Die(folder.parent / "died")] if settings["die"] else []
    trainer = mtf.Trainer(config, model, optimizer, training_step=step, hooks=hooks)
    trainer.fit(make_loaders(), max_steps=60)
    size = sum(float(p.detach().double().square().sum()) for p in model.parameters()) ** 0.5
    if trainer.rank == 0:
        text = f"{trainer.world_size} worker(s), update {trainer.global_step}: norm of the weights {size:.6f}"
        (folder.parent / "result").write_text(text + "\n")


def main() -> None:
    """Trains to update 60, whatever happens on the way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default="checkpoints/under_ray")
    parser.add_argument("--die", action="store_true", help="kill a worker at update 30")
    arguments = parser.parse_args()
    folder = Path(arguments.folder).absolute()

    ray.init(num_cpus=arguments.workers + 1, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        train,
        train_loop_config={"folder": str(folder / "checkpoints"), "die": arguments.die},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=arguments.workers),
        run_config=RunConfig(storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=2)),
    ).fit()
    ray.shutdown()
    print((folder / "result").read_text(), end="")


if __name__ == "__main__":
    main()
