"""Loaders with a state of their own: ends of passes, states that aren't restored, and what isn't a state."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import mtf
from mtf.data.determinism.content_hash import content_hash
from mtf.data.protocols import copy_state, has_state_methods, length_of
from mtf.data.sources.resolve import as_source
from mtf.testing import assert_resumes_exactly

nodes = pytest.importorskip("torchdata.nodes")

FIXED = mtf.MultiDataLoaderConfig(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=20)


class RollsOver:
    """Five batches a pass; ``iter`` starts the next pass where the state is at an end."""

    def __init__(self, eager: bool) -> None:
        self.pass_, self.place, self.eager = 0, 0, eager

    def __iter__(self) -> Iterator[int]:
        if self.eager:
            self._begin()
        return self._batches()

    def _begin(self) -> None:
        if self.place == 5:
            self.pass_, self.place = self.pass_ + 1, 0

    def _batches(self) -> Iterator[int]:
        self._begin()
        while self.place < 5:
            self.place += 1
            yield 10 * self.pass_ + self.place - 1

    def __len__(self) -> int:
        return 5

    def state_dict(self) -> dict[str, int]:
        return {"pass": self.pass_, "place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.pass_, self.place = state["pass"], state["place"]


@pytest.mark.parametrize("eager", [False, True])
def test_no_batch_and_no_pass_is_lost_at_the_end_of_a_pass(eager: bool) -> None:
    assert assert_resumes_exactly(lambda: RollsOver(eager), passes=4) == 20
    state, found = None, []
    for _ in range(4):  # one start for each epoch
        with mtf.MultiLoader(RollsOver(eager)) as mixture:
            if state is not None:
                mixture.load_state_dict(state)
            found.append([batch.data for batch in mixture] or [batch.data for batch in mixture])
            state = copy.deepcopy(mixture.state_dict())
    assert found == [[10 * p + b for b in range(5)] for p in range(4)]
    assert mtf.check_source(lambda: RollsOver(eager)).ok


def test_a_pipeline_of_nodes_resumes_where_it_was() -> None:
    def make() -> Any:
        return nodes.Loader(nodes.Batcher(nodes.IterableWrapper(range(20)), 4))

    with mtf.MultiLoader(make(), FIXED) as first:
        iterator = iter(first)
        assert [next(iterator).data for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        state = copy.deepcopy(first.state_dict())
    with mtf.MultiLoader(make(), FIXED) as second:
        second.load_state_dict(state)
        assert next(iter(second)).data == [8, 9, 10, 11]
    assert_resumes_exactly(make, passes=3)


class Forgetful(RollsOver):
    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def test_a_state_that_is_not_restored_is_noticed() -> None:
    with mtf.MultiLoader(Forgetful(False)) as first:
        iterator = iter(first)
        for _ in range(3):
            next(iterator)
        state = copy.deepcopy(first.state_dict())
    with mtf.MultiLoader(Forgetful(False)) as second:
        second.load_state_dict(state)
        with pytest.warns(UserWarning, match="the last one before the resume, is another batch now"):
            next(iter(second))
    assert not mtf.check_source(lambda: Forgetful(False)).ok


def test_a_replay_that_gives_other_batches_is_noticed() -> None:
    class Clock(IterableDataset[Any]):
        starts = 0

        def __iter__(self) -> Iterator[int]:
            Clock.starts += 1
            return iter(range(100 * Clock.starts, 100 * Clock.starts + 8))

    with mtf.MultiLoader(DataLoader(Clock(), 2), FIXED) as first:
        next(iter(first))
        state = copy.deepcopy(first.state_dict())
    with mtf.MultiLoader(DataLoader(Clock(), 2), FIXED) as second:
        second.load_state_dict(state)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            next(iter(second))
    assert any("is another batch now" in str(one.message) for one in caught)


class WithArguments(IterableDataset[Any]):
    """As MosaicML's and litdata's datasets: their loader passes how many samples were taken."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(6))

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, int]:
        return {"num_samples": num_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def test_what_is_not_the_protocol_is_not_taken_for_a_state() -> None:
    assert not has_state_methods(WithArguments())
    assert not has_state_methods(torch.nn.Linear(1, 1))
    assert_resumes_exactly(lambda: DataLoader(WithArguments(), 2))


def test_len_that_raises_anything_is_an_unknown_length() -> None:
    class NotYet:
        def __len__(self) -> int:
            raise RuntimeError("call iter first")

    class Endless:
        def __len__(self) -> int:
            return 2**60

    assert length_of(NotYet()) is None
    assert length_of(Endless()) is None


def test_text_is_no_loader() -> None:
    with pytest.raises(mtf.ConfigError, match=r"is text, 'data/train\.bin', whose letters"):
        as_source("data/train.bin", "a")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_lightnings_combined_loader_is_refused_with_what_to_use() -> None:
    lightning = pytest.importorskip("lightning.pytorch.utilities")
    with pytest.raises(mtf.ConfigError, match=r"CombinedLoader.*mtf\.Together"):
        as_source(lightning.CombinedLoader({"a": [1]}), "a")


def test_objects_without_content_and_classes_count_by_their_type() -> None:
    class Holder:
        def __init__(self, kind: type, value: int) -> None:
            self.kind, self.value, self.lock = kind, value, object()

    assert content_hash(Holder(int, 1)) == content_hash(Holder(int, 1))
    assert content_hash(Holder(int, 1)) != content_hash(Holder(str, 1))
    assert content_hash(Holder(int, 1)) != content_hash(Holder(int, 2))


def test_jagged_tensors_are_hashed_by_their_parts() -> None:
    def jagged(*sizes: int) -> torch.Tensor:
        return torch.nested.nested_tensor([torch.arange(float(n)) for n in sizes], layout=torch.jagged)

    assert content_hash(jagged(2, 3)) == content_hash(jagged(2, 3))
    assert content_hash(jagged(2, 3)) != content_hash(jagged(3, 2))


class Growing(Dataset[int]):
    def __init__(self) -> None:
        self.rows = list(range(4))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return self.rows[index]


def test_a_dataset_that_grows_is_reported() -> None:
    data = Growing()
    with mtf.MultiLoader(DataLoader(data, 2)) as mixture:
        list(mixture)
        data.rows += [4, 5]
        with pytest.warns(UserWarning, match="pass 1 has 3 batches, where the first one opened had 2"):
            list(mixture)


def test_a_schedule_moved_by_hand_takes_the_loader_along() -> None:
    with mtf.MultiLoader({"a": [0, 1, 2, 3], "b": [10, 11, 12, 13]}) as mixture:
        next(iter(mixture))
        mixture.schedule.seek(0, 6)
        assert [batch.data for batch in mixture] == [3, 13]
        mixture.schedule.seek(0, 2)
        assert next(iter(mixture)).data == 1


@pytest.mark.parametrize("kind", ["loader", "dataset", "iterator"])
def test_two_loaders_that_would_move_one_position_are_refused(kind: str) -> None:
    data, loader, numbers = Counted(), RollsOver(eager=True), iter(range(9))
    loaders = {
        "loader": {"a": loader, "b": loader},
        "dataset": {"a": DataLoader(data, 2), "b": DataLoader(data, 3)},
        "iterator": {"a": numbers, "b": numbers},
    }[kind]
    with pytest.raises(mtf.ConfigError, match=r"'a' and 'b' read one .* give each an object of its own"):
        mtf.MultiLoader(loaders, FIXED)
    with mtf.MultiLoader({"a": loaders["a"], "c": [1, 2]}, FIXED) as mixture:
        with pytest.raises(mtf.ConfigError, match=r"'a' and 'b' read one .* give each an object of its own"):
            mixture.add_source("b", loaders["b"])
        mixture.remove_source("a")
        mixture.add_source("b", loaders["b"])
    same = DataLoader(range(8), 2, shuffle=True)  # type: ignore[arg-type]  # read by position
    with mtf.MultiLoader({"a": same, "b": same, "c": DataLoader(Counted(), 2)}, FIXED) as mixture:
        assert len(list(mixture)) == 20


class Counted(IterableDataset[Any]):
    """Ten numbers, and the place in them as its state."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[int]:
        while self.place < 10:
            self.place += 1
            yield self.place
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def test_a_copied_state_is_independent_and_shares_what_the_state_shares() -> None:
    @dataclasses.dataclass
    class Own:
        items: list[int]

    tensor, shared = torch.arange(3), [1, 2]
    state = {"a": shared, "b": (shared, {"c": shared}), 3: {None: tensor, "own": Own(shared)}, "t": [tensor], (1, 2): 5}
    copied = copy_state(state)
    assert copied.keys() == state.keys()
    assert copied["a"] is copied["b"][0] is copied["b"][1]["c"] is copied[3]["own"].items
    assert copied[3][None] is copied["t"][0]
    shared.append(3)
    tensor += 1
    assert copied["a"] == [1, 2]
    assert copied["t"][0].tolist() == [0, 1, 2]
    itself: list[Any] = []
    itself.append(itself)
    again = copy_state(itself)
    assert again[0] is again is not itself
    assert copy_state(7) == 7


class Fragile:
    """Forgets a loaded state when it is asked for its own, stays at the end of a pass when it is put there, and refuses
    the state of a new one."""

    def __init__(self) -> None:
        self.pass_, self.place = -1, 0
        self.loaded: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[int]:
        if self.loaded is None:
            self.pass_, self.place = self.pass_ + 1, 0
        else:
            (self.pass_, self.place), self.loaded = self.loaded, None
        while self.place < 4:
            self.place += 1
            yield 10 * self.pass_ + self.place

    def state_dict(self) -> dict[str, int]:
        self.loaded = None
        return {"pass": self.pass_, "place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state["pass"] < 0:
            raise ValueError("nothing was read")
        self.loaded = state["pass"], state["place"]


def test_a_loader_is_asked_for_its_state_only_where_that_is_safe() -> None:
    assert_resumes_exactly(Fragile, passes=3)
    assert mtf.check_source(Fragile).ok
