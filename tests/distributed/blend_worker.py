"""What every rank does in the tests of blends and of one batch of every source: trains, saves, resumes."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import mtf
from distributed import models

WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
FOLDER = Path(os.environ["SHARED"])


class Seen(mtf.TrainerHooks):
    """The numbers of the samples of each batch on this rank."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def on_train_batch_start(
        self, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        parts = [batch] if "id" in batch else list(batch.values())
        self.ids.append([int(i) for part in parts for i in part["id"]])


def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> dict[str, Any]:
    parts = [batch] if "id" in batch else list(batch.values())
    losses = [models.loss(trainer.model, part, name) for part in parts for name in ("a", "b")]
    return {"loss": torch.stack(losses).mean()}


def make_source(kind: str) -> Any:
    rows = {"a": models.data(90, 1), "b": models.data(31, 2), "c": models.data(5, 3)}
    if kind in ("blend", "mixing"):
        return mtf.Blend(rows, {"a": 0.6, "b": 0.3, "c": 0.1}, global_batch_size=[(0, 12), (5, 24)], order="SHUFFLED")
    del rows["c"]
    loaders = {n: mtf.ArrayLoader(d, global_batch_size=12, shuffle=True, drop_last=True) for n, d in rows.items()}
    return mtf.Together(loaders)


def mix(found: mtf.MixingRound) -> dict[str, float]:
    """More of what loses more."""
    return {name: weight * (0.1 + found.means.get(name, 0.0)) for name, weight in found.weights.items()}


def mixing_step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> dict[str, Any]:
    """Each row loses its number modulo 7, so that the means are known."""
    losses = (batch["id"] % 7).double()
    loss = sum(models.loss(trainer.model, batch, name) for name in ("a", "b"))
    return {"loss": loss, "row_loss": mtf.sources_of(batch).means(losses)}


def train(kind: str, updates: int, resume: str | None = None) -> dict[str, Any]:
    net = models.model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    config = mtf.TrainerConfig(
        ddp=mtf.DDPConfig(timeout_s=60),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        seed=11,
    )
    is_mixing = kind == "mixing"
    trainer = mtf.Trainer(config, net, optimizer, training_step=mixing_step if is_mixing else step)
    if is_mixing:
        trainer.add_hook(mtf.OnlineMixing(mix, every=3, metric="row_loss"))
    seen = Seen()
    trainer.add_hook(seen)
    source = make_source(kind)
    if resume is not None:
        trainer.load_checkpoint(resume)
    trainer.fit(source, max_steps=updates)
    if resume is None:
        trainer.save_checkpoint(str(FOLDER / f"{kind}-{WORLD}"))
        trainer.fit(source, max_steps=updates + 4)
    parts: list[Any] = [seen.ids]
    if WORLD > 1:
        parts = [None] * WORLD
        dist.all_gather_object(parts, seen.ids)
    weights = models.whole_weights(trainer.model)
    return {
        "batches": [[i for part in same for i in part] for same in zip(*parts, strict=True)],
        "shares": source.weights if is_mixing else {},
        "weights": {name: value.flatten().tolist() for name, value in weights.items()},
    }


def main() -> None:
    results: dict[str, Any] = {}
    try:
        for case in sys.argv[1:]:
            kind, _, resume = case.partition(" from ")
            results[case] = train(kind, 12 if resume else 8, str(FOLDER / f"{kind}-{resume}") if resume else None)
    except Exception:
        results["failed"] = traceback.format_exc()
    Path(os.environ["RESULT"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
