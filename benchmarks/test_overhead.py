"""Row D: what a trainer adds to a step of a tiny model on two loaders, over the same loop written by hand.

"Minimal" is ``step_rng="saved"`` without ``seed_each_batch``, logger, bar or hooks: each window then notes where three
generators stand, which is why these are compared with what is known of them rather than copied.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from conftest import Measure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mtf

WORK = "one training step, tiny MLP, batch 32, two loaders"
STEPS = 600
Tensors = tuple[torch.Tensor, torch.Tensor]


@cache
def rows(seed: int) -> Tensors:
    """Half of the steps' rows."""
    generator = torch.Generator().manual_seed(seed)
    num = 16 * STEPS
    return torch.randn(num, 16, generator=generator), torch.randn(num, 1, generator=generator)


def loaders() -> list[DataLoader[Any]]:
    return [DataLoader(TensorDataset(*rows(seed)), batch_size=32, shuffle=True) for seed in (0, 1)]


def arrays() -> list[mtf.ArrayLoader]:
    return [mtf.ArrayLoader(rows(seed), batch_size=32, shuffle=True) for seed in (0, 1)]


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def loop(
    model: Any, optimizer: Any, given: Any, backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward
) -> None:
    iterators = [iter(loader) for loader in given]
    for step in range(STEPS):
        x, y = next(iterators[step % 2])
        loss = nn.functional.mse_loss(model(x), y)
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()


class InTurn:
    """The batches of both loaders, one of each."""

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Any]:
        iterators = [iter(loader) for loader in loaders()]
        for step in range(STEPS):
            yield next(iterators[step % 2])


def by_hand() -> Callable[[], None]:
    model, optimizer = parts()
    return lambda: loop(model, optimizer, loaders())


def ours(*, seeds: bool, shows: bool, given: Callable[[], Any] = loaders) -> Callable[[], None]:
    """mtf's trainer.

    Args:
        seeds: seed every batch and every step (the default), or neither.
        shows: the default console log, metrics per loader, proportions and progress, or none of it.
        given: makes the loaders.
    """
    model, optimizer = parts()
    logs = mtf.LoggingConfig()
    if not shows:
        logs = mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=10**9)
    config = mtf.TrainerConfig(
        step_rng="derived" if seeds else "saved",
        fault_tolerance=mtf.FaultToleranceConfig(seed_each_batch=seeds),
        logging=logs,
    )

    def step(trainer: Any, batch: Any, *place: Any) -> torch.Tensor:
        return nn.functional.mse_loss(trainer.model(batch[0]), batch[1])

    trainer = mtf.Trainer(config, model=model, optimizers=optimizer, training_step=step)
    kept = given()
    return lambda: trainer.fit(kept)


def fabric() -> Callable[[], None]:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(*parts())
    return lambda: loop(model, optimizer, fabric.setup_dataloaders(*loaders()), fabric.backward)


def accelerate() -> Callable[[], None]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*parts())
    return lambda: loop(model, optimizer, accelerator.prepare(*loaders()), accelerator.backward)


def lightning(*, shows: bool) -> Callable[[], None]:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.sgd = parts()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            if shows:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return self.sgd

    def run() -> None:
        options: dict[str, Any] = {"barebones": True}
        if shows:
            options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=directory, **options)
        trainer.fit(module, InTurn())

    module, directory = Module(), tempfile.mkdtemp()
    return run


def hf_trainer() -> Callable[[], None]:
    from transformers import Trainer, TrainingArguments

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = parts()[0]

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.mse_loss(self.net(x), y)}

    data = torch.utils.data.ConcatDataset([TensorDataset(*rows(seed)) for seed in (0, 1)])
    directory = tempfile.mkdtemp()

    def together(items: Any) -> dict[str, torch.Tensor]:
        return {"x": torch.stack([x for x, _ in items]), "y": torch.stack([y for _, y in items])}

    def run() -> None:
        arguments = TrainingArguments(
            directory, per_device_train_batch_size=32, num_train_epochs=1, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=True, optim="sgd",
        )  # fmt: skip
        Trainer(Net(), arguments, train_dataset=data, data_collator=together).train()

    return run


TOOLS: dict[str, tuple[Callable[[], Callable[[], None]], str | None]] = {
    "raw loop": (by_hand, None),
    "mtf, minimal": (lambda: ours(seeds=False, shows=False), None),
    "mtf, seeded": (lambda: ours(seeds=True, shows=False), None),
    "mtf, logs and progress": (lambda: ours(seeds=False, shows=True), None),
    "mtf, defaults": (lambda: ours(seeds=True, shows=True), None),
    "mtf, ArrayLoader": (lambda: ours(seeds=False, shows=False, given=arrays), None),
    "mtf, ArrayLoader, defaults": (lambda: ours(seeds=True, shows=True, given=arrays), None),
    "Fabric": (fabric, "lightning"),
    "Lightning, barebones": (lambda: lightning(shows=False), "lightning"),
    "Lightning, log and progress": (lambda: lightning(shows=True), "lightning"),
    "accelerate": (accelerate, "accelerate"),
    "HF Trainer, minimal": (hf_trainer, "transformers"),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_step(measure: Measure, tool: str) -> None:
    make, package = TOOLS[tool]
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} isn't installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    run = make()
    quiet = io.StringIO()

    def silently() -> None:
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            run()

    try:
        measure(silently, row="D", work=WORK, tool=tool, items=STEPS, rounds=7)
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
