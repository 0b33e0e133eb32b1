"""Rows are named and found in every step of an epoch whose sources grew or got other batches at a resume."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtf
from mtf.errors import ConfigError
from mtf.trace import RunTrace

Sources = dict[str, tuple[int, int]]
"""Name -> rows and batch size."""


def mixture(sources: Sources, order: str = "shuffled", *, steps: int = 40, **options: Any) -> mtf.MultiLoader:
    loaders = {n: mtf.ArrayLoader(np.arange(num), batch_size=size, **options) for n, (num, size) in sources.items()}
    return mtf.MultiLoader(loaders, config(list(sources), order, steps), seed=5)


def config(names: list[str], order: str = "shuffled", steps: int = 40) -> mtf.MultiDataLoaderConfig:
    return mtf.MultiDataLoaderConfig(
        sampling_strategy="weighted",
        weighted_order=order,
        dataloader_weights=[2.0, 1.0][: len(names)],
        dataloader_names=names,
        epoch_length_policy="fixed_num_steps",
        steps_per_epoch=steps,
    )


def require_traced(multi: mtf.MultiLoader, batches: list[Any], sources: Sources, epoch: int, steps: int = 40) -> None:
    """``trace`` gives the rows that the batches had, and ``find`` finds each row where ``trace`` has it."""
    for batch in batches:
        assert [sample.row for sample in multi.trace(batch)] == batch.data.tolist(), batch
        if batch.epoch == epoch:
            assert list(multi.trace(epoch=epoch, step=batch.step)) == list(multi.trace(batch))
    traced = Counter((step, sample) for step in range(steps) for sample in multi.trace(epoch=epoch, step=step))
    found: Counter[Any] = Counter()
    for name, (num, _) in sources.items():
        for row in range(num):
            drawn = multi.find(name, row=row, epoch=epoch)
            assert drawn == sorted(drawn)
            found.update((one.step, one.sample) for one in drawn)
    assert found == traced


@settings(deadline=None, max_examples=60)
@given(
    start=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    stages=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 7), st.integers(1, 7), st.integers(0, 11)),
        min_size=2,
        max_size=5,
    ),
    order=st.sampled_from(["random", "shuffled", "even"]),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_any_edits_are_traced(start: Any, stages: Any, order: str, shuffle: bool, drop_last: bool) -> None:
    state: Any = None
    batches: list[Any] = []
    rows = dict(zip(("web", "code"), start, strict=True))
    for more_web, more_code, web, code, num in stages:
        rows["web"] += more_web
        rows["code"] += more_code
        sources = {n: (rows[n], min(size, *start)) for n, size in (("web", web), ("code", code))}
        with mixture(sources, order, shuffle=shuffle, drop_last=drop_last) as multi:
            if state is not None:
                multi.load_state_dict(state, on_other_mixture="edit")
            while num > 0:
                taken = list(itertools.islice(iter(multi), num))
                batches += taken
                num -= len(taken)
            require_traced(multi, batches, sources, multi.epoch)
            state = multi.state_dict()
    with mixture(sources, order, shuffle=shuffle, drop_last=drop_last) as multi:
        multi.load_state_dict(state)
        require_traced(multi, batches, sources, multi.epoch)
        assert multi.state_dict() == state


def test_an_edit_of_an_epoch_before_is_remembered_for_its_batches() -> None:
    with mixture({"web": (20, 3), "code": (9, 2)}, steps=10) as multi:
        batches = list(multi) + list(itertools.islice(iter(multi), 4))
        state = multi.state_dict()
    sources = {"web": (26, 5), "code": (9, 2)}
    with mixture(sources, steps=10) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        batches += list(multi) + list(multi)
        require_traced(multi, batches, sources, 1, 10)
        require_traced(multi, batches, sources, 2, 10)


def test_what_a_state_does_not_say_is_refused() -> None:
    with mixture({"web": (20, 3), "code": (9, 2)}) as multi:
        batches = list(itertools.islice(iter(multi), 9))
        state = multi.state_dict()
    with mixture({"web": (26, 5), "code": (9, 2)}) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        state = multi.state_dict()
    assert list(state.pop("past_cuts")) == ["web"]
    with mixture({"web": (26, 5), "code": (9, 2)}) as multi:
        multi.load_state_dict(state)
        step = next(batch.step for batch in batches if batch.name == "web")
        message = f"step {step} of epoch 0 can't be traced: source 'web' had other .* before step 9 of epoch 0"
        with pytest.raises(ConfigError, match=message):
            multi.trace(step=step)
        with pytest.raises(ConfigError, match="source 'web' had other data or other batches before step 9"):
            multi.find("web", row=0)
        assert len(multi.find("code", row=0)) > 1
        assert len(multi.trace(step=9)) > 0


def test_other_data_under_a_name_that_was_removed_are_refused() -> None:
    with mixture({"web": (20, 3), "code": (9, 2)}) as multi:
        batches = list(itertools.islice(iter(multi), 6))
        multi.remove_source("code")
        batches += itertools.islice(iter(multi), 3)
        multi.add_source("code", mtf.ArrayLoader(np.arange(30), batch_size=4), 1.0)
        since = list(itertools.islice(iter(multi), 9))
        first = next(batch for batch in batches if batch.name == "code")
        with pytest.raises(ConfigError, match=r"source 'code' had other data .* before step 9 of epoch 0"):
            multi.trace(first)
        with pytest.raises(ConfigError, match="source 'code' had other data"):
            multi.find("code", row=0)
        assert {batch.name for batch in since} == {"web", "code"}
        for batch in since + [batch for batch in batches if batch.name == "web"]:
            assert [sample.row for sample in multi.trace(batch)] == batch.data.tolist()


def fit(folder: Path, loaders: Any, steps: int, resume: bool) -> list[tuple[str, list[int]]]:
    seen: list[tuple[str, list[int]]] = []

    def step(trainer: mtf.Trainer, batch: Any, batch_idx: int, dataloader_idx: int, name: str) -> torch.Tensor:
        seen.append((name, batch.tolist()))
        return trainer.model(torch.ones(1, 1)).mean()

    model = torch.nn.Linear(1, 1)
    settings = mtf.TrainerConfig(
        multi=config(list(loaders)),
        checkpoint=mtf.CheckpointConfig(root_dir=str(folder), save_every_n_steps=1, max_checkpoints=100),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        seed=5,
    )
    trainer = mtf.Trainer(settings, model, torch.optim.SGD(model.parameters(), lr=0.1), training_step=step)
    options: Any = {"resume_from": "latest", "on_other_mixture": "edit"} if resume else {}
    trainer.fit(loaders, max_steps=steps, **options)
    return seen


@pytest.mark.parametrize("kind", ["arrays", "blend"])
def test_a_checkpoint_traces_the_steps_before_an_edit(kind: str, tmp_path: Path) -> None:
    def loaders(web: int, size: int) -> Any:
        if kind == "blend":
            parts = {"web": np.arange(web), "code": np.arange(9)}
            return {"text": mtf.Blend(parts, [2, 1], global_batch_size=size)}
        arrays = {"web": (web, size), "code": (9, 2)}
        return {n: mtf.ArrayLoader(np.arange(num), batch_size=batch) for n, (num, batch) in arrays.items()}

    seen = fit(tmp_path, loaders(20, 3), 9, resume=False)
    seen += fit(tmp_path, loaders(26, 5), 20, resume=True)
    run = RunTrace(tmp_path / "step-00000020")
    traced: Counter[Any] = Counter()
    for step, (name, rows) in enumerate(seen):
        batch = run.trace(0, step)
        assert batch.rows is not None
        assert (batch.source, [sample.row for sample, _ in batch.rows]) == (name, rows)
        traced.update((step, sample) for sample, _ in batch.rows)
    found = Counter(
        (one.drawn.step, one.drawn.sample)
        for name, num in (("web", 26), ("code", 9))
        for row in range(num)
        for one in run.find(name, row, None)
        if one.drawn.step < len(seen)
    )
    assert found == traced
