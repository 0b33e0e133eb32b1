"""Row E: from a saved state in the middle of an epoch to the first batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Measure
from torch.utils.data import DataLoader, TensorDataset

import mtf
from mtf import EpochLengthPolicy, MultiDataLoaderConfig

BATCH = 8
STEPS = {"10^3": 10**3, "10^5": 10**5}
DATA = TensorDataset(torch.arange(4 * 10**5))


def loaders_of(kind: str) -> dict[str, Any]:
    if kind == "mtf, ArrayLoader":
        return {name: mtf.ArrayLoader(DATA.tensors[0], BATCH, shuffle=True) for name in "ab"}
    if kind == "mtf, ThreadLoader":
        return {name: mtf.ThreadLoader(DATA, BATCH, shuffle=True) for name in "ab"}
    return {name: DataLoader(DATA, BATCH, shuffle=True) for name in "ab"}


def resume_mtf(kind: str, step: int) -> Callable[[], Any]:
    config = MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        dataloader_weights=[0.7, 0.3],
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=10**6,
    )
    with mtf.MultiLoader(loaders_of(kind), config) as mixture:
        state = mixture.state_dict()
        mixture.schedule.advance(step)
        state["schedule"] = mixture.schedule.state_dict()  # as if these steps had been read
        mixture.schedule.seek(0, 0)

    def run() -> Any:
        with mtf.MultiLoader(loaders_of(kind), config) as fresh:
            fresh.load_state_dict(state)
            return next(iter(fresh))

    assert run().step == step
    return run


def replay(step: int) -> Callable[[], Any]:
    """What a loader without a state costs: the batches before the position once more."""

    def run() -> Any:
        streams = [itertools.chain.from_iterable(itertools.repeat(DataLoader(DATA, BATCH, shuffle=True)))] * 2
        return next(itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), step, None))

    return run


def resume_torchdata(step: int) -> Callable[[], Any]:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    loader = stateful(DATA, BATCH, shuffle=True)
    next(itertools.islice(loader, step % len(loader), None))
    state = loader.state_dict()

    def run() -> Any:
        fresh = stateful(DATA, BATCH, shuffle=True)
        fresh.load_state_dict(state)
        return next(iter(fresh))

    return run


def resume_grain(step: int) -> Callable[[], Any]:
    grain = pytest.importorskip("grain")

    def make() -> Any:
        parts = [grain.MapDataset.range(len(DATA)).shuffle(seed=seed).repeat().batch(BATCH) for seed in range(2)]
        return iter(grain.MapDataset.mix(parts, [0.7, 0.3]).to_iter_dataset())

    state = make().get_state()
    state["next_index"] = step

    def run() -> Any:
        fresh = make()
        fresh.set_state(state)
        return next(fresh)

    return run


TOOLS: dict[str, Callable[[int], Callable[[], Any]]] = {
    "mtf, ArrayLoader": lambda step: resume_mtf("mtf, ArrayLoader", step),
    "mtf, DataLoader": lambda step: resume_mtf("mtf, DataLoader", step),
    "mtf, ThreadLoader": lambda step: resume_mtf("mtf, ThreadLoader", step),
    "replay": replay,
    "torchdata StatefulDataLoader": resume_torchdata,
    "grain": resume_grain,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("tool", TOOLS)
def test_resume(measure: Measure, tool: str, step: str) -> None:
    slow = not tool.startswith("mtf") and tool != "grain"
    measure(
        TOOLS[tool](STEPS[step]),
        row="E",
        work="resume to the first batch",
        size=f"at step {step}",
        tool=tool,
        rounds=1 if slow else 10,
        warmup=0 if slow else 1,
    )
