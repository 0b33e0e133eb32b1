"""What every rank does in the tests of runs that are steered."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import mtf
from distributed import models

WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
FOLDER = Path(os.environ["SHARED"])
BATCH = 6


class Seen(mtf.TrainerHooks):
    """Numbers of the rows of this rank, by update."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, list[int]]] = []

    def on_train_batch_start(self, trainer: Any, batch: Any, *_: Any) -> None:
        self.rows.append((trainer.global_step, batch["id"].tolist()))


def rows(num: int, spikes: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """Rows in order; each of ``spikes`` is one row, which one rank alone has."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, 4, generator=generator)
    y = x.sum(1) + torch.randn(num, generator=generator)
    for row in spikes:
        y[row] += 1e5
    return {"x": x, "y": y, "id": torch.arange(num)}


def step(trainer: Any, batch: Any, *_: Any) -> torch.Tensor:
    return nn.functional.mse_loss(trainer.model(batch["x"]).squeeze(1), batch["y"])


def trainer(name: str, hooks: Any = (), strategy: Any = "ddp", asynchronous: bool = False, **more: Any) -> mtf.Trainer:
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    config = mtf.TrainerConfig(
        ddp=mtf.DDPConfig(timeout_s=60, strategy=strategy),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        checkpoint=mtf.CheckpointConfig(
            root_dir=str(FOLDER / f"{name}-{WORLD}"), save_every_n_steps=10, asynchronous=asynchronous
        ),
        **more,
    )
    return mtf.Trainer(config, net, torch.optim.SGD(net.parameters(), 0.05), training_step=step, hooks=hooks)


def loader(num: int = 600, batch: int = BATCH, spikes: tuple[int, ...] = (), shuffle: bool = False) -> mtf.ArrayLoader:
    return mtf.ArrayLoader(rows(num, spikes), global_batch_size=batch, shuffle=shuffle)


def result(run: mtf.Trainer, seen: Seen, **more: Any) -> dict[str, Any]:
    parts: list[Any] = [seen.rows]
    if WORLD > 1:
        parts = [None] * WORLD
        dist.all_gather_object(parts, seen.rows)
    whole = [[i for _, part in same for i in part] for same in zip(*parts, strict=True)]
    weights = {name: value.flatten().tolist() for name, value in models.whole_weights(run.model).items()}
    return {"rows": whole, "weights": weights, "updates": run.global_step, **more}


def spikes(action: Any, strategy: str = "ddp", asynchronous: bool = False) -> dict[str, Any]:
    seen, guard = Seen(), mtf.SpikeGuard(sigma=500, window=8, action=action)
    run = trainer(f"spikes-{action}-{strategy}-{asynchronous}", [seen, guard], strategy, asynchronous)
    run.fit(loader(spikes=(17 * BATCH, 25 * BATCH + 5)), max_steps=40)
    return result(run, seen, guard=guard.state_dict())


def skip() -> dict[str, Any]:
    seen = Seen()
    run = trainer("skip", seen)
    run.fit(loader(), max_steps=15, skip=[(4, 7), (12, 20)])
    run.fit(loader(), max_steps=30)
    return result(run, seen)


def edit() -> dict[str, Any]:
    seen = Seen()
    first = trainer("edit", seen)
    first.fit(loader(70, shuffle=True), max_steps=5)
    first.save_checkpoint(str(FOLDER / f"edit-{WORLD}" / "now"))
    run = trainer("edit", seen)
    path = str(FOLDER / f"edit-{WORLD}" / "now")
    run.fit(loader(88, 10, shuffle=True), max_steps=18, resume_from=path, on_other_mixture="edit")
    return result(run, seen, edits=run.multi_loader_manager.state_dict()["edits"])


def differing() -> dict[str, Any]:
    try:
        trainer("differing").fit(loader(), max_steps=15, skip=[(4, 7 + RANK)])
    except mtf.ConfigError as error:
        return {"error": str(error)}
    return {"error": None}


CASES = {
    "skip_update": lambda: spikes("skip_update"),
    "rollback": lambda: spikes("rollback"),
    "rollback fsdp": lambda: spikes("rollback", "fsdp"),
    "rollback async": lambda: spikes("rollback", asynchronous=True),
    "rollback fsdp async": lambda: spikes("rollback", "fsdp", asynchronous=True),
    "skip": skip,
    "edit": edit,
    "differing": differing,
}


def main() -> None:
    results: dict[str, Any] = {}
    try:
        for case in sys.argv[1:]:
            results[case] = CASES[case]()
    except Exception:
        results["failed"] = traceback.format_exc()
    Path(os.environ["RESULT"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
