"""Whole numbers and weights: what isn't one is refused by name before any work, and numpy's integers are integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mtf

ROWS = torch.arange(40).reshape(40, 1)
CORPUS = mtf.TokenCorpus(np.arange(400) % 50, eos=0)


def blend(**options: Any) -> mtf.Blend:
    return mtf.Blend({"a": ROWS, "b": ROWS}, **{"global_batch_size": 4, "seed": 1, **options})


COUNTS: dict[str, Callable[[Any], Any]] = {
    "batch_size": lambda n: mtf.ArrayLoader(ROWS, batch_size=n),
    "global_batch_size": lambda n: mtf.ArrayLoader(ROWS, global_batch_size=n),
    "prefetch_batches": lambda n: mtf.ArrayLoader(ROWS, batch_size=2, prefetch_batches=n),
    "length": lambda n: mtf.Windows(ROWS[:, 0], n),
    "stride": lambda n: mtf.Windows(ROWS[:, 0], 4, n),
    "length ": lambda n: CORPUS.windows(n),
    "length  ": lambda n: CORPUS.packed(n),
    "max_open_files": lambda n: mtf.TokenCorpus(np.arange(10), max_open_files=n),
    "global_batch_size ": lambda n: blend(global_batch_size=n),
    r"global_batch_size\[0\]: samples": lambda n: blend(global_batch_size=[(0, n)]),
    "batches_per_pass": lambda n: blend(batches_per_pass=n),
    r"max_passes\['a'\]": lambda n: blend(max_passes={"a": n}),
    "batches": lambda n: blend().plan(n),
    "tokens": lambda n: mtf.Blend({"a": CORPUS.windows(4)}, global_batch_size=2).plan(tokens=n),
    "batches_per_update": lambda n: blend().plan(2, batches_per_update=n),
    "world_size": lambda n: blend().trace(0, world_size=n),
    "SpikeGuard: max_rollbacks": lambda n: mtf.SpikeGuard(max_rollbacks=n),
    "OnlineMixing: every": lambda n: mtf.OnlineMixing(lambda found: found.weights, every=n),
}
POSITIONS: dict[str, Callable[[Any], Any]] = {
    "step": lambda n: blend().samples(n),
    "step ": lambda n: blend().trace(n),
    "start": lambda n: blend().plan(2, start=n),
    "start ": lambda n: blend().find("a", row=0, start=n, stop=2),
    "stop": lambda n: blend().find("a", row=0, stop=n),
    "source 'a': row": lambda n: blend().find("a", row=n, stop=2),
    "consumed_samples": lambda n: blend().batch_sampler(n),
    "num_threads": lambda n: blend(num_threads=n),
}


@pytest.mark.parametrize("name", [*COUNTS, *POSITIONS])
@pytest.mark.parametrize("wrong", [1.5, "3", True, float("nan"), {2}])
def test_what_is_no_whole_number_is_refused(name: str, wrong: Any) -> None:
    with pytest.raises(mtf.ConfigError, match=rf"{name.strip()}.* must be a (whole )?number of .*, but is "):
        {**COUNTS, **POSITIONS}[name](wrong)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_begin_at_one(name: str) -> None:
    with pytest.raises(mtf.ConfigError, match=rf"{name.strip()} must be at least 1, but is 0"):
        COUNTS[name](0)


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_begin_at_zero(name: str) -> None:
    with pytest.raises(mtf.ConfigError, match=rf"{name.strip()} must be (at least 0|in \[0, 40\)), but is -1"):
        POSITIONS[name](-1)


@pytest.mark.parametrize("name", [*COUNTS, *POSITIONS])
@pytest.mark.parametrize("number", [np.int64(4), np.uint8(4)])
def test_integers_of_numpy_are_integers(name: str, number: Any) -> None:
    {**COUNTS, **POSITIONS}[name](number)


WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "Blend": lambda w: blend(weights={"a": 1.0, "b": w}),
    "Blend, in order": lambda w: blend(weights=[1.0, w]),
    "tokens": lambda w: mtf.Blend(
        {"a": CORPUS.windows(4), "b": CORPUS.windows(4)}, [1.0, w], global_batch_size=2, weights_count="tokens"
    ),
    "update_weights": lambda w: blend().update_weights({"a": 1.0, "b": w}),
    "set_weight": lambda w: blend().set_weight("b", w),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf")])
def test_a_weight_of_a_blend_is_named_by_its_source(name: str, wrong: float) -> None:
    with pytest.raises(mtf.ConfigError, match=r"weights\['b'\] must be finite and not negative, but is "):
        WEIGHTS[name](wrong)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("wrong", ["0.5", None, [1], b"1"])
def test_a_weight_is_a_number(name: str, wrong: Any) -> None:
    with pytest.raises(mtf.ConfigError, match=r"weights\['b'\] must be a number, but is "):
        WEIGHTS[name](wrong)


EDITS: dict[str, Callable[[mtf.MultiLoader], Any]] = {
    "update_weights": lambda loader: loader.update_weights([1.0, "x"]),
    "set_weight": lambda loader: loader.set_weight("b", "x"),
    "add_source": lambda loader: loader.add_source("c", mtf.ArrayLoader(ROWS, batch_size=2), weight="x"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_weight_of_a_mixture_is_a_number_and_nothing_changes_else(edit: str) -> None:
    config = mtf.MultiDataLoaderConfig(sampling_strategy="WEIGHTED", dataloader_weights=[1.0, 2.0])
    loaders = {"a": mtf.ArrayLoader(ROWS, batch_size=2), "b": mtf.ArrayLoader(ROWS, batch_size=2)}
    with mtf.MultiLoader(loaders, config) as loader:
        before = loader.state_dict()
        with pytest.raises(mtf.ConfigError, match="must be a number, but is 'x'"):
            EDITS[edit](loader)
        assert loader.state_dict() == before


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(mtf.ConfigError, match="weights must have a positive one, but all are 0"):
        blend(weights={"a": 0, "b": 0})
    changed = blend()
    with pytest.raises(mtf.ConfigError, match="weights must have a positive one, but all are 0"):
        changed.update_weights([0.0, 0.0])
    assert changed.weights == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("eos", [70_000, -1, 1.5, True, "0"])
def test_an_end_that_the_files_can_not_hold_is_refused(eos: Any) -> None:
    with pytest.raises(mtf.ConfigError, match=r"eos must be a token that the corpus can hold, uint16 from 0 to 65535"):
        mtf.TokenCorpus(np.arange(10, dtype=np.uint16), eos=eos)
