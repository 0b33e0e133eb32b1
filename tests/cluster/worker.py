"""A training run as users write it, on however many ranks it is started. What it does is said by the environment.

``ROOT`` checkpoints; ``NOTES`` a folder for what each rank saw; ``STEPS`` updates; ``STRATEGY`` ddp or fsdp;
``TIMEOUT`` ``ddp.timeout_s``; ``EVERY`` updates between saves; ``PAUSE`` seconds in each step; ``ASYNC`` background
saves; ``SAMPLES`` of the first source; ``BEFORE``: wait for a signal before the first ``fit``; ``WHOLE``: every step
uses every parameter; ``FAULT`` ``rank:update:kind``, done once (a file in ``NOTES`` remembers).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import mtf

if os.environ.get("BEFORE"):  # a signal comes while data are read, before there is a trainer
    mtf.preemption.install(("SIGTERM", "SIGUSR1"), requeue_job=True)
    early = Path(os.environ["BEFORE"])
    early.with_name(f"early-{os.environ['SLURM_PROCID']}").touch()
    while not early.with_name("early-gone").exists() or not os.environ.get("SLURM_RESTART_COUNT"):
        time.sleep(0.1)

from distributed import models

SAYS = os.environ.get
NOTES = Path(os.environ["NOTES"])
PAUSE_S = float(SAYS("PAUSE", "0"))


class Notes(mtf.TrainerHooks):
    """Writes which samples each batch of this rank has, and does what goes wrong."""

    def __init__(self) -> None:
        self.file: Any = None

    def on_train_start(self, trainer: Any) -> None:
        NOTES.mkdir(parents=True, exist_ok=True)
        # The moment tells attempts apart; process ids don't, on several hosts.
        self.file = open(NOTES / f"batches-{time.time_ns()}-{trainer.rank}.jsonl", "w", buffering=1)  # noqa: SIM115
        row = {
            "rank": trainer.rank,
            "ranks": trainer.world_size,
            "from": trainer.global_step,
            "job": SAYS("SLURM_JOB_ID"),
        }
        self.file.write(json.dumps(row) + "\n")

    def on_train_batch_start(self, trainer: Any, batch: Any, batch_idx: int, index: int, name: str) -> None:
        self.file.write(json.dumps([trainer.global_step, name, batch["id"].tolist()]) + "\n")
        time.sleep(PAUSE_S)
        fault = SAYS("FAULT")
        if fault:
            rank, update, kind = fault.split(":")
            mark = NOTES / "fault-done"
            if (trainer.rank, trainer.global_step) == (int(rank), int(update)) and not mark.exists():
                mark.touch()
                misbehave(kind)


def misbehave(kind: str) -> None:
    """What a rank does at the update that ``FAULT`` names."""
    if kind == "raise":
        raise ValueError("the sample is broken")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(1000)
    if kind == "slow":
        time.sleep(2.5 * float(SAYS("TIMEOUT", "20")))


def whole_step(trainer: Any, batch: Any, batch_idx: int, index: int, name: str) -> Any:
    """Uses every parameter in every step."""
    return models.loss(trainer.model, batch, "a") + models.loss(trainer.model, batch, "b")


def main() -> None:
    """Trains to the end, or as far as it gets."""
    config = models.config(
        ddp=mtf.DDPConfig(strategy=SAYS("STRATEGY", "ddp"), timeout_s=float(SAYS("TIMEOUT", "20"))),  # type: ignore[arg-type]
        checkpoint=mtf.CheckpointConfig(
            root_dir=os.environ["ROOT"], save_every_n_steps=int(SAYS("EVERY", "5")), asynchronous=bool(SAYS("ASYNC"))
        ),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        preemption=mtf.PreemptionConfig(
            signals=("SIGTERM", "SIGUSR1"), agree_every=2, requeue_job=bool(SAYS("REQUEUE"))
        ),
    )
    net = models.model()
    trainer = mtf.Trainer(
        config,
        net,
        models.make_optimizers(net, 1),
        training_step=whole_step if SAYS("WHOLE") else models.step,
        hooks=[Notes()],
    )
    loaders = models.loaders(trainer.world_size)
    if SAYS("SAMPLES"):
        loaders["a"] = mtf.ArrayLoader(models.data(int(os.environ["SAMPLES"]), 1), global_batch_size=12, shuffle=True)
    trainer.fit(loaders, max_steps=int(SAYS("STEPS", "20")))
    weights = {name: value.flatten().tolist() for name, value in models.whole_weights(net).items()}
    if trainer.rank == 0:
        (NOTES / "done.json").write_text(json.dumps({"updates": trainer.global_step, "weights": weights}))
    print(f"rank {trainer.rank} done after update {trainer.global_step}", file=sys.stderr)


if __name__ == "__main__":
    main()
