"""What only a GPU can show: run on a machine with one, it prints each claim and whether it held.

make gpu-check, or python scripts/gpu_check.py. Exit code 0: everything held; 1: something didn't; 77: there is no GPU.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mtf

NO_GPU = 77
CLAIMS: list[tuple[str, Callable[[], str]]] = []


def claim(text: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Registers a check; it returns figures, or raises."""

    def register(check: Callable[[], str]) -> Callable[[], str]:
        CLAIMS.append((text, check))
        return check

    return register


class Net(nn.Module):
    """An MLP with dropout: resume must bring the GPU's random numbers back as well."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> torch.Tensor:
    """Cross entropy."""
    assert batch["x"].is_cuda
    return F.cross_entropy(trainer.model(batch["x"]), batch["y"])


def loaders(rows: int = 2048, width: int = 64) -> dict[str, mtf.ArrayLoader]:
    """Two loaders in turns."""
    found = {}
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        data = {
            "x": torch.randn(rows, width, generator=generator),
            "y": torch.randint(0, 10, (rows,), generator=generator),
        }
        found[name] = mtf.ArrayLoader(data, 64, shuffle=True)
    return found


def trainer(**settings: Any) -> mtf.Trainer:
    """The same weights each time."""
    torch.manual_seed(0)
    model = Net()
    config = mtf.TrainerConfig(logging=mtf.LoggingConfig(logger_type="none", progress_bar=False), **settings)
    return mtf.Trainer(config, model, torch.optim.AdamW(model.parameters(), 1e-3), training_step=step)


def interrupted(**settings: Any) -> str:
    """Twenty updates at once, and in two halves with a checkpoint between them."""
    whole = trainer(**settings)
    whole.fit(loaders(), max_steps=20)
    half = trainer(**settings)
    half.fit(loaders(), max_steps=9)
    with tempfile.TemporaryDirectory() as folder:
        half.save_checkpoint(f"{folder}/half")
        rest = trainer(**settings)
        rest.load_checkpoint(f"{folder}/half")
    torch.rand(100, device="cuda")  # what was drawn in between must not matter
    rest.fit(loaders(), max_steps=20)
    differences = whole.get_state().diff(rest.get_state())
    assert not differences, "\n".join(differences)
    return f"identical after 20 updates, loss {whole.metrics['train/loss']:.4f}"


@claim("resume on CUDA is exact, dropout included (fp32, deterministic algorithms)")
def _resume() -> str:
    return interrupted(performance=mtf.PerformanceConfig(deterministic=True))


@claim("resume is exact with the generators' states saved (step_rng='saved')")
def _saved_rng() -> str:
    return interrupted(performance=mtf.PerformanceConfig(deterministic=True), step_rng="saved")


@claim("AMP bf16 trains and resumes exactly")
def _bf16() -> str:
    return interrupted(performance=mtf.PerformanceConfig(precision="bf16", deterministic=True))


@claim("AMP fp16 trains with a loss scaler and resumes exactly")
def _fp16() -> str:
    return interrupted(performance=mtf.PerformanceConfig(precision="fp16", clip_grad_norm=1.0, deterministic=True))


@claim("torch.compile trains, and its state has the model's own names")
def _compile() -> str:
    compiled = trainer(performance=mtf.PerformanceConfig(compile_model=True))
    compiled.fit(loaders(), max_steps=20)
    plain = trainer()
    plain.fit(loaders(), max_steps=20)
    assert list(compiled.get_state()["model"]) == list(plain.get_state()["model"])
    return f"loss {compiled.metrics['train/loss']:.4f}, without {plain.metrics['train/loss']:.4f}"


@claim("device prefetch overlaps copies with computing")
def _prefetch() -> str:
    seconds = {}
    work = torch.randn(4096, 4096, device="cuda")

    def heavy(tr: Any, batch: Any, *place: Any) -> Any:
        for _ in range(4):
            torch.mm(work, work)
        return tr.model(batch["x"][:, :64]).mean()

    for prefetch in (False, True):
        made = trainer(performance=mtf.PerformanceConfig(device_prefetch=prefetch))
        made.set_training_step(heavy)
        data = {name: mtf.ArrayLoader({"x": torch.randn(2048, 65536)}, 256) for name in "ab"}
        made.fit(data, max_steps=5)
        torch.cuda.synchronize()
        started = time.perf_counter()
        made.fit(data, max_steps=45)
        torch.cuda.synchronize()
        seconds[prefetch] = (time.perf_counter() - started) / 40
    return f"{seconds[True] * 1e3:.2f} ms per update with it, {seconds[False] * 1e3:.2f} without"


@claim("nccl with one rank: DDP and FSDP2 give the weights of a process without a group")
def _nccl() -> str:
    plain = trainer()
    plain.fit(loaders(), max_steps=10)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    figures = []
    for strategy in ("ddp", "fsdp"):
        made = trainer(ddp=mtf.DDPConfig(strategy=strategy))
        assert torch.distributed.get_backend() == "nccl"
        made.fit(loaders(), max_steps=10)
        state, reference = made.get_state()["model"], plain.get_state()["model"]
        figures.append(f"{strategy} {max(float((state[n] - reference[n]).abs().max()) for n in reference):.1e}")
    return "largest difference " + ", ".join(figures)


def main() -> int:
    """Runs every check."""
    if not torch.cuda.is_available():
        print("gpu-check: there is no GPU here, so nothing was shown. The checks would be:")
        for text, _ in CLAIMS:
            print(f"  {text}")
        return NO_GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    print(f"gpu-check on {torch.cuda.get_device_name()}, torch {torch.__version__}")
    failed = 0
    for text, check in CLAIMS:
        try:
            print(f"  held: {text}: {check()}")
        except Exception:
            failed += 1
            print(f"  FAILED: {text}\n{traceback.format_exc()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
