"""Rows are named and found in every batch of a blend whose sources grew at a resume, before and after."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

import mtf
from mtf.errors import ConfigError

NAMES = ("web", "code")
FIRST = {"web": 1000, "code": 2000}


class Numbers(Dataset[int]):
    def __init__(self, name: str, num: int) -> None:
        self.first, self.num = FIRST[name], num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> int:
        return self.first + index


def blend(sizes: dict[str, int], weights: Any, batch: int, kind: str, **options: Any) -> mtf.Blend:
    sources: dict[str, Any] = {}
    for name, num in sizes.items():
        rows = np.arange(FIRST[name], FIRST[name] + num)
        sources[name] = {"arrays": rows, "datasets": Numbers(name, num), "windows": mtf.Windows(np.repeat(rows, 2), 2)}[
            kind
        ]
    return mtf.Blend(sources, weights, global_batch_size=batch, **options)


def take(loader: mtf.MultiLoader, num: int) -> list[list[int]]:
    found: list[list[int]] = []
    while len(found) < num:
        for batch in itertools.islice(iter(loader), num - len(found)):
            found.append(np.asarray(batch.data).reshape(len(batch.data), -1)[:, 0].tolist())
    return found


def require_traced(source: mtf.Blend, batches: list[list[int]], sizes: dict[str, int], more: int = 0) -> None:
    """``trace`` gives the rows that the batches had, and ``find`` finds each row where ``trace`` has it."""
    for step, batch in enumerate(batches):
        assert [FIRST[sample.source] + sample.row for sample in source.trace(step)] == batch, step
    stop = len(batches) + more
    traced = Counter(sample for step in range(stop) for sample in source.trace(step, world_size=1))
    found: Counter[Any] = Counter()
    for name, num in sizes.items():
        for row in range(num):
            samples = source.find(name, row=row, stop=stop)
            assert samples == sorted(samples)
            found.update(samples)
    assert found == traced


@pytest.mark.parametrize("order", ["RANDOM", "SHUFFLED", "EVEN"])
@pytest.mark.parametrize("kind", ["arrays", "datasets", "windows"])
def test_a_source_that_grew_in_a_pass_is_traced_in_all_batches(kind: str, order: str) -> None:
    with mtf.MultiLoader({"blend": blend({"web": 20, "code": 9}, [2, 1], 4, kind, order=order)}, seed=4) as loader:
        batches = take(loader, 9)  # web: in pass 1
        state = loader.state_dict()
    sizes = {"web": 27, "code": 9}
    source = blend(sizes, [2, 1], 4, kind, order=order)
    with mtf.MultiLoader({"blend": source}, seed=4) as loader:
        loader.load_state_dict(state, on_other_mixture="edit")
        batches += take(loader, 16)
        require_traced(source, batches, sizes, more=10)
        state = loader.state_dict()
    source = blend(sizes, [2, 1], 4, kind, order=order)
    with mtf.MultiLoader({"blend": source}, seed=4) as loader:  # a resume without an edit
        loader.load_state_dict(state)
        require_traced(source, batches, sizes)


@settings(deadline=None, max_examples=40)
@given(
    start=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    stages=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 9), st.integers(0, 8)), min_size=2, max_size=5
    ),
    order=st.sampled_from(["RANDOM", "SHUFFLED", "EVEN"]),
    kind=st.sampled_from(["arrays", "datasets", "windows"]),
    weight=st.sampled_from([0.3, 1.0, 3.0]),
)
def test_any_growths_are_traced(start: Any, stages: Any, order: str, kind: str, weight: float) -> None:
    state: Any = None
    batches: list[list[int]] = []
    web, code = start
    for more_web, more_code, size, num in stages:
        web, code = web + more_web, code + more_code
        source = blend({"web": web, "code": code}, [weight, 1.0], size, kind, order=order)
        with mtf.MultiLoader({"blend": source}, seed=4) as loader:
            if state is not None:
                loader.load_state_dict(state, on_other_mixture="edit")
            batches += take(loader, num)
            require_traced(source, batches, {"web": web, "code": code}, more=3)
            state = loader.state_dict()


def test_other_data_under_a_name_that_was_removed_are_traced_as_they_were() -> None:
    source = blend({"web": 20, "code": 9}, [2, 1], 4, "arrays")
    given = []
    batches = iter(source)
    given += [next(batches).tolist() for _ in range(2)]
    source.remove_source("code")
    given += [next(batches).tolist() for _ in range(1)]
    source.add_source("code", np.arange(2000, 2005), 2.0)
    given += [next(batches).tolist() for _ in range(2)]
    require_traced(source, given, {"web": 20, "code": 9})


def test_after_more_edits_than_a_state_keeps_later_batches_are_searched_and_earlier_ones_refused() -> None:
    sizes = {"web": 40, "code": 9}
    with mtf.MultiLoader({"blend": blend(sizes, [2, 1], 4, "arrays", batches_per_pass=100)}, seed=4) as loader:
        batches = take(loader, 3)
        state = loader.state_dict()
    sizes["web"] = 90
    source = blend(sizes, [2, 1], 4, "arrays", batches_per_pass=100)
    with mtf.MultiLoader({"blend": source}, seed=4) as loader:
        loader.load_state_dict(state, on_other_mixture="edit")
        for number in range(20):
            source.update_weights([1 + number % 3, 1])
            batches += take(loader, 1)
        require_traced(source, batches, sizes)
        state = loader.state_dict()
    source = blend(sizes, [2, 1], 4, "arrays", batches_per_pass=100)
    with mtf.MultiLoader({"blend": source}, seed=4) as loader:
        loader.load_state_dict(state)
        for ask in (lambda: source.trace(21), lambda: source.find("web", row=0)):
            with pytest.raises(ConfigError, match="draws before step 88 of this epoch are out of reach"):
                ask()
        found = [
            s for name, num in sizes.items() for r in range(num) for s in source.find(name, row=r, start=22, stop=60)
        ]
        assert sorted(found) == sorted(sample for step in range(22, 60) for sample in source.trace(step))
        assert [FIRST[sample.source] + sample.row for sample in source.trace(22)] == batches[22]


class Given(mtf.RowSource):
    """Rows in an order of their own."""

    def __init__(self, num: int) -> None:
        self.num = num

    def num_rows(self) -> int:
        return self.num

    def row(self, pass_: int, place: int, key: int) -> int:
        return 2000 + place


def test_a_row_source_that_came_back_with_more_rows_is_traced_as_it_was() -> None:
    source = mtf.Blend({"web": Numbers("web", 20), "code": Given(3)}, [1, 1], global_batch_size=4)
    batches = iter(source)
    given = [next(batches).tolist() for _ in range(2)]
    source.remove_source("code")
    given += [next(batches).tolist()]
    source.add_source("code", Given(9), 2.0)
    given += [next(batches).tolist() for _ in range(2)]
    require_traced(source, given, {"web": 20, "code": 9})


def test_tokens_that_came_back_under_a_name_are_refused_before() -> None:
    def rows(first: int) -> mtf.TokenRows:
        documents = np.arange(0, 200, 10)
        tokens = np.arange(first, first + 190, dtype=np.uint16)
        return mtf.TokenCorpus(tokens, documents=documents).windows(10)

    source = mtf.Blend({"web": rows(0), "code": rows(300)}, [1, 1], global_batch_size=4)
    batches = iter(source)
    for _ in range(2):
        next(batches)
    source.remove_source("code")
    source.add_source("code", rows(600), 1.0)
    next(batches)
    message = "pass 0 of source 'code' can't be searched: the source was removed since and came back"
    for ask in (lambda: source.trace(0), lambda: source.find("code", row=0), lambda: source.find("code", document=0)):
        with pytest.raises(ConfigError, match=message):
            ask()
    assert [sample.row for sample in source.trace(2) if sample.source == "code"]
    assert len(source.find("code", document=3, start=2)) > 0
    assert len(source.find("web", document=3)) > 0


@pytest.mark.parametrize("kind", ["arrays", "datasets"])
def test_samples_before_a_growth_are_read_as_they_were_or_not_at_all(kind: str) -> None:
    with mtf.MultiLoader({"blend": blend({"web": 20, "code": 9}, [2, 1], 4, kind)}, seed=4) as loader:
        batches = take(loader, 12)
        state = loader.state_dict()
    source = blend({"web": 27, "code": 9}, [2, 1], 4, kind)
    with mtf.MultiLoader({"blend": source}, seed=4) as loader:
        loader.load_state_dict(state, on_other_mixture="edit")
        batches += take(loader, 12)
        samples = source.dataset()
        read = 0
        for number, row in enumerate(row for batch in batches for row in batch):
            if kind == "arrays" and number < 48 and row < FIRST["code"]:
                with pytest.raises(ConfigError, match="samples before 48 can't be read: source 'web' has other rows"):
                    samples[number]
            else:
                assert int(samples[number][1]) == row
                read += 1
        assert read == 96 if kind == "datasets" else 48 < read < 96


def test_a_row_that_there_never_was_is_refused() -> None:
    with mtf.MultiLoader({"blend": blend({"web": 20, "code": 9}, [2, 1], 4, "arrays")}, seed=4) as loader:
        take(loader, 3)
        state = loader.state_dict()
    source = blend({"web": 27, "code": 9}, [2, 1], 4, "arrays")
    with mtf.MultiLoader({"blend": source}, seed=4) as loader:
        loader.load_state_dict(state, on_other_mixture="edit")
        with pytest.raises(ConfigError, match=r"row must be in \[0, 27\), but is 27"):
            source.find("web", row=27)
        assert source.find("web", row=26, stop=3) == []
