"""Another mixture at a resume: one edit at the position, after which no sample was lost or repeated."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, WeightedRandomSampler

import mtf
from mtf.errors import ConfigError, StateMismatch

NAMES = ("web", "code", "math")


class Numbers(Dataset[int]):
    """The numbers of a corpus; larger ones came later."""

    def __init__(self, num: int) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> int:
        return index


def loader(kind: str, num: int, batch_size: int, *, shuffle: bool = True, drop_last: bool = False) -> Any:
    if kind == "array":
        return mtf.ArrayLoader(np.arange(num), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    if kind == "threads":
        return mtf.ThreadLoader(Numbers(num), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    return DataLoader(Numbers(num), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)


def config(names: list[str], weights: list[float] | None = None, **options: Any) -> mtf.MultiDataLoaderConfig:
    options = {"epoch_length_policy": "fixed_num_steps", "steps_per_epoch": 400, **options}
    return mtf.MultiDataLoaderConfig(
        sampling_strategy="weighted", dataloader_weights=weights, dataloader_names=names, **options
    )


def mixture(sources: dict[str, tuple[str, int, int]], weights: list[float], **options: Any) -> mtf.MultiLoader:
    loaders = {name: loader(*source) for name, source in sources.items()}
    return mtf.MultiLoader(loaders, config(list(sources), weights, **options), seed=5)


def take(multi: mtf.MultiLoader, num: int) -> list[Any]:
    return list(itertools.islice(iter(multi), num))


def rows_of(batches: list[Any]) -> dict[tuple[str, int], list[int]]:
    """Rows by (source, pass), in order."""
    rows: dict[tuple[str, int], list[int]] = defaultdict(list)
    for batch in batches:
        rows[batch.name, batch.pass_] += batch.data.tolist()
    return rows


def require_whole_passes(batches: list[Any], sizes: dict[str, list[int]]) -> None:
    """Each pass but the last of a source has its rows once each: those of a size that the corpus had."""
    passes = rows_of(batches)
    last = {name: max(pass_ for known, pass_ in passes if known == name) for name, _ in passes}
    for (name, pass_), rows in passes.items():
        if pass_ < last[name]:
            assert len(rows) in sizes[name], (name, pass_)
            assert sorted(rows) == list(range(len(rows))), (name, pass_)
        else:
            assert len(set(rows)) == len(rows), (name, pass_)


SOURCE = st.tuples(st.sampled_from(["array", "map", "threads"]), st.integers(3, 30), st.integers(1, 7))


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[dict[str, tuple[str, int, int]], list[float], int]]:
    """Mixtures one after the other, each with the batches taken of it. A source that was removed stays away."""
    kinds = {name: draw(SOURCE) for name in NAMES}
    sizes = {name: source[1] for name, source in kinds.items()}
    present = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    gone: set[str] = set()
    stages = []
    for _ in range(draw(st.integers(2, 4))):
        sources = {name: (kinds[name][0], sizes[name], draw(st.integers(1, 7))) for name in present}
        weights = [draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for _ in present]
        stages.append((sources, weights, draw(st.integers(0, 25))))
        for name in present:
            sizes[name] += draw(st.integers(0, 9))
        if len(present) > 1 and draw(st.booleans()):
            gone.add(present.pop(draw(st.integers(0, len(present) - 1))))
        free = [name for name in NAMES if name not in present and name not in gone]
        if free and draw(st.booleans()):
            present = [*present, free[0]] if draw(st.booleans()) else [free[0], *present]
    return stages


@settings(deadline=None, max_examples=60)
@given(stages=edits(), order=st.sampled_from(["random", "shuffled", "even"]))
def test_no_row_is_lost_or_repeated_over_any_edits(stages: Any, order: str) -> None:
    state: Any = None
    batches: list[Any] = []
    sizes: dict[str, list[int]] = defaultdict(list)
    for sources, weights, num in stages:
        for name, (_, size, _) in sources.items():
            sizes[name].append(size)
        with mixture(sources, weights, weighted_order=order) as multi:
            if state is not None:
                multi.load_state_dict(state, on_other_mixture="edit")
            batches += take(multi, num)
            state = multi.state_dict()
        with mixture(sources, weights, weighted_order=order) as again:  # a resume of the same mixture needs no edit
            again.load_state_dict(state)
            assert again.state_dict()["schedule"] == state["schedule"]
    with mixture(sources, weights, weighted_order=order) as multi:
        multi.load_state_dict(state)
        batches += take(multi, 60)
    require_whole_passes(batches, sizes)


def test_a_resume_without_a_difference_is_no_edit() -> None:
    sources = {"web": ("array", 20, 3), "code": ("map", 9, 2)}
    with mixture(sources, [1, 2]) as multi:
        take(multi, 7)
        state = multi.state_dict()
        rest = [batch.data.tolist() for batch in take(multi, 30)]
    with mixture(sources, [1, 2]) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        assert "edits" not in multi.state_dict()
        assert multi.state_dict()["schedule"] == state["schedule"]
        assert [batch.data.tolist() for batch in take(multi, 30)] == rest


def test_the_default_refuses_and_says_the_way_out() -> None:
    with mixture({"web": ("array", 20, 3), "code": ("map", 9, 2)}, [1, 2]) as multi:
        state = multi.state_dict()
    for sources, weights in (
        ({"web": ("array", 20, 3), "code": ("map", 9, 2)}, [2, 2]),
        ({"web": ("array", 20, 4), "code": ("map", 9, 2)}, [1, 2]),
        ({"web": ("array", 90, 3), "code": ("map", 9, 2)}, [1, 2]),
        ({"web": ("array", 20, 3), "code": ("map", 9, 2), "math": ("map", 9, 2)}, [1, 2, 1]),
        ({"web": ("array", 20, 3)}, [1]),
    ):
        with mixture(sources, weights) as multi, pytest.raises(StateMismatch, match="on_other_mixture='edit'"):
            multi.load_state_dict(state)


def test_the_edit_is_logged_once_with_all_its_changes(caplog: pytest.LogCaptureFixture) -> None:
    with mixture({"web": ("array", 20, 3), "code": ("map", 9, 2)}, [1, 2]) as multi:
        take(multi, 5)
        state = multi.state_dict()
    with mixture({"web": ("array", 26, 4), "math": ("map", 8, 2)}, [3, 1], steps_per_epoch=90) as multi:
        caplog.set_level("INFO", "mtf")
        multi.load_state_dict(state, on_other_mixture="edit")
        (edit,) = multi.state_dict()["edits"]
        schedule = multi.state_dict()["schedule"]
        assert [(event["step"], event["kind"]) for event in schedule["events"]] == [(5, "edit")]
        assert multi.config.steps_per_epoch == 90
        assert multi.config.dataloader_weights == [3, 1]
    text = "; ".join(edit["changes"])
    for part in ("removed 'code'", "added 'math'", "steps_per_epoch: 400 -> 90", "web 1, code 2 -> web 3, math 1",
                 "samples of 'web': 20 -> 26", "global batch of 'web': 3 -> 4"):  # fmt: skip
        assert part in text
    assert (edit["epoch"], edit["step"], edit["batches"]) == (0, 5, 5)
    assert [record.getMessage() for record in caplog.records if "another mixture" in record.getMessage()] == [
        f"another mixture from batch 5 of epoch 0 on: {text}"
    ]


def test_a_corpus_that_has_grown_takes_effect_from_its_next_pass() -> None:
    with mixture({"web": ("array", 10, 2)}, [1]) as multi:
        first = take(multi, 2)
        state = multi.state_dict()
    with mixture({"web": ("array", 10, 2)}, [1]) as multi:
        multi.load_state_dict(state)
        unchanged = [batch.data.tolist() for batch in take(multi, 3)]
    with mixture({"web": ("array", 16, 2)}, [1]) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        rest = take(multi, 3)
        assert [batch.data.tolist() for batch in rest] == unchanged
        later = take(multi, 8)
    assert {batch.pass_ for batch in rest} == {0}
    assert sorted(row for batch in first + rest for row in batch.data.tolist()) == list(range(10))
    assert {batch.pass_ for batch in later} == {1}
    assert sorted(row for batch in later for row in batch.data.tolist()) == list(range(16))


def test_edits_that_the_run_made_itself_are_kept_where_the_script_has_not_changed() -> None:
    sources = {"web": ("array", 20, 3), "code": ("map", 9, 2)}
    with mixture(sources, [1, 2]) as multi:
        take(multi, 5)
        multi.update_weights([5, 1])
        take(multi, 5)
        state = multi.state_dict()
    with mixture({**sources, "math": ("map", 9, 2)}, [1, 2, 4]) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        assert multi.config.dataloader_weights == [5, 1, 4]


def test_a_curve_and_a_strategy_are_edited_too() -> None:
    loaders = {"web": loader("array", 20, 2), "code": loader("array", 20, 2)}
    with mtf.MultiLoader(loaders, config(["web", "code"], [1, 1], weighted_order="even"), seed=1) as multi:
        take(multi, 10)
        state = multi.state_dict()
    curve = mtf.WeightCurve([(0, [1, 0]), (20, [0, 1])], "step")
    with mtf.MultiLoader(loaders, config(["web", "code"], weight_curve=curve, weighted_order="even"), seed=1) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        assert [batch.name for batch in take(multi, 20)] == ["web"] * 10 + ["code"] * 10
    plain = mtf.MultiDataLoaderConfig(
        dataloader_names=["web", "code"], epoch_length_policy="fixed_num_steps", steps_per_epoch=400
    )
    with mtf.MultiLoader(loaders, plain, seed=1) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        assert [batch.name for batch in take(multi, 4)] == ["web", "code", "web", "code"]


def test_a_source_that_was_removed_comes_back_with_its_next_pass() -> None:
    both, one = {"web": ("array", 9, 2), "code": ("array", 9, 2)}, {"web": ("array", 9, 2)}
    with mixture(both, [1, 1], weighted_order="even") as multi:
        take(multi, 4)
        state = multi.state_dict()
    with mixture(one, [1]) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        assert {batch.name for batch in take(multi, 6)} == {"web"}
        state = multi.state_dict()
    with mixture(both, [1, 1], weighted_order="even") as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        assert {batch.pass_ for batch in take(multi, 6) if batch.name == "code"} == {1}


def test_several_ranks_share_the_edited_batches() -> None:
    def parts(world_size: int, num: int, size: int, state: Any) -> tuple[list[list[int]], Any]:
        multis = []
        for rank in range(world_size):
            source = mtf.ArrayLoader(np.arange(num), global_batch_size=size, shuffle=True)
            options = config(["web"], [1])
            multi = mtf.MultiLoader({"web": source}, options, seed=5, rank=rank, world_size=world_size)
            if state is not None:
                multi.load_state_dict(state, on_other_mixture="edit")
            multis.append(multi)
        taken = [take(multi, 6) for multi in multis]
        state = multis[0].state_dict()
        assert all(multi.state_dict() == state for multi in multis)
        for step in range(6):
            weights = [batches[step].weight for batches in taken]
            assert sum(weights) == pytest.approx(world_size)
        rows = [
            [row for batches in taken if batches[step].weight for row in batches[step].data.tolist()]
            for step in range(6)
        ]
        for multi in multis:
            multi.close()
        return rows, state

    found = []
    for world_size in (1, 2, 3):
        first, state = parts(world_size, 40, 5, None)
        second, state = parts(world_size, 47, 7, state)
        third, _ = parts(world_size, 47, 4, state)
        found.append(first + second + third)
    assert found[0] == found[1] == found[2]
    rows = list(itertools.chain.from_iterable(found[0]))
    assert sorted(rows[:40]) == list(range(40))
    assert sorted(rows[40:87]) == list(range(47))
    assert len(set(rows[87:])) == len(rows[87:]) == 4


def test_what_cannot_be_edited_is_one_clear_error_and_changes_nothing() -> None:
    sources = {"web": ("array", 20, 3), "code": ("map", 9, 2)}
    with mixture(sources, [1, 2]) as multi:
        take(multi, 5)
        state = multi.state_dict()
    with mixture({"web": ("array", 19, 3), "code": ("map", 9, 2)}, [1, 2]) as multi:
        before = multi.state_dict()
        with pytest.raises(StateMismatch, match="19 samples here and 20 in the state: a source may grow"):
            multi.load_state_dict(state, on_other_mixture="edit")
        assert multi.state_dict() == before
    loaders = {name: loader(*source) for name, source in sources.items()}
    with (
        mtf.MultiLoader(loaders, config(list(sources), [1, 2]), seed=6) as multi,
        pytest.raises(StateMismatch, match=r"seed: 5 in the state, 6 here.*give the seed"),
    ):
        multi.load_state_dict(state, on_other_mixture="edit")
    with mixture(sources, [1, 2]) as multi, pytest.raises(ConfigError, match="'refuse' or 'edit', but is 'yes'"):
        multi.load_state_dict(state, on_other_mixture="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["replayed", "subset", "shuffling changed"])
def test_a_pass_that_cannot_be_cut_again_is_refused(kind: str) -> None:
    def make(num: int, batch_size: int) -> Any:
        if kind == "replayed":
            return DataLoader(Numbers(num), batch_size, sampler=WeightedRandomSampler([1.0] * num, num))
        if kind == "subset":
            return DataLoader(Numbers(num), batch_size, sampler=SubsetRandomSampler(range(num)))
        return DataLoader(Numbers(num), batch_size, shuffle=num == 20)

    with mtf.MultiLoader({"web": make(20, 2)}, config(["web"], [1]), seed=1) as multi:
        take(multi, 3)
        state = multi.state_dict()
    message = {
        "replayed": "can't be opened at any sample",
        "subset": "add the new ones as a source of their own",
        "shuffling changed": "in order here, but shuffled in the state",
    }
    with (
        mtf.MultiLoader({"web": make(26, 2)}, config(["web"], [1]), seed=1) as multi,
        pytest.raises(StateMismatch, match=message[kind]),
    ):
        multi.load_state_dict(state, on_other_mixture="edit")


def test_a_subset_may_be_cut_into_other_batches() -> None:
    def make(batch_size: int) -> Any:
        return DataLoader(Numbers(30), batch_size, sampler=SubsetRandomSampler(range(5, 25)))

    with mtf.MultiLoader({"web": make(3)}, config(["web"], [1]), seed=1) as multi:
        batches = take(multi, 3)
        state = multi.state_dict()
    with mtf.MultiLoader({"web": make(4)}, config(["web"], [1]), seed=1) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        batches += take(multi, 3)
    assert sorted(rows_of(batches)["web", 0]) == list(range(5, 25))


def test_a_state_of_an_earlier_version_is_edited_in_what_it_says() -> None:
    with mixture({"web": ("array", 20, 3)}, [1]) as multi:
        take(multi, 2)
        state = {name: part for name, part in multi.state_dict().items() if name != "cuts"}
    with mixture({"web": ("array", 20, 3), "code": ("map", 9, 2)}, [1, 1]) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        assert multi.names == ["web", "code"]
    with mixture({"web": ("array", 29, 3)}, [1]) as multi, pytest.raises(StateMismatch, match="an earlier version"):
        multi.load_state_dict(state, on_other_mixture="edit")


def test_token_rows_are_cut_into_other_batches() -> None:
    corpus = mtf.TokenCorpus(torch.arange(1, 400, dtype=torch.int32).numpy())

    def make(batch_size: int) -> mtf.MultiLoader:
        rows = corpus.windows(8, moving=False, boundaries=False, batch_size=batch_size)
        return mtf.MultiLoader({"web": rows}, config(["web"], [1]), seed=1)

    def firsts(batches: list[Any]) -> list[int]:
        return [int(row[0]) for batch in batches for row in batch.data["input_ids"]]

    with make(3) as multi:
        begun = take(multi, 4)
        state = multi.state_dict()
    with make(3) as multi:
        multi.load_state_dict(state)
        want = firsts([batch for batch in take(multi, 40) if batch.pass_ == 0])
    with make(7) as multi:
        multi.load_state_dict(state, on_other_mixture="edit")
        rest = [batch for batch in take(multi, 40) if batch.pass_ == 0]
    assert firsts(rest) == want
    assert len(set(firsts(begun) + want)) == len(begun) * 3 + len(want)


def test_another_seed_is_refused_without_the_advice_to_edit() -> None:
    with mixture({"web": ("map", 20, 2)}, [1.0]) as multi:
        take(multi, 2)
        state = multi.state_dict()
    loaders = {"web": loader("map", 20, 2)}
    with mtf.MultiLoader(loaders, config(["web"], [1.0]), seed=6) as other:
        with pytest.raises(StateMismatch, match="seed: 5 in the state, 6 here\nno edit can change the seed") as caught:
            other.load_state_dict(state)
        assert "on_other_mixture" not in str(caught.value)
        with pytest.raises(StateMismatch, match="seed"):
            other.load_state_dict(state, on_other_mixture="edit")


def test_another_seed_of_a_blend_is_refused_without_the_advice_to_edit() -> None:
    def blend(seed: int) -> mtf.Blend:
        return mtf.Blend({"web": torch.arange(40.0)}, global_batch_size=4, seed=seed)

    with mtf.MultiLoader(blend(1)) as multi:
        take(multi, 2)
        state = multi.state_dict()
    with mtf.MultiLoader(blend(2)) as other:
        with pytest.raises(StateMismatch, match=r"its seed differs, .*no edit can change the seed") as caught:
            other.load_state_dict(state)
        assert "on_other_mixture" not in str(caught.value)
