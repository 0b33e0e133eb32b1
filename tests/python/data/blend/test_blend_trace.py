"""``trace`` says what each row of a batch is; ``find`` is its inverse, at any step, after edits, ramps and curves."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtf

LENGTHS = {"web": 53, "code": 11, "math": 2}
SEEDS = st.integers(0, 2**32)


class Numbers(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, num: int) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.tensor(row)


class Given(mtf.RowSource):
    """Rows in an order of their own."""

    def __init__(self, num: int) -> None:
        self.num = num

    def num_rows(self) -> int:
        return self.num

    def row(self, pass_: int, place: int, key: int) -> torch.Tensor:
        return torch.tensor(place)


def sources(kind: str = "arrays") -> dict[str, Any]:
    if kind == "datasets":
        return {name: Numbers(num) for name, num in LENGTHS.items()}
    if kind == "row sources":
        return {name: Given(num) for name, num in LENGTHS.items()}
    return {name: torch.arange(num) for name, num in LENGTHS.items()}


def blend(kind: str = "arrays", **options: Any) -> mtf.Blend:
    return mtf.Blend(sources(kind), **{"weights": [0.6, 0.3, 0.1], "global_batch_size": 7, "seed": 3, **options})


@pytest.mark.parametrize("kind", ["arrays", "datasets", "row sources"])
@pytest.mark.parametrize("by_source", [False, True])
def test_trace_names_the_row_of_every_rank(kind: str, by_source: bool) -> None:
    whole = blend(kind, by_source=by_source, seed=None)
    multi = mtf.MultiLoader({"b": whole}, seed=5)
    parts = [
        mtf.MultiLoader({"b": blend(kind, by_source=by_source, seed=None)}, seed=5, rank=rank, world_size=3)
        for rank in range(3)
    ]
    for step, (_, *batches) in enumerate(islice(zip(multi, *parts, strict=True), 9)):
        trace = whole.trace(step, world_size=3)
        assert [sample.place for sample in trace] == list(range(7))
        for rank, batch in enumerate(batches):
            mine = trace.of_rank(rank)
            if by_source:
                held = {(name, row): int(x) for name, part in batch.data.items() for row, x in enumerate(part)}
                assert {(sample.source, sample.rank_row): sample.row for sample in mine} == held
            else:
                assert [sample.row for sample in mine] == batch.data.tolist()
                assert [sample.rank_row for sample in mine] == list(range(len(batch.data)))
                assert trace.of_rank(rank, 1)[0] == mine[1]
    multi.close()


@pytest.mark.parametrize("kind", ["arrays", "datasets", "row sources"])
@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED", "RANDOM"])
@pytest.mark.parametrize("by_source", [False, True])
def test_find_is_the_inverse_of_trace_for_every_sample(kind: str, order: str, by_source: bool) -> None:
    source = blend(kind, order=order, by_source=by_source, global_batch_size=[(0, 3), (9, 8)])
    drawn = Counter(sample for step in range(40) for sample in source.trace(step, world_size=3))
    found = Counter(
        sample
        for name, num in LENGTHS.items()
        for row in range(num)
        for sample in source.find(name, row=row, stop=40, world_size=3)
    )
    assert found == drawn
    assert source.find("web", row=1, start=4, stop=20) == [
        sample for step in range(4, 20) for sample in source.trace(step) if sample[4:] == ("web", sample.pass_, 1)
    ]


@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED", "RANDOM"])
@pytest.mark.parametrize("when_spent", ["others", "stop", {"math": "code"}])
def test_sources_that_are_spent_are_found_where_they_were_drawn(order: str, when_spent: Any) -> None:
    source = blend(order=order, max_passes={"web": 2, "code": 3, "math": 4}, when_spent=when_spent)
    steps = source.plan(1000).num_batches
    assert 5 < steps < 25
    drawn = Counter(sample for step in range(steps) for sample in source.trace(step))
    rows = [(name, row) for name, num in LENGTHS.items() for row in range(num)]
    found = Counter(sample for name, row in rows for sample in source.find(name, row=row, stop=99))
    assert found == drawn
    with pytest.raises(mtf.ConfigError, match=f"there is no batch {steps}: it has {steps} batches with max_passes"):
        source.trace(steps)


@settings(max_examples=150)
@given(
    step=st.integers(0, 10**9),
    sizes=st.lists(st.tuples(st.integers(1, 10**8), st.integers(3, 70)), max_size=4),
    weights=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    order=st.sampled_from(["EVEN", "SHUFFLED"]),
    curve=st.booleans(),
    place=st.integers(0, 2),
    seed=SEEDS,
)
def test_find_is_the_inverse_of_trace_at_any_step(
    step: int, sizes: Any, weights: Any, order: str, curve: bool, place: int, seed: int
) -> None:
    stages, first = [(0, 5)], 0
    for batches, size in sizes:
        first += batches
        stages.append((first, size))
    points: list[tuple[int, list[float]]] = [(0, weights), (10, weights[::-1]), (step // 2 + 11, [0.2, 0.5, 0.3])]
    mix: dict[str, Any] = {"weight_curve": mtf.WeightCurve(points)} if curve else {"weights": weights}
    source = mtf.Blend(sources(), **mix, order=order, global_batch_size=stages, seed=seed)
    sample = source.trace(step, world_size=2)[place]
    assert sample in source.find(sample.source, row=sample.row, start=step, stop=step + 1, world_size=2)
    # The row comes once in a pass, and in this one here.
    around = source.find(sample.source, row=sample.row, start=max(0, step - 300), stop=step + 300, world_size=2)
    assert [other for other in around if other.pass_ == sample.pass_] == [sample]


@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED", "RANDOM"])
def test_edits_are_followed_also_after_a_resume(order: str) -> None:
    source = blend(order=order)
    given = []
    batches = iter(source)

    def take(num: int) -> None:
        for _ in range(num):
            given.append((len(given), next(batches).tolist()))

    take(2)
    source.update_weights([0.1, 0.5, 0.4])
    take(2)
    source.add_source("news", torch.arange(5), 0.5)
    take(1)
    source.remove_source("code")
    take(3)
    resumed = mtf.Blend(
        sources(),
        weights=[0.6, 0.3, 0.1],
        global_batch_size=7,
        seed=3,
        order=order,
        source_factories={"news": lambda: torch.arange(5)},
    )
    resumed.load_state_dict(source.state_dict())
    for one in (source, resumed):
        for step, rows in given:
            assert [sample.row for sample in one.trace(step)] == rows
        found = [
            sample
            for name, num in {**LENGTHS, "news": 5}.items()
            for row in range(num)
            for sample in one.find(name, row=row, stop=len(given))
        ]
        assert sorted(found) == sorted(sample for step, _ in given for sample in one.trace(step))


def test_a_source_that_was_added_and_removed_has_to_be_given_to_be_traced() -> None:
    source = blend()
    batches = iter(source)
    next(batches)
    source.add_source("news", torch.arange(5), 5.0)
    next(batches)
    source.remove_source("news")
    next(batches)
    resumed = blend()
    resumed.load_state_dict(source.state_dict())
    assert resumed.trace(0)[0] == source.trace(0)[0]
    with pytest.raises(mtf.ConfigError, match="source 'news' was part of the blend and isn't given here"):
        resumed.trace(1)


def corpora(tmp_path: Path) -> dict[str, mtf.TokenRows]:
    rng = np.random.default_rng(0)
    rows: dict[str, mtf.TokenRows] = {}
    for number, (name, documents) in enumerate({"web": 60, "help": 25}.items()):
        texts = [np.append(rng.integers(1, 200, rng.integers(1, 50)), 0) for _ in range(documents)]
        for part in range(3):
            np.concatenate(texts[part::3]).astype("uint16").tofile(tmp_path / f"{name}.{part}.bin")
        corpus = mtf.TokenCorpus(f"{tmp_path}/{name}.*.bin", dtype="uint16", eos=0)
        assert corpus.num_documents == documents
        rows[name] = corpus.packed(32) if number else corpus.windows(32)
    return rows


def test_tokens_of_a_batch_are_named_and_documents_are_found(tmp_path: Path) -> None:
    rows = corpora(tmp_path)
    source = mtf.Blend(rows, weights=[0.5, 0.5], global_batch_size=6)
    files = {str(path): np.fromfile(path, "uint16") for path in tmp_path.glob("*.bin")}
    holding: dict[tuple[str, int], set[Any]] = {}
    for step, batch in enumerate(islice((b for _ in range(9) for b in source), 30)):
        trace = source.trace(step)
        for sample in trace:
            inputs, at = batch["input_ids"][sample.place].numpy(), 0
            for origin in trace.tokens(sample.place):
                size = origin.end - origin.begin
                assert np.array_equal(files[origin.file][origin.begin : origin.end], inputs[at : at + size])
                assert origin.document is not None
                holding.setdefault((sample.source, origin.document), set()).add(sample)
                at += size
            assert not inputs[at:].any()
    for name, documents in (("web", 60), ("help", 25)):
        for document in range(documents):
            found = source.find(name, document=document, stop=30)
            assert found == sorted(holding.get((name, document), set()))
    data = source.trace(3).to_dict()
    assert data["samples"][2]["tokens"][0]["file"] in files
    assert "web.0.bin[" in str(source.trace(3))
    assert repr(source.trace(3, world_size=2)) == "BatchTrace(step=3, 6 samples, world_size=2)"


def test_a_nested_blend_is_traced_by_its_own_batches() -> None:
    inner = blend(seed=None)
    multi = mtf.MultiLoader({"blend": inner, "other": mtf.ArrayLoader(torch.arange(30), 3)}, seed=9)
    seen = 0
    for _ in range(2):
        for batch in multi:
            if batch.name == "blend":
                number = batch.pass_ * len(inner) + batch.batch
                assert [sample.row for sample in inner.trace(number)] == batch.data.tolist()
                seen += 1
    assert seen == 2 * len(inner)
    assert len(inner.find("math", row=0)) > len(inner.find("math", row=0, stop=len(inner)))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"source": "wbe", "row": 0}, "no source 'wbe'; did you mean 'web'"),
        ({"source": "web"}, "either row or document, but they are None and None"),
        ({"source": "web", "row": 0, "document": 0}, "either row or document, but they are 0 and 0"),
        ({"source": "web", "row": 53}, r"source 'web': row must be in \[0, 53\), but is 53"),
        ({"source": "web", "row": -1}, "row must be at least 0, but is -1"),
        ({"source": "web", "document": 0}, "source 'web' has no documents.*give row"),
        ({"source": "web", "row": 0, "start": -1}, "start must be at least 0, but is -1"),
        ({"source": "web", "row": 0, "world_size": 0}, "world_size must be at least 1, but is 0"),
    ],
)
def test_what_there_is_not_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        blend().find(**asked)


def test_a_document_that_there_is_not_is_refused(tmp_path: Path) -> None:
    source = mtf.Blend(corpora(tmp_path), global_batch_size=4)
    with pytest.raises(mtf.ConfigError, match=r"source 'web': document must be in \[0, 60\), but is 60"):
        source.find("web", document=60)
    with pytest.raises(IndexError, match=r"place must be in \[0, 4\), but is 4"):
        source.trace(0).tokens(4)
    with pytest.raises(mtf.ConfigError, match="step must be at least 0, but is -1"):
        source.trace(-1)


def test_a_look_back_leaves_the_names_in_force() -> None:
    source = blend()
    batches = iter(source)
    next(batches)
    source.add_source("news", torch.arange(5), 5.0)
    for look in (source.samples, source.trace):
        look(0)
        assert source.names == ["web", "code", "math", "news"]
    source.update_weights({"web": 1, "code": 1, "math": 1, "news": 1})
