"""A training run in which one rank does something bad at update 5, or all are asked to stop."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import mtf
from distributed import models

kind, strategy, root = sys.argv[1:4]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 40


class Fault(mtf.TrainerHooks):
    """What goes wrong, on the last rank."""

    def on_train_batch_start(self, trainer: Any, batch: Any, *place: Any) -> None:
        if trainer.global_step != 5 or trainer.rank != trainer.world_size - 1:
            return
        if kind == "raise":
            raise ValueError("the sample is broken")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(1000)
        if kind == "slow":
            time.sleep(3)
        if kind == "signal":
            os.kill(os.getpid(), signal.SIGTERM)


class Unreadable(torch.utils.data.Dataset[Any]):
    """On the last rank a sample of the sixth step can't be read."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if index == 30 and os.environ["RANK"] == "1":
            raise OSError(f"sample {index} can't be read")
        return self.rows[index]


def loaders(world_size: int) -> dict[str, Any]:
    given = models.loaders(world_size)
    if kind == "loader":
        given["b"] = torch.utils.data.DataLoader(Unreadable(given["b"].dataset), batch_size=6)
    return given


def main() -> None:
    if kind == "absent" and os.environ["RANK"] == "1":
        return
    config = models.config(
        ddp=mtf.DDPConfig(strategy=strategy, timeout_s=8 if kind in ("hang", "absent") else 60),  # type: ignore[arg-type]
        checkpoint=mtf.CheckpointConfig(root_dir=root, save_every_n_steps=4, asynchronous=kind == "kill"),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        preemption=mtf.PreemptionConfig(agree_every=4, requeue_job=True),
    )
    net = models.model()
    if kind == "slow" and os.environ["RANK"] == "1":
        for parameter in net.parameters():
            parameter.data += 1.0  # it began with other weights, too
    trainer = mtf.Trainer(config, net, models.make_optimizers(net, 1), training_step=models.step, hooks=[Fault()])
    recorder = models.Recorder()
    trainer.add_hook(recorder)
    found: dict[str, Any] = {}
    try:
        trainer.fit(loaders(trainer.world_size), max_steps=steps)
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        found |= {"updates": trainer.global_step, "first": recorder.steps[:1], "seconds": time.monotonic()}
        if not found.get("error"):
            found["weights"] = {n: v.flatten().tolist() for n, v in models.whole_weights(net).items()}
        Path(os.environ["RESULT"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
