"""Train one model on three data sets, interrupt the run, resume it, and prove that nothing changed.

python examples/demo/demo.py --report demo-report
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from report import write_report
from tasks import MultiTaskModel, load_tasks, task_loss
from torch import Tensor

import mtf

NAMES = ["digits", "diabetes", "cancer"]
WEIGHTS = [0.6, 0.15, 0.25]
STEPS_PER_EPOCH = 150
NUM_UPDATES = 600
INTERRUPT_AT = 287  # in the middle of an epoch, of a pass and of a burst of luck

# What the run has to reach on the held-out fifth of each data set.
GOALS = {"val/digits/accuracy": 0.95, "val/cancer/accuracy": 0.93}
DIABETES_GOAL = 0.70  # mean squared error; always guessing the mean would give about 1


class StopAt(mtf.TrainerHooks):
    """Stands for whatever ends a run early: a signal, a full queue, a person."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= self.update:
            trainer.request_stop(f"interrupted on purpose after update {trainer.global_step}")


def training_step(
    trainer: mtf.Trainer, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int, dataloader_name: str
) -> dict[str, Tensor]:
    """The guide's signature: the step is told where its batch came from."""
    x, y = batch
    return task_loss(trainer.model(x, task=dataloader_name), y)


def make_trainer(initial_weights: int, hooks: list[mtf.TrainerHooks], log_dir: Path | None = None) -> mtf.Trainer:
    """A trainer with one optimizer for the classifications, one for the regression, and one for what they share.

    With a `log_dir` it writes what the report is made of: rows of metrics, and states of its schedule.
    """
    torch.manual_seed(initial_weights)
    model = MultiTaskModel(load_tasks())
    logging = mtf.LoggingConfig(log_scalars_every_n_steps=10, progress_bar=sys.stderr.isatty())  # bars are for people
    if log_dir is None:
        logging.logger_type = "none"
    else:
        logging.logger_type, logging.log_dir = "jsonl", str(log_dir)
    return mtf.Trainer(
        mtf.TrainerConfig(
            multi=mtf.MultiDataLoaderConfig(
                sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
                dataloader_weights=WEIGHTS,
                dataloader_names=NAMES,
                epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
                steps_per_epoch=STEPS_PER_EPOCH,
            ),
            per_loader_optimizers={
                "digits": {"optimizer_idx": [0, 2]},
                "diabetes": {"optimizer_idx": [1, 2]},
                "cancer": {"optimizer_idx": [0, 2]},
            },
            logging=logging,
            experiment_name="three-tasks",
            seed=7,
        ),
        model=model,
        optimizers=[
            torch.optim.Adam(model.parameters_of("digits", "cancer"), lr=3e-3),
            torch.optim.SGD(model.parameters_of("diabetes"), lr=0.01, weight_decay=0.02),
            torch.optim.AdamW(model.shared.parameters(), lr=1e-3, weight_decay=0.1),
        ],
        training_step=training_step,
        hooks=hooks,
    )


def main() -> int:
    """Run the demonstration; returns 0 when every claim held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=Path("demo-report"), help="folder for the tables and pictures")
    parser.add_argument("--updates", type=int, default=NUM_UPDATES, help="length of the run (for tests)")
    arguments = parser.parse_args()
    updates, interrupt_at = arguments.updates, min(INTERRUPT_AT, arguments.updates // 2)
    train = {task.name: task.train for task in load_tasks()}
    validation = {task.name: task.validation for task in load_tasks()}
    started = time.perf_counter()

    print(f"1. {updates} updates without interruption")
    whole = make_trainer(initial_weights=1, hooks=[], log_dir=arguments.report)
    whole.fit(train, validation, max_steps=updates)
    expected = whole.get_state()

    print(f"2. the same run, interrupted after {interrupt_at} updates")
    interrupted = make_trainer(initial_weights=1, hooks=[StopAt(interrupt_at)])
    interrupted.fit(train, validation, max_steps=updates)
    stopped_at = interrupted.global_step
    state = interrupted.get_state()
    del interrupted

    print(f"3. a fresh trainer, with other initial weights, resumes from update {stopped_at}")
    resumed = make_trainer(initial_weights=2, hooks=[])
    resumed.load_state(state)
    resumed.fit(train, validation, max_steps=updates)
    differences = expected.diff(resumed.get_state())

    metrics = whole.validate(validation)
    seconds = time.perf_counter() - started
    summary = write_report(
        arguments.report,
        metrics,
        differences,
        stopped_at=stopped_at,
        num_updates=updates,
        seconds=seconds,
    )
    print(summary)
    print(f"report: {arguments.report / 'report.md'}, and as a page: {arguments.report / 'report.html'}")

    missed = [f"{name} {metrics[name]:.3f} < {goal}" for name, goal in GOALS.items() if metrics[name] < goal]
    if metrics["val/diabetes/loss"] > DIABETES_GOAL:
        missed.append(f"val/diabetes/loss {metrics['val/diabetes/loss']:.3f} > {DIABETES_GOAL}")
    if differences:
        print("NOT identical:", *differences, sep="\n  ", file=sys.stderr)
    if missed and updates >= NUM_UPDATES:
        print("goals missed:", *missed, sep="\n  ", file=sys.stderr)
    return 1 if differences or (missed and updates >= NUM_UPDATES) else 0


if __name__ == "__main__":
    sys.exit(main())
