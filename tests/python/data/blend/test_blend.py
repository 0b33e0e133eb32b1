"""A blend's batches are those that arithmetic says, whatever reads them and wherever they are interrupted."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset

import mtf
from mtf.testing import assert_resumes_exactly

LENGTHS = {"web": 5000, "code": 243, "math": 7}
WEIGHTS = {"web": 0.7, "code": 0.2, "math": 0.1}
OFFSETS = {name: number * 100_000 for number, name in enumerate(LENGTHS)}


def arrays() -> dict[str, Any]:
    """Rows whose `x` is the row's number in the source plus the source's offset."""
    return {
        name: {"x": torch.arange(n) + OFFSETS[name], "y": torch.full((n, 3), float(OFFSETS[name]))}
        for name, n in LENGTHS.items()
    }


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """The same rows as a dataset."""

    def __init__(self, name: str) -> None:
        self.num, self.offset = LENGTHS[name], OFFSETS[name]

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(row + self.offset), "y": torch.full((3,), float(self.offset))}


def blend(data: dict[str, Any] | None = None, **options: Any) -> mtf.Blend:
    given = {"weights": WEIGHTS, "global_batch_size": 64, **options}
    return mtf.Blend(arrays() if data is None else data, **given)


def numbers(batches: Any, num: int) -> list[list[int]]:
    return [batch["x"].tolist() for batch in islice(batches, num)]


def forever(source: mtf.Blend) -> Iterator[Any]:
    while True:
        yield from source


def expected(source: mtf.Blend, step: int) -> list[int]:
    table = source.samples(step)
    return [OFFSETS[table.names[i]] + int(row) for i, row in zip(table.source, table.row, strict=True)]


@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED", "RANDOM"])
def test_batches_are_the_samples_that_arithmetic_says(order: str) -> None:
    source = blend(order=order, seed=3)
    schedule = mtf.Schedule(
        mtf.MultiDataLoaderConfig(
            sampling_strategy="WEIGHTED",
            weighted_order=order,
            dataloader_weights=list(WEIGHTS.values()),
            epoch_length_policy="FIXED_NUM_STEPS",
            steps_per_epoch=10**6,
        ),
        lengths=list(LENGTHS.values()),
        seed=source._run.schedule.seed,
    )
    key = source._run.key
    names = list(LENGTHS)
    for step, batch in enumerate(islice(source, 20)):
        wanted = []
        for draw in (schedule.at(p) for p in range(64 * step, 64 * step + 64)):
            name = names[draw.source]
            source_key = mtf.fold_in(mtf.fold_in(key, "source"), name)
            row = mtf.Permutation(LENGTHS[name], mtf.fold_in(source_key, draw.pass_))[draw.batch]
            wanted.append(OFFSETS[name] + row)
        assert batch["x"].tolist() == wanted == expected(source, step)
        assert (batch["y"][:, 0] == torch.tensor([OFFSETS[names[i]] for i in source.samples(step).source])).all()


def test_each_pass_of_a_small_source_takes_every_row_once() -> None:
    source = blend(seed=1)
    drawn = [row for step in range(200) for row in expected(source, step) if row // 100_000 == 1]
    for begin in range(0, len(drawn) - 243, 243):
        assert len(set(drawn[begin : begin + 243])) == 243


def test_no_batch_is_short_and_shares_are_exact() -> None:
    source = blend(global_batch_size=640, seed=1)
    for step in [0, 1, 17, 10**6, 10**9]:
        counts = Counter(source.samples(step).source.tolist())
        assert counts == {0: 448, 1: 128, 2: 64}


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_parts_of_ranks_laid_end_to_end_are_the_batch(world_size: int) -> None:
    for data in (arrays(), {name: Numbers(name) for name in LENGTHS}):
        whole = mtf.MultiLoader({"b": blend(data)}, seed=4)
        parts = [
            mtf.MultiLoader({"b": blend(data)}, seed=4, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for batch, *of_ranks in islice(zip(whole, *parts, strict=True), 10):
            assert torch.cat([part.data["x"] for part in of_ranks]).tolist() == batch.data["x"].tolist()
            assert sum(part.weight * len(part.data["x"]) / part.weight for part in of_ranks) == 64
            assert sum(part.weight for part in of_ranks) == pytest.approx(world_size)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True},
                                     {"num_threads": 2}])  # fmt: skip
def test_datasets_give_the_batches_of_arrays(options: dict[str, Any]) -> None:
    data = {name: Numbers(name) for name in LENGTHS}
    assert numbers(blend(data, seed=3, **options), 30) == numbers(blend(seed=3), 30)


def test_arrays_and_datasets_mix() -> None:
    data = {"web": arrays()["web"], "code": Numbers("code"), "math": arrays()["math"]}
    source, reference = blend(data, seed=3), blend(seed=3)
    for batch, wanted in islice(zip(source, reference, strict=True), 20):
        assert torch.equal(batch["x"], wanted["x"])
        assert torch.equal(batch["y"], wanted["y"])


def test_a_tensor_dataset_is_gathered_natively_and_looks_as_torch_collates_it() -> None:
    data = {
        "a": TensorDataset(torch.arange(50), torch.ones(50, 2)),
        "b": TensorDataset(torch.arange(9), torch.ones(9, 2)),
    }
    source = mtf.Blend(data, global_batch_size=8)
    assert source.is_native
    batch = next(iter(source))
    assert isinstance(batch, list)
    assert [tuple(part.shape) for part in batch] == [(8,), (8, 2)]


def test_windows_are_gathered_natively() -> None:
    tokens = {"a": np.arange(1000, dtype=np.uint16), "b": np.arange(5000, 5100, dtype=np.uint16)}
    source = mtf.Blend({name: mtf.Windows(t, 9, 8) for name, t in tokens.items()}, global_batch_size=16, seed=2)
    table = source.samples(0)
    batch = next(iter(source))
    for row, (index, number) in zip(batch.tolist(), zip(table.source, table.row, strict=True), strict=True):
        stream = tokens["ab"[index]]
        assert row == stream[number * 8 : number * 8 + 9].tolist()


class Squares(mtf.RowSource):
    def num_rows(self) -> int:
        return 11

    def row(self, pass_: int, place: int, key: int) -> Any:
        return {"x": torch.tensor(pass_ * 1000 + place), "y": torch.zeros(3)}


def test_a_source_of_ones_own_is_asked_for_passes_and_places_in_order() -> None:
    source = mtf.Blend({"own": Squares(), "web": arrays()["web"]}, global_batch_size=10, order="EVEN", seed=1)
    own = []
    for batch, step in zip(source, range(12), strict=False):
        of_own = source.samples(step).source == 0
        own += batch["x"][torch.from_numpy(of_own)].tolist()
    assert own == [pass_ * 1000 + place for pass_ in range(6) for place in range(11)][: len(own)]
    assert len(own) == 60


def test_by_source_gives_parts_of_unlike_structure() -> None:
    data = {"text": np.arange(100), "image": {"pixels": np.zeros((30, 4, 4), np.float32)}}
    for source in (
        mtf.Blend(data, [0.75, 0.25], global_batch_size=16, by_source=True, seed=1),
        mtf.Blend(data, [0.75, 0.25], global_batch_size=16, by_source=True, seed=1, collate_fn={}),
    ):
        for step, batch in enumerate(islice(source, 6)):
            counts = Counter(source.samples(step).source.tolist())
            assert set(batch) <= {"text", "image"}
            assert len(batch["text"]) == counts[0]
            assert batch["image"]["pixels"].shape == (counts[1], 4, 4)


def test_every_row_knows_its_source() -> None:
    source = blend(seed=2)
    for step, batch in enumerate(islice(source, 5)):
        assert torch.equal(source.sources_of(0, step), batch["x"] // 100_000)


def test_a_transform_has_random_numbers_of_its_batch() -> None:
    def jitter(batch: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        return {**batch, "noise": torch.from_numpy(rng.random(2))}

    first, second = (list(islice(blend(seed=5, transform=jitter, num_threads=n), 8)) for n in (0, 3))
    assert all(torch.equal(a["noise"], b["noise"]) for a, b in zip(first, second, strict=True))
    assert len({tuple(batch["noise"].tolist()) for batch in first}) == 8


@pytest.mark.parametrize("order", ["EVEN", "SHUFFLED", "RANDOM"])
@pytest.mark.parametrize("kind", ["arrays", "datasets"])
def test_resumes_exactly(order: str, kind: str) -> None:
    def make() -> mtf.Blend:
        data = arrays() if kind == "arrays" else {name: Numbers(name) for name in LENGTHS}
        return blend(data, order=order, batches_per_pass=7)

    assert_resumes_exactly(make, passes=2)


def test_workers_resume_exactly() -> None:
    def make(num_workers: int) -> mtf.Blend:
        return blend({name: Numbers(name) for name in LENGTHS}, batches_per_pass=5, num_workers=num_workers)

    assert_resumes_exactly(make, workers=[0, 2], every=4)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 39), max_size=4, unique=True).map(sorted),
    edits=st.dictionaries(st.integers(0, 39), st.sampled_from(["weights", "weight", "add", "remove"]), max_size=4),
    order=st.sampled_from(["EVEN", "SHUFFLED", "RANDOM"]),
    kind=st.sampled_from(["arrays", "datasets"]),
)
def test_edits_and_interruptions_in_any_order(cuts: list[int], edits: dict[int, str], order: str, kind: str) -> None:
    """A run that is interrupted anywhere has the batches of one that isn't, edits included."""

    def make() -> mtf.Blend:
        data: dict[str, Any] = arrays() if kind == "arrays" else {name: Numbers(name) for name in LENGTHS}
        more = {"more": lambda: {"x": torch.arange(900_000, 900_050), "y": torch.ones(50, 3)}}
        return blend(data, order=order, batches_per_pass=9, global_batch_size=10, source_factories=more)

    def edit(source: mtf.Blend, what: str) -> None:
        if what == "weights":
            source.update_weights([k + 1.0 for k in range(len(source.names))])
        elif what == "weight":
            source.set_weight("code", 3.0)
        elif what == "add" and "more" not in source.names:
            source.add_source("more", {"x": torch.arange(900_000, 900_050), "y": torch.ones(50, 3)}, weight=0.5)
        elif what == "remove" and "math" in source.names:
            source.remove_source("math")

    def run(cuts: list[int]) -> list[list[int]]:
        source = make()
        loader = mtf.MultiLoader({"b": source}, seed=9)
        found: list[list[int]] = []
        batches = iter(loader)
        for step in range(40):
            if step in cuts:
                state = pickle.loads(pickle.dumps(loader.state_dict()))
                loader.close()
                source = make()
                loader = mtf.MultiLoader({"b": source}, seed=9)
                loader.load_state_dict(state)
                batches = iter(loader)
            if step in edits:
                edit(source, edits[step])
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            found.append(batch.data["x"].tolist())
            loader.commit()
        loader.close()
        return found

    assert run(cuts) == run([])


def test_an_edit_holds_from_the_next_batch_on_though_others_were_fetched_ahead() -> None:
    for data in (arrays(), {name: Numbers(name) for name in LENGTHS}):
        source = blend(data, seed=3, num_threads=2)
        batches = iter(source)
        for _ in range(5):
            next(batches)
        before = expected(source, 4)
        source.update_weights({"web": 0.0, "code": 1.0, "math": 0.0})
        assert expected(source, 4) == before
        for step in range(5, 10):
            batch = next(batches)
            assert (batch["x"] // 100_000 == 1).all()
            assert batch["x"].tolist() == expected(source, step)


def test_edits_before_a_loop_hold_from_its_first_batch_and_not_in_another_run() -> None:
    source = blend()
    source.update_weights([0.0, 0.0, 1.0])
    loader = mtf.MultiLoader({"b": source}, seed=1)
    batches = iter(loader)
    assert (next(batches).data["x"] // 100_000 == 2).all()
    source.update_weights([1.0, 0.0, 0.0])
    assert (next(batches).data["x"] // 100_000 == 0).all()
    again = mtf.MultiLoader({"b": source}, seed=1)
    assert (next(iter(again)).data["x"] // 100_000 == 2).all()


def test_a_curve_counts_batches() -> None:
    curve = mtf.WeightCurve([(0, [1, 0, 0]), (4, [0, 1, 0])])
    source = blend(weights=None, weight_curve=curve, seed=1)
    sources = [set((batch["x"] // 100_000).tolist()) for batch in islice(source, 8)]
    assert sources == [{0}] * 4 + [{1}] * 4


def test_a_ramp_is_arithmetic() -> None:
    ramp = blend(global_batch_size=[(0, 16), (3, 48), (5, 64)], seed=3)
    flat = blend(seed=3, global_batch_size=16)
    samples = [row for batch in numbers(forever(flat), 20) for row in batch]
    sizes = [16, 16, 16, 48, 48, 64, 64]
    assert [len(batch) for batch in numbers(ramp, 7)] == sizes
    joined = [
        row for batch in numbers(blend(global_batch_size=[(0, 16), (3, 48), (5, 64)], seed=3), 7) for row in batch
    ]
    assert joined == samples[: sum(sizes)]
    assert len(ramp.samples(10**9)) == 64


def test_the_seed_of_the_mixture_decides_unless_the_blend_has_one() -> None:
    first = [next(iter(mtf.MultiLoader({"b": blend()}, seed=s))).data["x"].tolist() for s in (1, 1, 2)]
    assert first[0] == first[1] != first[2]
    own = [next(iter(mtf.MultiLoader({"b": blend(seed=7)}, seed=s))).data["x"].tolist() for s in (1, 2)]
    assert own[0] == own[1] == next(iter(blend(seed=7)))["x"].tolist()


def test_samples_are_those_of_the_mixture_it_is_in() -> None:
    source = blend()
    for step, batch in enumerate(islice(mtf.MultiLoader({"b": source}, seed=8), 4)):
        assert batch.data["x"].tolist() == expected(source, step)


def test_it_is_one_source_among_others() -> None:
    other = mtf.ArrayLoader(torch.arange(100), batch_size=10)
    config = mtf.MultiDataLoaderConfig(sampling_strategy="ALTERNATING", alternating_pattern=[0, 0, 1])
    names = [batch.name for batch in islice(mtf.MultiLoader({"b": blend(), "other": other}, config), 6)]
    assert names == ["b", "b", "other"] * 2


def test_iteration_alone_continues_from_its_state() -> None:
    source = blend(seed=1, batches_per_pass=6)
    batches = forever(source)
    for _ in range(4):
        next(batches)
    source.set_weight("math", 5.0)
    next(batches)
    state = pickle.loads(pickle.dumps(source.state_dict()))
    rest = numbers(batches, 9)
    resumed = blend(seed=1, batches_per_pass=6)
    resumed.load_state_dict(state)
    assert numbers(forever(resumed), 9) == rest


def test_the_state_does_not_grow_with_steps_or_rows() -> None:
    loader = mtf.MultiLoader({"b": blend()}, seed=1)
    batches = iter(loader)
    sizes = set()
    for _ in range(20):
        next(batches)
        sizes.add(len(pickle.dumps(loader.state_dict()["sources"])) // 16)
    assert len(sizes) == 1


def test_a_state_of_another_blend_is_refused() -> None:
    loader = mtf.MultiLoader({"b": blend()}, seed=1)
    next(iter(loader))
    state = loader.state_dict()
    for other in (
        blend(global_batch_size=65, batches_per_pass=len(blend())),
        blend(weights=[1, 2, 3]),
        blend({**arrays(), "code": arrays()["web"]}, batches_per_pass=len(blend())),
    ):
        fresh = mtf.MultiLoader({"b": other}, seed=1)
        with pytest.raises(mtf.StateMismatch):
            fresh.load_state_dict(state)


def test_a_state_with_an_added_source_names_the_way_out() -> None:
    source = blend()
    loader = mtf.MultiLoader({"b": source}, seed=1)
    next(iter(loader))
    source.add_source("more", arrays()["web"], 1.0)
    state = loader.state_dict()
    fresh = mtf.MultiLoader({"b": blend()}, seed=1)
    with pytest.raises(mtf.StateMismatch, match="source_factories"):
        fresh.load_state_dict(state)


def test_the_plan_counts_rows_without_reading_them() -> None:
    source = blend(seed=3)
    plan = source.plan(100)
    counts = Counter(int(i) for step in range(100) for i in source.samples(step).source)
    assert [entry.num_drawn for entry in plan.sources] == [counts[i] for i in range(3)]
    assert plan.num_samples == 6400
    assert [entry.expected_share for entry in plan.sources] == pytest.approx([0.7, 0.2, 0.1])
    assert any("'math'" in warning for warning in plan.warnings)
    assert "web" in str(plan)
    assert plan.to_dict()["num_batches"] == 100
    assert "<table" in plan._repr_html_()


class Endless(Dataset[int]):
    def __getitem__(self, row: int) -> int:
        return row


BAD: list[tuple[str, Any]] = [
    ("at least one", lambda: mtf.Blend({}, global_batch_size=4)),
    ("dict", lambda: mtf.Blend([np.arange(3)], global_batch_size=4)),
    ("no __len__", lambda: mtf.Blend({"a": Endless()}, global_batch_size=4)),
    ("DataLoader", lambda: mtf.Blend({"a": DataLoader(Numbers("web"))}, global_batch_size=4)),
    ("ArrayLoader", lambda: mtf.Blend({"a": mtf.ArrayLoader(np.arange(3), 1)}, global_batch_size=4)),
    ("at least one row", lambda: mtf.Blend({"a": np.arange(0)}, global_batch_size=4)),
    ("at least one row", lambda: mtf.Blend({"a": [], "b": ["x"]}, global_batch_size=4)),
    ("one window", lambda: mtf.Blend({"a": mtf.Windows(np.arange(3), 4)}, global_batch_size=4)),
    ("did you mean 'web'", lambda: blend(weights={"wbe": 1, "code": 1, "math": 1})),
    ("nothing is given for 'math'", lambda: blend(weights={"web": 1, "code": 1})),
    ("one entry per source", lambda: blend(weights=[1, 2])),
    ("weight", lambda: blend(weights=[1, -2, 1])),
    ("weight", lambda: blend(weights=[0, 0, 0])),
    ("not both", lambda: blend(weight_curve=mtf.WeightCurve([(0, [1, 1, 1])]))),
    ("by_source=True", lambda: mtf.Blend({"a": np.arange(3), "b": np.arange(3.0)}, global_batch_size=4)),
    ("by_source=True", lambda: mtf.Blend({"a": {"x": np.arange(3)}, "b": {"y": np.arange(3)}}, global_batch_size=4)),
    ("global_batch_size", lambda: blend(global_batch_size=0)),
    ("global_batch_size", lambda: blend(global_batch_size=[(1, 4)])),
    ("global_batch_size", lambda: blend(global_batch_size="64")),
    ("number of ranks", lambda: mtf.MultiLoader({"b": blend(global_batch_size=3)}, rank=0, world_size=4)),
    ("num_workers is for datasets", lambda: blend(num_workers=2)),
    ("no option 'num_worker'; did you mean", lambda: blend({n: Numbers(n) for n in LENGTHS}, num_worker=2)),
    ("not both", lambda: blend({n: Numbers(n) for n in LENGTHS}, num_workers=2, num_threads=2)),
    ("collate_fn for datasets", lambda: blend({n: Numbers(n) for n in LENGTHS}, transform=lambda b, r: b)),
    ("order must be one of", lambda: blend(order="SORTED")),
    ("seed", lambda: blend(seed=-1)),
    ("already a source", lambda: blend().add_source("web", arrays()["web"], 1.0)),
    ("by_source=True", lambda: blend().add_source("new", np.arange(4), 1.0)),
    ("reads all sources in Python", lambda: blend().add_source("new", Numbers("web"), 1.0)),
    ("batches_per_pass", lambda: blend(batches_per_pass=0)),
    ("step must be", lambda: blend().samples(-1)),
]  # fmt: skip


@pytest.mark.parametrize(("message", "make"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_bad_input_is_one_error_before_any_data_is_read(message: str, make: Any) -> None:
    with pytest.raises(mtf.ConfigError, match=message.replace("(", r"\(")):
        make()


def test_unlike_samples_of_datasets_name_the_way_out() -> None:
    source = mtf.Blend({"a": [{"x": 1}] * 5, "b": [{"y": 1}] * 5}, global_batch_size=8)
    with pytest.raises(mtf.SourceError, match="by_source=True"):
        next(iter(source))


def test_memory_does_not_grow_with_steps() -> None:
    import tracemalloc

    source = blend(seed=1)
    source.samples(5)
    tracemalloc.start()
    for step in (10**6, 10**8, 10**9):
        source.samples(step)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
