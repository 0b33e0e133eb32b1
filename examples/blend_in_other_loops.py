"""A blend of samples in other frameworks' loops: PyTorch by hand, accelerate, Lightning, the Hugging Face Trainer.

    pip install accelerate lightning transformers && python examples/blend_in_other_loops.py

Each trains 12 updates in one go, and 5 updates, a checkpoint, and the rest in a new loop. `dataset()` gives a sample at
any position of the run, and `batch_sampler` the positions of each batch, so that a resume is a number of samples.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import mtf

BATCH, UPDATES, STOP = 16, 12, 5


def make_blend() -> mtf.Blend:
    """Two sources, mixed three to one inside every batch."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    rows = {name: {"x": part, "labels": part.sum(1)} for name, part in (("many", x), ("few", -x[:40]))}
    return mtf.Blend(rows, {"many": 0.75, "few": 0.25}, global_batch_size=BATCH, seed=1)


def make_loader(consumed_samples: int = 0, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
    """The blend as a DataLoader that begins after ``consumed_samples`` samples of all ranks."""
    blend = make_blend()
    dataset = blend.dataset()
    sampler = blend.batch_sampler(consumed_samples, BATCH // world_size, rank, world_size)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate_fn)


class Net(nn.Module):
    """A linear model that returns its loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss of a batch."""
        return {"loss": F.mse_loss(self.layer(x).squeeze(1), labels)}


def by_hand(folder: Path, until: int, *, resume: bool) -> Net:
    """A loop as torchtitan and Megatron have it: the checkpoint holds a step, and the data follows from it."""
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    step = 0
    if resume:
        saved = torch.load(folder / "by_hand.pt")
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    for batch in make_loader(consumed_samples=step * BATCH):
        optimizer.zero_grad()
        net(**batch)["loss"].backward()
        optimizer.step()
        if (step := step + 1) == until:
            break
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, folder / "by_hand.pt")
    return net


def under_accelerate(folder: Path, until: int, *, resume: bool) -> Net:
    """The loader isn't prepared: the batch sampler knows rank and world size itself."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = Net()
    model, optimizer = accelerator.prepare(net, torch.optim.Adam(net.parameters(), lr=0.01))
    step = 0
    if resume:
        accelerator.load_state(str(folder / "accelerate"))
        step = STOP
    for batch in make_loader(step * BATCH, accelerator.process_index, accelerator.num_processes):
        optimizer.zero_grad()
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        if (step := step + 1) == until:
            break
    accelerator.save_state(str(folder / "accelerate"))
    accelerator.free_memory()
    return net


def under_lightning(folder: Path, until: int, *, resume: bool) -> Net:
    """The checkpoint's ``global_step`` says where the data continues."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

        def train_dataloader(self) -> Any:
            return make_loader(self.trainer.global_step * BATCH)

    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    module = Module()
    trainer = lightning.Trainer(max_steps=until, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(module, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=False)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.net


def under_transformers(folder: Path, until: int, *, resume: bool) -> Net:
    """The Trainer leaves out the batches before its checkpoint: positions, so that no sample is read for it."""
    import transformers

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return make_loader()

    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=until, save_steps=until, learning_rate=0.01, lr_scheduler_type="constant", **quiet
    )
    net = Net()
    Trainer(net, arguments).train(resume_from_checkpoint=resume)
    return net


def main() -> None:
    """Compares the weights of both runs in each framework."""
    for run in (by_hand, under_accelerate, under_lightning, under_transformers):
        with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
            expected = run(Path(whole), UPDATES, resume=False).state_dict()
            run(Path(parts), STOP, resume=False)
            found = run(Path(parts), UPDATES, resume=True).state_dict()
        print(f"{run.__name__}: the same bits:", all(torch.equal(expected[name], found[name]) for name in expected))


if __name__ == "__main__":
    main()
