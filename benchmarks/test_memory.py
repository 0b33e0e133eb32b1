"""Rows A, B and C: bytes held by a schedule, by the order of a shuffled pass, and by what is fetched ahead."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HandOn
from mixtures import SIZES, power
from tables import Measurement
from torch.utils.data import DataLoader, Dataset

import mtf
from mtf import EpochLengthPolicy, MultiDataLoaderConfig

_PROGRAM = Path(__file__).with_name("held_memory.py")


@cache
def held(case: str, copies: int, *sizes: int) -> float:
    """Bytes that one of `held_memory.CASES` holds."""
    pytest.importorskip("psutil")
    if case.split()[0] in ("grain", "datasets", "torch"):
        pytest.importorskip(case.split()[0])
    command = [sys.executable, "-W", "ignore", _PROGRAM, case, str(copies), *map(str, sizes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=150)
    return max(0.0, float(done.stdout.split()[-1]))


@pytest.mark.parametrize("num_steps", [10**k for k in (3, 6, 9)], ids=power)
@pytest.mark.parametrize("tool", ["mtf", "mtf RANDOM"])
def test_memory_does_not_grow_with_steps(hand_on: HandOn, pick: Any, tool: str, num_steps: int) -> None:
    if num_steps > pick(10**9, 10**6, 10**3):
        pytest.skip("only in the full form")
    case = tool.replace("mtf", "schedule")
    copies = 10 if num_steps > 10**6 and tool == "mtf RANDOM" else pick(500, 500, 20)
    hand_on(
        Measurement(
            "A",
            "memory of a schedule over 64 sources",
            f"of {power(num_steps)} steps",
            tool,
            held(case, copies, 64, num_steps),
            unit="bytes",
        )
    )


@pytest.mark.parametrize("n", [*SIZES, 10**4, 10**5])
@pytest.mark.parametrize("tool", ["mtf", "arrays (Megatron-LM)", "list (random.choices)", "datasets", "grain"])
def test_memory_of_a_million_decisions(hand_on: HandOn, pick: Any, tool: str, n: int) -> None:
    if n > pick(10**5, 10**4, 4) or (tool != "mtf" and n > 1024) or (tool in ("datasets", "grain") and n > 64):
        pytest.skip("only in the full form")
    num_steps = pick(10**6, 10**6, 10**3)
    case, copies = {
        "mtf": ("schedule", max(2, 20_000 // n)),
        "arrays (Megatron-LM)": ("arrays", 1),
        "list (random.choices)": ("list", 1),
        "datasets": ("datasets", 1),
        "grain": ("grain mix", 200),
    }[tool]
    if pick(False, tool == "datasets", tool in ("datasets", "grain")):
        pytest.skip("only in the full form")
    value = held(case, copies, n, num_steps)
    hand_on(Measurement("A", "memory of 10^6 decisions", f"n={n}", tool, value, unit="bytes"))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("first_sample", [10**3, 10**9], ids=power)
def test_memory_of_a_blend(hand_on: HandOn, pick: Any, first_sample: int, n: int) -> None:
    if n > pick(1024, 64, 4):
        pytest.skip("only in the full form")
    value = held("blend", pick(20, 10, 2), n, first_sample)
    work = f"memory of a blend of n arrays and its first batch, at sample {power(first_sample)}"
    hand_on(Measurement("C", work, f"n={n}", "mtf Blend", value, unit="bytes"))


@pytest.mark.parametrize("num_samples", [10**k for k in range(4, 9)], ids=power)
@pytest.mark.parametrize("tool", ["mtf", "torch RandomSampler", "grain"])
def test_memory_of_the_first_batch(hand_on: HandOn, pick: Any, tool: str, num_samples: int) -> None:
    if num_samples > pick(10**8, 10**6, 10**4 if tool == "mtf" else 0) or (
        tool == "grain" and num_samples not in pick((10**6, 10**8), (), ())
    ):
        pytest.skip("only in the full form")
    case = {"mtf": "permutation", "grain": "grain shuffle"}.get(tool, tool)
    copies = {"mtf": 2000, "grain": 200}.get(tool, max(1, 10**6 // num_samples))
    value = held(case, copies, num_samples)
    work = "memory of the first batch of 256 of a shuffled pass"
    hand_on(Measurement("B", work, f"of {power(num_samples)}", tool, value, unit="bytes"))


ROWS_OF_BATCH = 8
BATCH_BYTES = ROWS_OF_BATCH * 1024 * 4
BUDGET_BATCHES = 20


class Rows(Dataset[torch.Tensor]):
    """Rows of 4 KiB; counts those that it has made, in all processes."""

    def __init__(self, made: Any = None) -> None:
        self.made = made

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.made is not None:
            with self.made.get_lock():
                self.made.value += 1
        return torch.full((1024,), float(index))


def peak_of_mtf(num_sources: int, kind: str, num_steps: int) -> tuple[int, int]:
    """Largest number of bytes held at once, and the budget with one batch."""
    budget = BUDGET_BATCHES * BATCH_BYTES
    loaders: list[Any] = [
        mtf.ArrayLoader(torch.zeros(64, 1024), ROWS_OF_BATCH)
        if kind == "ArrayLoader"
        else mtf.ThreadLoader(Rows(), ROWS_OF_BATCH)
        for _ in range(num_sources)
    ]
    config = MultiDataLoaderConfig(
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=num_steps,
        prefetch_workers=4,
        prefetch_batches=1000,
        prefetch_bytes=budget,
    )
    with mtf.MultiLoader(loaders, config) as mixture:
        for _ in mixture:
            time.sleep(0.0002)  # a consumer for which something is kept ready
        return mixture.stats()["engine"]["peak_bytes_held"], budget + BATCH_BYTES


def peak_of_torch(num_sources: int) -> int:
    """Bytes made and not taken by one DataLoader with one worker per source, after one batch of each."""
    made = multiprocessing.get_context("fork").Value("q", 0)
    loaders = [DataLoader(Rows(made), ROWS_OF_BATCH, num_workers=1) for _ in range(num_sources)]
    streams = [iter(loader) for loader in loaders]
    for stream in streams:
        next(stream)
    at_rest, num_made = 0, -1
    while at_rest < 3:
        at_rest = at_rest + 1 if made.value == num_made else 0
        num_made = made.value
        multiprocessing.connection.wait([], 0.1)
    return num_made * 4096 - num_sources * BATCH_BYTES


@pytest.mark.parametrize("num_sources", [1, 4, 16, 64])
@pytest.mark.parametrize("tool", ["mtf, ArrayLoader", "mtf, ThreadLoader", "torch, 1 worker per DataLoader"])
def test_bytes_held(hand_on: HandOn, pick: Any, tool: str, num_sources: int) -> None:
    if num_sources not in pick((1, 4, 16, 64), (4, 64) if "mtf" in tool else (4, 16), (4,) if "mtf" in tool else ()):
        pytest.skip("only in the full form")
    if tool.startswith("mtf"):
        peak, allowed = peak_of_mtf(num_sources, tool.split()[1], pick(2000, 1000, 100))
        assert peak <= allowed
    else:
        peak, allowed = peak_of_torch(num_sources), None
    work = f"bytes held ahead, batches of 32 KiB, budget of {BUDGET_BATCHES} batches"
    hand_on(Measurement("C", work, f"n={num_sources}", tool, peak, allowed, "bytes"))
