"""A curriculum that follows what the model can do: harder data as soon as the easier data are learnt.

    python examples/curriculum_by_metric.py

Spirals with more and more turns are three loaders, easy to hard. After each epoch a hook reads the accuracies of the
validation and moves the weights on. Each move is a segment in the schedule's log, so a run that resumes in the middle
replays the decisions and doesn't take them again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtf

STAGES = {"easy": [0.8, 0.15, 0.05], "medium": [0.3, 0.6, 0.1], "hard": [0.2, 0.2, 0.6]}
TURNS = {"easy": 0.25, "medium": 0.75, "hard": 1.25}


def spirals(turns: float, num: int, seed: int) -> dict[str, Tensor]:
    """Two arms of points in the plane, wound ``turns`` times."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (num,), generator=generator)
    radius = torch.rand(num, generator=generator).sqrt()
    angle = 2 * torch.pi * turns * radius + torch.pi * labels
    noise = 0.02 * torch.randn(num, 2, generator=generator)
    return {"x": torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1) + noise, "y": labels}


class MoveOn(mtf.TrainerHooks):
    """Goes to the next stage when the accuracy on the current stage's data reaches ``goal``."""

    def __init__(self, goal: float = 0.95) -> None:
        self.goal = goal
        self.stage = 0

    def on_epoch_end(self, trainer: mtf.Trainer, epoch: int) -> None:
        """Looks at the validation that has just been made."""
        names = list(STAGES)
        if self.stage + 1 < len(names) and trainer.metrics[f"val/{names[self.stage]}/accuracy"] >= self.goal:
            self.stage += 1
            trainer.print(f"epoch {epoch}: {names[self.stage - 1]} is learnt, on to {names[self.stage]}")
            trainer.multi_loader_manager.update_weights(STAGES[names[self.stage]])

    def state_dict(self) -> dict[str, int]:
        """Saved with the checkpoint."""
        return {"stage": self.stage}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Put back with the checkpoint."""
        self.stage = state["stage"]


def step(
    trainer: mtf.Trainer, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """Cross entropy and accuracy."""
    logits = trainer.model(batch["x"])
    accuracy = (logits.argmax(1) == batch["y"]).float().mean()
    return {"loss": F.cross_entropy(logits, batch["y"]), "accuracy": accuracy}


def make_trainer(move_on: MoveOn, progress_bar: bool = True) -> mtf.Trainer:
    """A small network; the weights of the first stage."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            dataloader_weights=STAGES["easy"],
            dataloader_names=list(STAGES),
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=100,
        ),
        logging=mtf.LoggingConfig(progress_bar=progress_bar),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return mtf.Trainer(config, model, optimizer, training_step=step, hooks=[move_on])


def make_loaders(seed: int, num: int) -> dict[str, mtf.ArrayLoader]:
    """One loader per difficulty."""
    return {
        name: mtf.ArrayLoader(spirals(turns, num, seed + i), batch_size=64, shuffle=True)
        for i, (name, turns) in enumerate(TURNS.items())
    }


def main() -> None:
    """Trains for 25 epochs of 100 steps and shows the accuracies."""
    trainer = make_trainer(MoveOn())
    trainer.fit(make_loaders(0, 2000), make_loaders(10, 500), max_epochs=25)
    for name in STAGES:
        print(f"{name:8} {trainer.metrics[f'val/{name}/accuracy']:.3f}")


if __name__ == "__main__":
    main()
