"""A training run in a child process, interrupted and resumed: ``interrupt_training.py ROOT SEED NUMBER SIGNALS...``.

Everything is imported once, by a short run, and children are forked, so that they are soon in the middle of training.
Each of ``SIGNALS`` is one signal, or several that follow each other within moments (``SIGINT,SIGINT``).
Prints whether the final state is that of an uninterrupted run, and how each interruption ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtf
from mtf.checkpoint.storage.local import CheckpointWarning
from mtf.data.determinism.content_hash import content_hash
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


class Progress(mtf.TrainerHooks):
    """Writes a dot into a pipe after each update."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
        os.write(self.pipe, b".")


def train(root: Path, asynchronous: bool, pipe: int, max_steps: int = MAX_STEPS) -> str:
    """Trains to the end, from the newest checkpoint if there is one, and shows its progress in a pipe.

    Returns:
        The digest of the final state.
    """
    # Whatever an interruption leaves behind, nothing of it is a damaged checkpoint.
    warnings.simplefilter("error", CheckpointWarning)
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
    trainer.add_hook(Progress(pipe))
    trainer.fit(loaders(), max_epochs=1000, max_steps=max_steps)
    return content_hash(trainer.get_state().tree)


def in_child(
    root: Path, asynchronous: bool, after_steps: int = 0, after_s: float = 0.0, numbers: tuple[int, ...] = ()
) -> tuple[str, str]:
    """Runs ``train`` in a forked child that gets signals: how it ended, and the digest if that was its end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            result = train(root, asynchronous, write)
            os.write(write, result.encode())
            status = 0
        except (mtf.Preempted, KeyboardInterrupt) as left:
            status = 75 if isinstance(left, mtf.Preempted) else 130
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as pipe:
        for _ in range(after_steps):
            pipe.read(1)
        for number in numbers:
            time.sleep(after_s)
            after_s = 0.02
            os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        result = pipe.readall().decode().lstrip(".")
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name, ""
    code = os.WEXITSTATUS(status)
    if code not in (0, 75, 130):
        raise SystemExit("the child failed")
    return {0: "end", 75: "preempted", 130: "Ctrl-C"}[code], result


def main(root: Path, seed: int, number: int, signals: list[str]) -> None:
    """Interrupts a run ``number`` times at most, at random times."""
    first, second = os.pipe()
    train(root / "first", True, second, 8)
    os.close(first)
    os.close(second)
    began_s = time.monotonic()
    _, expected = in_child(root / "whole", False)
    duration_s = time.monotonic() - began_s
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    how, result = "", ""
    while how != "end":
        asynchronous = chance.random() < 0.5
        if ends.total() < number:
            names = chance.choice(signals).split(",")
            # Counted in updates, so that many interruptions come before the end however busy the machine is; now and
            # then before the first. Then a few updates more, so that it is anywhere in them.
            after_steps = chance.choice((0, 3, 6, 9, 12, 15, 18))
            after_s = duration_s * chance.random() * (0.1 if after_steps == 0 else 0.02)
            how, result = in_child(
                root / "run", asynchronous, after_steps, after_s, tuple(signal.Signals[name] for name in names)
            )
        else:
            how, result = in_child(root / "run", asynchronous)
        ends[how] += 1
    print("same" if result == expected else f"different: {result} against {expected}", json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
