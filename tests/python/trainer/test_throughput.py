"""Tokens per second, FLOP/s and MFU, and memory: right numbers, and no part of the state."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import config, loader, model, step, trainer

import mtf
from mtf.trainer.reporting.throughput import Throughput, peak_flops, resident_bytes, waiting

CPU = torch.device("cpu")


class Counted(nn.Module):
    """Says its operations."""

    flops_per_sample = 7.0

    def flops_per_token(self) -> float:
        return 6.0 * 100


def test_rates_are_what_was_added_over_the_time() -> None:
    settings = mtf.LoggingConfig(peak_flops=1e5, log_memory=True)
    throughput = Throughput(Counted(), CPU, settings)
    throughput.add(3.0, torch.tensor(40))
    throughput.add(5.0, 60)
    row = throughput.row(2.0, samples=8)
    assert row["throughput/items_per_s"] == 4.0
    assert row["throughput/tokens_per_s"] == 50.0
    assert row["throughput/flops_per_s"] == 600.0 * 50
    assert row["throughput/mfu"] == pytest.approx(0.3)
    assert row["memory/rss_bytes"] == pytest.approx(resident_bytes(), rel=0.2)
    assert "memory/cuda_peak_bytes" not in row
    without = throughput.row(2.0, samples=8)
    assert without["throughput/flops_per_s"] == 7.0 * 8 / 2
    assert "throughput/tokens_per_s" not in without


def test_a_model_that_counts_tokens_needs_them_from_the_step() -> None:
    class Tokens(nn.Module):
        flops_per_token = 6.0

    throughput = Throughput(Tokens(), CPU, mtf.LoggingConfig())
    with pytest.warns(UserWarning, match="the training step returns no 'num_tokens'"):
        assert throughput.row(1.0, samples=3) == {}
    assert throughput.row(1.0, samples=3) == {}  # said once


@pytest.mark.parametrize(("name", "flops"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("X1", None)])
def test_the_peak_of_known_gpus(name: str, flops: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0)) == flops
    assert peak_flops(CPU) is None


def test_they_are_in_rows_and_not_in_the_state() -> None:
    def run(*, counts: bool) -> mtf.Trainer:
        def counted(trainer: Any, *args: Any) -> Any:
            return {**step(trainer, *args), **({"num_tokens": 12} if counts else {})}

        logging = mtf.LoggingConfig(
            logger_type="none", progress_bar=False, log_scalars_every_n_steps=2, log_memory=counts
        )
        made = trainer(config(logging=logging), training_step=counted)
        made.fit([loader(16, 1)], max_steps=4)
        return made

    found, plain = run(counts=True), run(counts=False)
    assert found.metrics["throughput/tokens_per_s"] > 0
    assert found.metrics["memory/rss_bytes"] > 0
    state = found.get_state()["metrics"]
    assert not any(name.startswith(("throughput/", "memory/")) for name in state)
    assert mtf.TrainerState({"m": found.get_state()["model"]}) == mtf.TrainerState({"m": plain.get_state()["model"]})
    assert set(state) - set(plain.get_state()["metrics"]) == {"train/num_tokens", "train/dl0/num_tokens"}
    assert model() is not None


@pytest.mark.parametrize(
    ("elapsed_s", "waited_s", "by_loader", "words"),
    [
        (100.0, 29.0, {"web": 29.0}, None),
        (4.0, 3.9, {"web": 3.9}, None),  # workers that start
        (100.0, 98.0, {"web": 5.0, "disk": 93.0}, "98% waiting for data, most of it for loader 'disk'"),
        (100.0, 40.0, {"web": 14.0, "disk": 13.0, "net": 13.0}, "40% waiting for data"),
        (100.0, 40.0, {"web": 40.0}, "40% waiting for data"),
        (100.0, 40.0, {}, "40% waiting for data"),
    ],
)
def test_much_waiting_is_said_with_the_loader(
    elapsed_s: float, waited_s: float, by_loader: dict[str, float], words: str | None
) -> None:
    assert waiting(elapsed_s, waited_s, by_loader) == words


class Slow(torch.utils.data.Dataset[Any]):
    """Sleeps for each batch."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.002)
        return torch.zeros(3), torch.zeros(1)


def test_the_last_line_of_a_run_names_the_slow_loader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mtf.trainer.reporting.throughput._SHORTEST_S", 0.0)
    monkeypatch.setattr("mtf.trainer.reporting.throughput._MUCH_WAITING", 0.0)
    settings = config(["fast", "slow"], logging=mtf.LoggingConfig(logger_type="none"))
    run = trainer(settings)
    slow = torch.utils.data.DataLoader(Slow(), batch_size=4)
    run.fit({"fast": loader(16, 1), "slow": slow}, max_epochs=1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r" · \d+% waiting for data, most of it for loader 'slow'", last)
