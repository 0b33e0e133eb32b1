"""What a blend takes rows from: blends, Hugging Face datasets, DataLoaders, sources of one's own; each resumes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, WeightedRandomSampler

import mtf
from mtf.testing import assert_resumes_exactly


class Numbers(Dataset[dict[str, torch.Tensor]]):
    """Rows `offset`, `offset + 1` ..."""

    def __init__(self, offset: int, num: int) -> None:
        self.offset, self.num = offset, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(row + self.offset)}


def collate_doubled(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"x": 2 * torch.tensor([int(sample["x"]) for sample in samples])}


class Own(mtf.RowSource):
    """Rows whose passes differ otherwise than by a shuffle."""

    def num_rows(self) -> int:
        return 30

    def row(self, pass_: int, place: int, key: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor(5000 + 100 * (pass_ % 3) + place)}


class OwnSource(mtf.Source):
    """Gives batches to a mixture, and single rows to a blend."""

    def num_batches(self) -> int:
        return 3

    def open(self, pass_: int, batch: int, key: int, snapshot: Any = None) -> mtf.Stream:
        raise NotImplementedError  # a blend doesn't ask for batches

    def single_rows(self) -> mtf.RowSource:
        return Own()


def inner() -> mtf.Blend:
    rows = {"p": {"x": torch.arange(2000, 2050)}, "q": {"x": torch.arange(3000, 3011)}}
    return mtf.Blend(rows, [0.6, 0.4], global_batch_size=4)


def hugging_face(offset: int, num: int) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": [offset + row for row in range(num)]})


def make(kind: str, **options: Any) -> mtf.Blend:
    numbers = Numbers(0, 70)
    more = {
        "blend": inner,
        "nested twice": lambda: mtf.Blend({"i": inner(), "j": Numbers(7000, 9)}, global_batch_size=3),
        "hugging face": lambda: hugging_face(1000, 40),
        "hugging face torch": lambda: hugging_face(1000, 40).with_format("torch"),
        "loader": lambda: DataLoader(Numbers(1000, 40), batch_size=3, shuffle=True),
        "own": Own,
        "own source": OwnSource,
    }
    sources = {"more": more[kind](), "numbers": numbers}
    if kind == "hugging face":  # whose rows are plain numbers
        options["collate_fn"] = collate_doubled
    return mtf.Blend(sources, [0.5, 0.5], global_batch_size=12, batches_per_pass=6, **options)


KINDS = ["blend", "nested twice", "hugging face", "hugging face torch", "loader", "own", "own source"]


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_exactly_with_0_and_2_workers(kind: str) -> None:
    assert_resumes_exactly(lambda workers: make(kind, num_workers=workers), workers=[0, 2], every=5)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_1_2_and_3_ranks_are_the_same_batch_in_threads_too(kind: str) -> None:
    one = [batch.data["x"].tolist() for batch in islice(mtf.MultiLoader({"b": make(kind)}, seed=3), 6)]
    assert all(len(batch) == 12 for batch in one)
    for world_size, options in ((1, {"num_threads": 2}), (2, {}), (3, {"num_threads": 2})):
        parts = [
            [b.data["x"].tolist() for b in mtf.MultiLoader({"b": make(kind, **options)}, seed=3, rank=r,
                                                           world_size=world_size)]
            for r in range(world_size)
        ]  # fmt: skip
        assert [[row for part in same for row in part] for same in zip(*parts, strict=True)] == one


def test_samples_of_an_inner_blend_follow_one_another_in_its_shares() -> None:
    source = make("blend", seed=5)
    rows = [int(x) for _ in range(12) for batch in source for x in batch["x"] if x >= 2000]
    shares = [sum(2000 <= row < 3000 for row in rows[k : k + 64]) for k in range(0, len(rows) - 64, 64)]
    assert all(abs(share - 38.4) <= 1 for share in shares)  # 0.6 of 64, exact in each 64 of the inner blend's samples
    small = [row for row in rows if row >= 3000]
    for begin in range(0, len(small) - 11, 11):
        assert sorted(small[begin : begin + 11]) == list(range(3000, 3011))  # each once per pass


def test_an_inner_seed_stays_and_another_outer_one_draws_others() -> None:
    def rows(outer: int, inner_seed: int | None) -> list[int]:
        nested = mtf.Blend({"p": {"x": torch.arange(500)}}, global_batch_size=1, seed=inner_seed)
        source = mtf.Blend({"n": nested}, global_batch_size=8, seed=outer)
        return [int(x) for x in next(iter(source))["x"]]

    assert rows(1, 3) == rows(2, 3)
    assert rows(1, None) != rows(2, None)


def test_edits_of_the_inner_blend_count_until_it_is_given() -> None:
    nested = inner()
    nested.update_weights([1.0, 0.0])
    source = mtf.Blend({"n": nested}, global_batch_size=40)
    nested.update_weights([0.0, 1.0])
    assert (next(iter(source))["x"] < 3000).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("by_source", {"by_source": True}),
        ("transform", {"transform": lambda batch, rng: batch}),
        ("collate_fn", {"collate_fn": collate_doubled}),
        ("num_threads", {"num_threads": 2}),
        ("max_passes", {"max_passes": {"p": 1}}),
    ],
)
def test_what_an_inner_blend_does_to_batches_is_refused(name: str, options: Any) -> None:
    nested = mtf.Blend({"p": {"x": torch.arange(9)}}, global_batch_size=2, **options)
    with pytest.raises(mtf.ConfigError, match=rf"source 'n': a blend inside a blend gives single rows, so {name} of"):
        mtf.Blend({"n": nested}, global_batch_size=2)
    with pytest.raises(mtf.ConfigError, match="the part of rank 0"):
        mtf.Blend({"n": inner().shard(0, 2)}, global_batch_size=2)


def test_a_loader_is_its_dataset_with_its_collate_fn() -> None:
    def values(first: Any, second: Any, **options: Any) -> list[Any]:
        source = mtf.Blend({"a": first, "b": second}, global_batch_size=8, seed=2, **options)
        return [batch["x"].tolist() for batch in source]

    a, b = Numbers(0, 20), Numbers(100, 30)
    loaders = [DataLoader(d, batch_size=3, shuffle=True, collate_fn=collate_doubled, drop_last=True) for d in (a, b)]
    assert values(*loaders) == values(a, b, collate_fn=collate_doubled)
    with pytest.raises(mtf.ConfigError, match="source 'a' is a DataLoader with a collate_fn of its own"):
        values(loaders[0], b)
    parts = mtf.Blend({"a": loaders[0], "b": b}, global_batch_size=8, by_source=True, seed=2)
    expected = mtf.Blend({"a": a, "b": b}, global_batch_size=8, by_source=True, seed=2,
                         collate_fn={"a": collate_doubled})  # fmt: skip
    for found, wanted in zip(parts, expected, strict=True):
        assert {name: part["x"].tolist() for name, part in found.items()} == {
            name: part["x"].tolist() for name, part in wanted.items()
        }


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


@pytest.mark.parametrize(
    ("why", "make_loader"),
    [
        ("SequentialSampler", lambda: DataLoader(Numbers(0, 5))),
        ("WeightedRandomSampler", lambda: DataLoader(Numbers(0, 5), sampler=WeightedRandomSampler([1.0] * 5, 5))),
        ("IterableDataset", lambda: DataLoader(Stream())),
        ("batch_sampler", lambda: DataLoader(Numbers(0, 5), batch_sampler=[[0, 1], [2]])),
        ("batch_sampler", lambda: DataLoader(Numbers(0, 5), batch_size=None, sampler=SequentialSampler(range(5)))),
        ("num_workers=2", lambda: DataLoader(Numbers(0, 5), shuffle=True, num_workers=2)),
    ],
)
def test_a_loader_that_does_something_else_is_refused_with_the_way_out(why: str, make_loader: Any) -> None:
    with pytest.raises(mtf.ConfigError, match=rf"source 'a' is a DataLoader.*{why}.*Pass its dataset"):
        mtf.Blend({"a": make_loader()}, global_batch_size=2)


def test_workers_of_loaders_are_those_of_the_blend() -> None:
    loader = DataLoader(Numbers(0, 5), shuffle=True, num_workers=2)
    assert len(next(iter(mtf.Blend({"a": loader}, global_batch_size=2, num_workers=0)))["x"]) == 2


def test_rows_of_a_blend_in_a_together_are_named_also_after_a_move_to_a_device() -> None:
    rows = {"p": torch.arange(50), "q": torch.arange(1000, 1007)}
    for device in (None, "meta"):
        together = mtf.Together(
            {
                "blend": mtf.Blend(rows, [0.7, 0.3], global_batch_size=10),
                "inner": mtf.Together({"b": mtf.Blend(rows, global_batch_size=6)}),
                "other": mtf.ArrayLoader(torch.arange(8), 2),
            }
        )
        alone = mtf.MultiLoader({"t": together}, seed=1)
        expected = next(iter(alone)).data
        batch = next(iter(mtf.MultiLoader({"t": together}, seed=1, device=device))).data
        for found, wanted in ((batch["blend"], expected["blend"]), (batch["inner"]["b"], expected["inner"]["b"])):
            named = mtf.sources_of(found)
            assert named.names == ("p", "q")
            assert named.counts == tuple(torch.bincount(wanted // 1000, minlength=2).tolist())
            assert named.index.device == found.device
        with pytest.raises(mtf.ConfigError, match=r"mtf\.Blend"):
            mtf.sources_of(batch["other"])
