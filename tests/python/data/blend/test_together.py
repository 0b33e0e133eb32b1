"""Each step of a Together has one batch of every source, and continues exactly."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mtf
from mtf.testing import assert_resumes_exactly


class Plain:
    """An iterable without a state, which is replayed."""

    def __init__(self, num: int = 3) -> None:
        self.num = num

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([torch.tensor([k]) for k in range(self.num)])


class Stateful:
    """An iterable that saves its position."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for place in range(self.place, 4):
            self.place = place + 1
            yield torch.tensor([100 + place])
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def sources(*kinds: str) -> dict[str, Any]:
    made = {
        "array": lambda: mtf.ArrayLoader(torch.arange(50), batch_size=5, shuffle=True),
        "torch": lambda: DataLoader(TensorDataset(torch.arange(1000, 1021)), batch_size=4, shuffle=True),
        "workers": lambda: DataLoader(TensorDataset(torch.arange(21)), batch_size=4, num_workers=2),
        "plain": Plain,
        "stateful": Stateful,
        "blend": lambda: mtf.Blend({"a": torch.arange(9), "b": torch.arange(100, 130)}, global_batch_size=6),
        "together": lambda: mtf.Together({"x": mtf.ArrayLoader(torch.arange(12), batch_size=2), "y": Plain()}, 5),
    }
    return {kind: made[kind]() for kind in kinds}


KINDS = ["array", "torch", "workers", "plain", "stateful", "blend", "together"]


def test_shorter_sources_start_their_next_pass() -> None:
    together = mtf.Together(sources("array", "torch"))
    assert len(together) == 10
    batches = list(together)
    assert [set(batch) for batch in batches] == [{"array", "torch"}] * 10
    assert sorted(torch.cat([batch["array"] for batch in batches]).tolist()) == list(range(50))
    first = torch.cat([batch["torch"][0] for batch in batches[:6]]).tolist()
    assert sorted(first) == list(range(1000, 1021))
    second = torch.cat([batch["torch"][0] for batch in batches[6:]]).tolist()
    assert second != first[: len(second)]


def test_batch_k_is_batch_k_mod_n_of_pass_k_by_n() -> None:
    loaders = sources("array", "torch")
    together = mtf.Together(loaders, length=7)
    loader = mtf.MultiLoader(together, seed=3)
    key = mtf.fold_in(mtf.fold_in(3, "source"), "dl0")
    alone = mtf.MultiLoader(sources("torch"), seed=key)
    alone_batches = (batch.data[0].tolist() for _ in iter(int, 1) for batch in alone)
    for _ in range(4):
        for batch in loader:
            assert batch.data["torch"][0].tolist() == next(alone_batches)


@pytest.mark.parametrize(("length", "expected"), [("max", 10), ("min", 6), (4, 4), (1000, 1000)])
def test_the_length_of_a_pass(length: Any, expected: int) -> None:
    together = mtf.Together(sources("array", "torch"), length)
    assert len(together) == expected
    assert len(list(islice(together, 20))) == min(20, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_exactly_with_sources_of_any_kind(kind: str) -> None:
    assert_resumes_exactly(lambda: mtf.Together(sources(kind, "array"), 6), every=3 if kind == "workers" else 1)


@pytest.mark.filterwarnings("ignore:.*are produced again and dropped")  # by the epochs of the mixture, too
def test_all_kinds_together_resume_exactly_inside_a_mixture() -> None:
    def make() -> mtf.MultiLoader:
        both = {"all": mtf.Together(sources(*KINDS), 6), "other": mtf.ArrayLoader(torch.arange(9), batch_size=3)}
        return mtf.MultiLoader(both, seed=2)

    def shown(batch: mtf.Batch) -> Any:
        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: plain(part) for name, part in value.items()}
            return [plain(part) for part in value] if isinstance(value, list) else value.tolist()

        return batch.name, plain(batch.data)

    loader = make()
    found, states = [], []
    for _ in range(2):
        for batch in loader:
            loader.commit()
            found.append(shown(batch))
            states.append(loader.state_dict())
    loader.close()
    for cut in range(0, len(found), 4):
        resumed = make()
        resumed.load_state_dict(states[cut])
        rest: list[Any] = []
        while len(rest) < len(found) - cut - 1:
            rest += [shown(batch) for batch in resumed]
        assert rest == found[cut + 1 :]
        resumed.close()


def test_positions_open_far_away_without_reading() -> None:
    read = []

    class Counted(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, row: int) -> int:
            read.append(row)
            return row

    together = mtf.Together({"a": DataLoader(Counted(), batch_size=2), "b": sources("array")["array"]})
    stream = together.open(10**8, 3, key=5)
    assert next(stream)["a"].tolist() == [6, 7]
    assert read == [6, 7]
    assert together.run_state() == mtf.Snapshot(10**8, 4, None, is_global=True)


def test_parts_of_ranks_laid_end_to_end_are_the_batches() -> None:
    def make(rank: int, world_size: int) -> mtf.MultiLoader:
        loaders = {
            "a": mtf.ArrayLoader(torch.arange(48), global_batch_size=6, shuffle=True),
            "b": mtf.ArrayLoader(torch.arange(100, 136), global_batch_size=4, shuffle=True),
        }
        return mtf.MultiLoader(mtf.Together(loaders), seed=4, rank=rank, world_size=world_size)

    whole = [batch.data for batch in make(0, 1)]
    parts = [[batch.data for batch in make(rank, 2)] for rank in range(2)]
    for step, batch in enumerate(whole):
        for name in ("a", "b"):
            assert torch.cat([part[step][name] for part in parts]).tolist() == batch[name].tolist()


def test_an_error_in_the_middle_of_a_step_loses_nothing() -> None:
    fails = [True]

    class Failing(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, row: int) -> int:
            if row == 5 and fails:
                fails.clear()
                raise OSError("disk")
            return row

    loader = mtf.MultiLoader(
        mtf.Together({"a": mtf.ArrayLoader(torch.arange(16), batch_size=2), "b": DataLoader(Failing(), batch_size=1)}),
        seed=1,
    )
    found = []

    def read() -> None:
        for batch in loader:
            found.append((batch.data["a"].tolist(), batch.data["b"].tolist()))

    with pytest.raises(mtf.SourceError, match="disk"):
        read()
    read()
    assert found == [([2 * k, 2 * k + 1], [k]) for k in range(8)]


BAD: list[tuple[str, Any]] = [
    ("at least one entry", lambda: mtf.Together({})),
    ("must be a dict", lambda: mtf.Together([Plain()])),
    ("needs the length of 'plain'", lambda: mtf.Together(sources("array", "plain"))),
    ('must be "max", "min"', lambda: mtf.Together(sources("array"), "mean")),
    ('must be "max", "min"', lambda: mtf.Together(sources("array"), 0)),
    ("has no batch", lambda: mtf.Together({"a": DataLoader([], batch_size=2), "b": Plain()}, 3)),
    ("already the part of rank", lambda: mtf.Together(sources("array")).shard(0, 2).shard(0, 2)),
]


@pytest.mark.parametrize(("message", "make"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_is_one_error_before_any_data_is_read(message: str, make: Any) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        make()


def test_a_combined_loader_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lightning.pytorch.utilities.combined_loader")
    cls = type("CombinedLoader", (), {"__module__": module.__name__, "__iter__": lambda self: iter([])})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for use in (
        lambda: mtf.MultiLoader({"a": cls()}),
        lambda: mtf.Together({"a": cls()}),
        lambda: mtf.Blend({"a": cls(), "b": np.arange(3)}, global_batch_size=2),
    ):
        with pytest.raises(mtf.ConfigError, match=r"mtf\.Together"):
            use()


def test_a_state_of_other_sources_is_refused() -> None:
    together = mtf.Together(sources("plain", "array"), 6)
    next(iter(together))
    state = together.state_dict()
    with pytest.raises(mtf.StateMismatch):
        mtf.Together(sources("plain"), 6).load_state_dict(state)
    with pytest.raises(mtf.StateMismatch):
        mtf.Together(sources("plain"), 6).load_state_dict({"a": 1})
