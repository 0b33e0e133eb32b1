"""Another blend at a resume: one edit at the batch, after which no row was lost or repeated."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

import mtf
from mtf.errors import StateMismatch

NAMES = ("web", "code", "math")
FIRST = {name: 1000 * (i + 1) for i, name in enumerate(NAMES)}


class Numbers(Dataset[int]):
    """The numbers of a corpus; larger ones came later."""

    def __init__(self, name: str, num: int) -> None:
        self.first, self.num = FIRST[name], num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> int:
        return self.first + index


def blend(sizes: dict[str, int], weights: Any, batch: Any, *, kind: str = "arrays", **options: Any) -> mtf.Blend:
    sources: dict[str, Any] = {}
    for name, num in sizes.items():
        rows = np.arange(FIRST[name], FIRST[name] + num)
        sources[name] = Numbers(name, num) if kind == "datasets" else rows
        if kind == "windows":
            sources[name] = mtf.Windows(np.repeat(rows, 2), 2)
    return mtf.Blend(sources, weights, global_batch_size=batch, **options)


def multi(source: mtf.Blend, **options: Any) -> mtf.MultiLoader:
    return mtf.MultiLoader({"blend": source}, seed=4, **options)


def take(loader: mtf.MultiLoader, num: int) -> list[list[int]]:
    """Rows of the next batches, over the ends of epochs."""
    found: list[list[int]] = []
    while len(found) < num:
        for batch in itertools.islice(iter(loader), num - len(found)):
            found.append(np.asarray(batch.data).reshape(len(batch.data), -1)[:, 0].tolist())
    return found


Passes = dict[tuple[str, int], list[int]]


def note(source: mtf.Blend, first: int, batches: list[list[int]], passes: Passes) -> None:
    """Notes the rows by (source, pass), which the blend says, and compares them with what it gave."""
    for number, batch in enumerate(batches, first):
        table = source.samples(number)
        names = [table.names[index] for index in table.source]
        rows = [FIRST[name] + int(row) for name, row in zip(names, table.row, strict=True)]
        assert rows == batch, number
        for name, pass_, row in zip(names, table.pass_.tolist(), table.row.tolist(), strict=True):
            passes[name, pass_].append(row)


def require_whole_passes(passes: Passes, sizes: dict[str, list[int]]) -> None:
    """Each pass but the last of a source has its rows once each: those of a size that the source had."""
    last = {name: max(pass_ for known, pass_ in passes if known == name) for name, _ in passes}
    for (name, pass_), rows in passes.items():
        if pass_ < last[name]:
            assert len(rows) in sizes[name], (name, pass_)
            assert sorted(rows) == list(range(len(rows))), (name, pass_)
        else:
            assert len(set(rows)) == len(rows), (name, pass_)


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[dict[str, int], dict[str, float], int, int]]:
    sizes = {name: draw(st.integers(3, 20)) for name in NAMES}
    present = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    gone: set[str] = set()
    stages = []
    for _ in range(draw(st.integers(2, 4))):
        weights = {name: draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for name in present}
        stages.append(({n: sizes[n] for n in present}, weights, draw(st.integers(1, 9)), draw(st.integers(0, 12))))
        for name in present:
            sizes[name] += draw(st.integers(0, 6))
        if len(present) > 1 and draw(st.booleans()):
            gone.add(present.pop(draw(st.integers(0, len(present) - 1))))
        free = [name for name in NAMES if name not in present and name not in gone]
        if free and draw(st.booleans()):
            present = [*present, free[0]]
    return stages


@settings(deadline=None, max_examples=40)
@given(
    stages=edits(), order=st.sampled_from(["RANDOM", "SHUFFLED", "EVEN"]),
    kind=st.sampled_from(["arrays", "datasets", "windows"]),
)  # fmt: skip
def test_no_row_is_lost_or_repeated_over_any_edits(stages: Any, order: str, kind: str) -> None:
    state: Any = None
    done = 0
    passes: Passes = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    for present, weights, size, num in stages:
        for name, rows in present.items():
            sizes[name].append(rows)
        source = blend(present, weights, size, kind=kind, order=order)
        with multi(source) as loader:
            if state is not None:
                loader.load_state_dict(state, on_other_mixture="edit")
            taken = take(loader, num)
            assert all(len(batch) == size for batch in taken)
            note(source, done, taken, passes)
            done += num
            state = loader.state_dict()
        with multi(blend(present, weights, size, kind=kind, order=order)) as again:  # the same blend needs no edit
            again.load_state_dict(state)
            assert again.state_dict() == state
    present, weights, size, _ = stages[-1]
    source = blend(present, weights, size, kind=kind, order=order)
    with multi(source) as loader:
        loader.load_state_dict(state)
        note(source, done, take(loader, 30), passes)
    require_whole_passes(passes, sizes)


def test_the_default_refuses_and_says_the_way_out() -> None:
    with multi(blend({"web": 20, "code": 9}, [1, 2], 4)) as loader:
        take(loader, 3)
        state = loader.state_dict()
    for other in (
        blend({"web": 20, "code": 9}, [2, 2], 4, batches_per_pass=8),
        blend({"web": 20, "code": 9}, [1, 2], 5, batches_per_pass=8),
        blend({"web": 24, "code": 9}, [1, 2], 4, batches_per_pass=8),
        blend({"web": 20, "code": 9, "math": 5}, [1, 2, 1], 4, batches_per_pass=8),
        blend({"web": 20}, [1], 4, batches_per_pass=8),
    ):
        with multi(other) as loader, pytest.raises(StateMismatch, match="on_other_mixture='edit'"):
            loader.load_state_dict(state)


def test_weights_hold_from_the_batch_on_and_the_edit_is_described() -> None:
    with multi(blend({"web": 200, "code": 200}, [1, 1], 8, order="EVEN")) as loader:
        take(loader, 5)
        state = loader.state_dict()
    with multi(blend({"web": 200, "code": 200}, [7, 1], 16, order="EVEN")) as loader:
        loader.load_state_dict(state, on_other_mixture="edit")
        found = take(loader, 10)
        (edit,) = loader.state_dict()["edits"]
    shares = Counter(row < FIRST["code"] for batch in found for row in batch)
    assert [len(batch) for batch in found] == [16] * 10
    assert shares[True] == pytest.approx(140, abs=2)
    text = "; ".join(edit["changes"])
    assert "blend: dataloader_weights: web 1, code 1 -> web 7, code 1" in text
    assert "blend: global_batch_size: 8 -> 16 samples" in text


def test_the_global_batches_are_the_same_on_any_number_of_ranks() -> None:
    def run(world_size: int) -> list[list[int]]:
        found: list[list[int]] = []
        state: Any = None
        for sizes, batch in (({"web": 30, "code": 11}, 6), ({"web": 41, "code": 11}, 9)):
            loaders = [
                mtf.MultiLoader({"blend": blend(sizes, [3, 1], batch)}, seed=4, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            parts = []
            for loader in loaders:
                if state is not None:
                    loader.load_state_dict(state, on_other_mixture="edit")
                parts.append(take(loader, 9))
            state = loaders[0].state_dict()
            assert all(loader.state_dict() == state for loader in loaders)
            found += [[row for part in same for row in part] for same in zip(*parts, strict=True)]
            for loader in loaders:
                loader.close()
        return found

    assert run(1) == run(2) == run(3)


def test_a_ramp_and_a_curve_continue_in_batches() -> None:
    def make(batch: Any) -> mtf.Blend:
        curve = mtf.WeightCurve([(0, [1, 0]), (20, [0, 1])], "step")
        return blend({"web": 500, "code": 500}, None, batch, weight_curve=curve, order="EVEN")

    with multi(make(4)) as loader:
        take(loader, 10)
        state = loader.state_dict()
    with multi(make([(0, 4), (15, 8)])) as loader:
        loader.load_state_dict(state, on_other_mixture="edit")
        found = take(loader, 20)
    assert [len(batch) for batch in found] == [4] * 5 + [8] * 15
    assert [batch[0] < FIRST["code"] for batch in found] == [True] * 10 + [False] * 10


def test_what_cannot_be_edited_is_one_clear_error_and_changes_nothing() -> None:
    with multi(blend({"web": 20, "code": 9}, [1, 2], 4)) as loader:
        take(loader, 3)
        state = loader.state_dict()
    with multi(blend({"web": 19, "code": 9}, [1, 2], 4, batches_per_pass=8)) as loader:
        before = loader.state_dict()
        with pytest.raises(StateMismatch, match="'web' has 19 samples here and 20 in the state"):
            loader.load_state_dict(state, on_other_mixture="edit")
        assert loader.state_dict() == before
    with (
        multi(blend({"web": 20, "code": 9}, [2, 2], 4, seed=9)) as loader,
        pytest.raises(StateMismatch, match="the seed of the blend differs"),
    ):
        loader.load_state_dict(state, on_other_mixture="edit")
    old = {**state, "sources": {"blend": {**state["sources"]["blend"]}}}
    data = {name: value for name, value in old["sources"]["blend"]["state"].items() if name != "initial"}
    old["sources"]["blend"]["state"] = data
    with (
        multi(blend({"web": 20, "code": 9}, [2, 2], 4)) as loader,
        pytest.raises(StateMismatch, match="an earlier version of mtf saved it"),
    ):
        loader.load_state_dict(old, on_other_mixture="edit")


def test_caps_are_kept_and_may_be_changed() -> None:
    sizes = {"web": 200, "code": 10}
    with multi(blend(sizes, [1, 1], 4, max_passes={"code": 2}, batches_per_pass=60)) as loader:
        batches = take(loader, 3)
        state = loader.state_dict()
    with multi(blend({**sizes, "math": 30}, [1, 1, 1], 5, max_passes={"code": 3}, batches_per_pass=60)) as loader:
        loader.load_state_dict(state, on_other_mixture="edit")
        batches += take(loader, 40)
    counts = Counter(row for batch in batches for row in batch if FIRST["code"] <= row < FIRST["code"] + 1000)
    assert set(counts.values()) == {3}
