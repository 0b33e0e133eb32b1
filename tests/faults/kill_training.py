"""A training run in a child process, killed and resumed: ``kill_training.py ROOT SEED NUM_KILLS``.

torch is imported once and the children are forked before it has computed anything, so that a kill costs little.
Prints the digest of the final state, or what went wrong.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtf
from mtf.data.content_hash import content_hash
from mtf.trainer.trainer import Trainer

MAX_STEPS = 150


def loaders() -> dict[str, Any]:
    """A shuffled map-style loader with dropout-free rows, and an array loader."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 4, generator=generator)
    y = x.sum(1, keepdim=True)
    return {
        "rows": DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)),
        "arrays": mtf.ArrayLoader((x[:37], y[:37]), batch_size=5),
    }


def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Any:
    """Mean squared error, with noise from the step's own random numbers."""
    x, y = batch
    return nn.functional.mse_loss(trainer.model(x + 0.1 * torch.randn_like(x)), y)


def train(root: Path, asynchronous: bool) -> str:
    """Trains to the end, from the newest checkpoint if there is one.

    Returns:
        The digest of the final state.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.999**k)
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(
            sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
            dataloader_weights=[0.7, 0.3],
            dataloader_names=["rows", "arrays"],
        ),
        checkpoint=mtf.CheckpointConfig(
            root_dir=str(root), save_every_n_steps=7, max_checkpoints=2, asynchronous=asynchronous
        ),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=2),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    )
    schedulers = [{"scheduler": scheduler, "interval": "step"}]
    trainer = Trainer(config, model=model, optimizers=[optimizer], schedulers=schedulers, training_step=step)
    trainer.fit(loaders(), max_epochs=1000, max_steps=MAX_STEPS)
    return content_hash(trainer.get_state().tree)


def in_child(root: Path, asynchronous: bool, kill_after_s: float | None) -> str | None:
    """Runs ``train`` in a forked child; None if it was killed before its end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            result = train(root, asynchronous)
            os.write(write, result.encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(write)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        result = pipe.read()
    if os.WIFSIGNALED(status):
        return None
    if os.WEXITSTATUS(status) != 0:
        raise SystemExit("the child failed")
    return result


def main(root: Path, seed: int, num_kills: int) -> None:
    """Prints the digests of an uninterrupted and of a killed run, and how many kills hit."""
    began_s = time.monotonic()
    expected = in_child(root / "whole", False, None)
    duration_s = time.monotonic() - began_s
    chance = random.Random(seed)
    hits = 0
    result: str | None = None
    asynchronous = False
    while result is None:
        asynchronous = not asynchronous
        # Long enough that the run gets on between two kills, short enough that many of them come before its end.
        kill_after_s = None if hits >= num_kills else duration_s * (0.1 + 0.3 * chance.random())
        result = in_child(root / "killed", asynchronous, kill_after_s)
        hits += result is None
    print("same" if result == expected else f"different: {result} against {expected}", hits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
