"""Two ranks that leave a validation or a load on a signal of one of them, or that have unequal data."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import mtf
from distributed import models

case, strategy = sys.argv[1:3]
RANK = int(os.environ["RANK"])
found: dict[str, Any] = {}


class Stream:
    """The batches that it is given, with nobody looking at the rank."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def make(**more: Any) -> mtf.Trainer:
    config = models.config(
        ddp=mtf.DDPConfig(strategy=strategy, timeout_s=60),  # type: ignore[arg-type]
        preemption=mtf.PreemptionConfig(agree_every=4),
        **more,
    )
    net = models.model()
    return mtf.Trainer(config, net, models.make_optimizers(net, 1), training_step=models.step)


def streams() -> None:
    """Loader ``same`` doesn't look at its rank, ``own`` does, and mtf divides ``divided``."""
    same, own = [models.data(4, seed) for seed in range(6)], [models.data(4, 10 * RANK + seed) for seed in range(6)]
    config = models.config(
        ddp=mtf.DDPConfig(timeout_s=60),
        multi=mtf.MultiDataLoaderConfig(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=12),
    )
    net = models.model()
    said_at: list[tuple[int, str]] = []
    warnings.showwarning = lambda message, *_: said_at.append((trainer.num_batches, str(message)))  # type: ignore[assignment]
    trainer = mtf.Trainer(config, net, models.make_optimizers(net, 1), training_step=models.step)
    trainer.fit(
        {"same": Stream(same), "own": Stream(own), "divided": mtf.ArrayLoader(models.data(60, 3), 4)}, max_steps=12
    )
    found["said"] = [(step, text) for step, text in said_at if "first batch" in text]


class Mean:
    """Synchronises itself when it is read, as torchmetrics does."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.state = torch.zeros(2, dtype=torch.float64)

    def update(self, values: torch.Tensor) -> None:
        self.state += torch.tensor([values.double().sum(), len(values)])

    def compute(self) -> float:
        whole = self.state.clone()
        dist.all_reduce(whole)
        return float(whole[0] / whole[1])


class Local(Mean):
    """Synchronises nothing, and has no value without data."""

    def compute(self) -> float:
        if not self.state[1]:
            raise ZeroDivisionError
        return float(self.state[0] / self.state[1])


def objects() -> None:
    """Metric objects over a loader of which rank 1 has no batch."""
    import torchmetrics

    whole = models.data(10, 1)
    given = {"one": Stream([] if RANK else [whole, whole]), "both": Stream([models.data(6 + RANK, 2)])}
    made: dict[str, Any] = {
        "mean": torchmetrics.MeanMetric,
        "own": Mean,
        "local": Local,
    }
    held: dict[str, Any] = {}
    trainer = make()

    def step(tr: Any, batch: Any, index: int, loader: int, name: str) -> dict[str, Any]:
        seen = {}
        for metric in ("mean", "own", *(("local",) if name == "one" else ())):
            # Made where it is needed first: a rank without a batch doesn't know it.
            seen[metric] = held[metric] = held.get(metric) or made[metric]()
            held[metric].update(batch["id"].float() + 1)
        return {"loss": models.loss(tr.model, batch, "a"), **seen}

    trainer.set_validation_step(step)
    found["rows"] = [trainer.validate(given) for _ in range(2)]
    ids = torch.cat([models.data(6, 2)["id"], models.data(7, 2)["id"]]).double() + 1
    found["expected"] = {"one": float(whole["id"].double().mean()) + 1, "both": float(ids.mean())}


class InValidation(mtf.TrainerHooks):
    """Rank 1 gets a signal in the third batch of the first loader."""

    seen = 0

    def on_validation_batch_end(self, trainer: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        self.seen += 1
        time.sleep(0.1)
        if trainer.is_fitting and RANK == 1 and self.seen == 3 and not found.get("resumes"):
            os.kill(os.getpid(), signal.SIGTERM)


def validation(root: str) -> None:
    frequency = {"frequency": "EVERY_N_STEPS", "every_n_steps": 5}
    found["resumes"] = resumes = Path(root, "latest").exists()
    trainer = make(
        validation=mtf.ValidationConfig(**frequency),  # type: ignore[arg-type]
        checkpoint=mtf.CheckpointConfig(root_dir=root),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
    )
    hook = InValidation()
    trainer.add_hook(hook)
    num = 4 if resumes else 80
    val = {"long": mtf.ArrayLoader(models.data(2 * num, 4), global_batch_size=2), "own": Stream([models.data(4, 5)])}
    try:
        trainer.fit(models.loaders(2), val, max_steps=7)
    finally:
        found.update(seen=hook.seen, step=trainer.global_step, metrics=trainer.metrics)
        if resumes:
            found["weights"] = {n: v.flatten().tolist() for n, v in models.whole_weights(trainer.model).items()}


class InLoad(mtf.TrainerHooks):
    def on_checkpoint_load(self, trainer: Any, path: str) -> None:
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def load(root: str) -> None:
    first = make(checkpoint=mtf.CheckpointConfig(root_dir=root))
    first.fit(models.loaders(2), max_steps=3)
    first.save_checkpoint(f"{root}/given")
    again = make(checkpoint=mtf.CheckpointConfig(root_dir=root))
    again.add_hook(InLoad())
    try:
        again.fit(models.loaders(2), max_steps=50, resume_from=f"{root}/given")
    finally:
        found["step"] = again.global_step


def main() -> None:
    try:
        {"streams": streams, "objects": objects, "validation": validation, "load": load}[case](*sys.argv[3:])
    except BaseException as error:
        found["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        Path(os.environ["RESULT"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
