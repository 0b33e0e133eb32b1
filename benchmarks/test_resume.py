"""Row E: from a saved state in the middle of an epoch to the first batch."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Measure
from mixtures import power
from streams import take, time_per_item
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

import mtf
from mtf import EpochLengthPolicy, MultiDataLoaderConfig, _core

BATCH = 8
NUM_ROWS = 10**6
DATA = TensorDataset(torch.arange(NUM_ROWS))
WEIGHTS = [0.7, 0.3]


class Numbers(IterableDataset[int]):
    """An order that only reading it gives."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(NUM_ROWS))


def stateful(**options: Any) -> Any:
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    return loader(DATA, BATCH, **options)


# Loaders in which mtf computes a position (for the last one its sampler draws again), and those that are read up to it.
COMPUTED: dict[str, Callable[[], Any]] = {
    "mtf, ArrayLoader": lambda: mtf.ArrayLoader(DATA.tensors[0], BATCH, shuffle=True),
    "mtf, DataLoader": lambda: DataLoader(DATA, BATCH, shuffle=True),
    "mtf, DataLoader, 2 workers": lambda: DataLoader(DATA, BATCH, shuffle=True, num_workers=2),
    "mtf, ThreadLoader": lambda: mtf.ThreadLoader(DATA, BATCH, shuffle=True),
    "mtf, DataLoader, weighted sampler": lambda: DataLoader(
        DATA, BATCH, sampler=WeightedRandomSampler(torch.ones(NUM_ROWS), NUM_ROWS)
    ),
}
READ: dict[str, Callable[[], Any]] = {
    "mtf, StatefulDataLoader": lambda: stateful(shuffle=True),
    "mtf, IterableDataset": lambda: DataLoader(Numbers(), BATCH),
}


def resume_mtf(tool: str, step: int) -> Callable[[], Any]:
    config = MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        dataloader_weights=WEIGHTS,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=10**7,
    )
    make = {**COMPUTED, **READ}[tool]
    loaders = lambda: {name: make() for name in "ab"}  # noqa: E731
    with mtf.MultiLoader(loaders(), config) as mixture:
        if tool in READ:
            take(iter(mixture), step)()
            state = mixture.state_dict()
        else:
            state, schedule = mixture.state_dict(), copy.copy(mixture.schedule)
            schedule.advance(step)
            state["schedule"] = schedule.state_dict()  # as if these steps had been read

    def run() -> Any:
        with mtf.MultiLoader(loaders(), config) as fresh:
            fresh.load_state_dict(state)
            return next(iter(fresh))

    assert run().step == step
    return run


def by_hand(step: int) -> Callable[[], Any]:
    """The bound: a batch of a shuffled pass by its number."""
    place = divmod(step, NUM_ROWS // BATCH)
    return lambda: DATA.tensors[0][torch.from_numpy(_core.Sampler(NUM_ROWS, BATCH, shuffle=True).batch(*place))]


def replay(step: int) -> Callable[[], Any]:
    """What a loader without a state costs: the batches before the position once more."""

    def run() -> Any:
        streams = [itertools.chain.from_iterable(itertools.repeat(DataLoader(DATA, BATCH, shuffle=True)))] * 2
        return next(itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), step, None))

    return run


def resume_torchdata(step: int, **options: Any) -> Callable[[], Any]:
    loader = stateful(shuffle=True, **options)
    stream = iter(loader)
    take(stream, step)()
    state = loader.state_dict()
    del stream

    def run() -> Any:
        fresh = stateful(shuffle=True, **options)
        fresh.load_state_dict(state)
        return next(iter(fresh))

    return run


def resume_accelerate(step: int) -> Callable[[], Any]:
    skip = pytest.importorskip("accelerate").skip_first_batches
    return lambda: next(iter(skip(DataLoader(DATA, BATCH, shuffle=True), step)))


def resume_datasets(step: int) -> Callable[[], Any]:
    datasets = pytest.importorskip("datasets")
    columns = {"x": np.arange(NUM_ROWS)}

    def make() -> Any:
        parts = [rows.to_iterable_dataset().batch(BATCH) for _ in range(2)]
        return datasets.interleave_datasets(parts, probabilities=WEIGHTS, seed=0)

    rows = datasets.Dataset.from_dict(columns)
    mixed = make()
    take(iter(mixed), step)()
    state = mixed.state_dict()

    def run() -> Any:
        fresh = make()
        fresh.load_state_dict(state)
        return next(iter(fresh))

    return run


def resume_grain(step: int) -> Callable[[], Any]:
    grain = pytest.importorskip("grain")

    def make() -> Any:
        parts = [grain.MapDataset.range(len(DATA)).shuffle(seed=seed).repeat().batch(BATCH) for seed in range(2)]
        return iter(grain.MapDataset.mix(parts, WEIGHTS).to_iter_dataset())

    state = make().get_state()
    state["next_index"] = step

    def run() -> Any:
        fresh = make()
        fresh.set_state(state)
        return next(fresh)

    return run


def resume_lightning(step: int) -> Callable[[], Any]:
    """A plain DataLoader in Lightning's Trainer, which continues with the first rows, not those at the position."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[int] = []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.seen.append(int(batch[0][0]))
            return self.layer(batch[0][:1].float() / NUM_ROWS).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    directory = tempfile.mkdtemp()
    path = Path(directory) / "state.ckpt"

    def fit(max_steps: int, **options: Any) -> tuple[Any, Module]:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(
            accelerator="cpu", max_steps=max_steps, default_root_dir=directory, enable_model_summary=False, **quiet
        )
        module = Module()
        trainer.fit(module, DataLoader(DATA, BATCH), **options)
        return trainer, module

    logging.getLogger("lightning").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fit(step)[0].save_checkpoint(path)
        first = fit(step + 1, ckpt_path=path)[1].seen[0]
    assert first == 0, "Lightning resumes at the position: rename its row"

    def run() -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return fit(step + 1, ckpt_path=path)

    return run


PEERS: dict[str, Callable[[int], Callable[[], Any]]] = {
    "by hand, one shuffled batch": by_hand,
    "replay": replay,
    "torchdata StatefulDataLoader": resume_torchdata,
    "torchdata StatefulDataLoader, 2 workers": lambda step: resume_torchdata(step, num_workers=2),
    "accelerate skip_first_batches": resume_accelerate,
    "datasets, unshuffled": resume_datasets,
    "grain": resume_grain,
    "Lightning Trainer, on the wrong rows": resume_lightning,
}
# Their states can be had only by reading up to there: as far as that takes seconds.
FARTHEST = {
    "torchdata StatefulDataLoader, 2 workers": 10**3,
    "Lightning Trainer, on the wrong rows": 10**3,
    "mtf, StatefulDataLoader": 10**4,
    "mtf, IterableDataset": 10**4,
    "replay": 10**5,
    **dict.fromkeys(("torchdata StatefulDataLoader", "accelerate skip_first_batches", "datasets, unshuffled"), 10**5),
}


@pytest.mark.parametrize("step", [10**k for k in range(3, 7)], ids=power)
@pytest.mark.parametrize("tool", [*COMPUTED, *READ, *PEERS])
def test_resume(measure: Measure, pick: Any, tool: str, step: int) -> None:
    computed = tool in COMPUTED or tool == "grain" or "by hand" in tool
    steps = pick((10**3, 10**4, 10**5, 10**6), (10**3, 10**5) if computed else (10**3,), (10**3,))
    if step not in steps or step > FARTHEST.get(tool, 10**6):
        pytest.skip("only in the full form, or not this far")
    quick_enough = computed and "workers" not in tool and "sampler" not in tool
    measure(
        resume_mtf(tool, step) if tool.startswith("mtf") else PEERS[tool](step),
        row="E",
        work="resume to the first batch",
        size=f"at step {power(step)}",
        tool=tool,
        rounds=10 if quick_enough else 1 if step > 10**3 else 3,
        warmup=1 if quick_enough else 0,
        bound=time_per_item(by_hand(step), 1, rounds=20),
    )
