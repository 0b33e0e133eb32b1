"""Iterables, stateful loaders, generators and lists: what they promise, and that it holds."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from loaders import EndlessIndices, Rows, Sized, StatefulStream, Streamed
from torch.utils.data import DataLoader, IterableDataset

from mtf.checkpoint.compare import first_differences
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.check_source import check_source
from mtf.data.determinism.content_hash import content_hash
from mtf.data.multi_loader import MultiLoader
from mtf.data.sources.base import ResumeMode
from mtf.data.sources.iterable import IterableSource
from mtf.data.sources.resolve import as_source
from mtf.data.sources.sequence import SequenceSource
from mtf.data.sources.stateful import StatefulSource
from mtf.enums import EpochLengthPolicy, SamplingStrategy
from mtf.errors import ConfigError, SourceError
from mtf.testing import assert_resumes_exactly

torchdata = pytest.importorskip("torchdata.stateful_dataloader")

# torchdata calls a function that newer torch is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def fixed(num_steps: int) -> MultiDataLoaderConfig:
    return MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=num_steps)


def without_snapshot(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "sources": dict.fromkeys(state["sources"])}


class Batches:
    """Can be iterated again; each batch is drawn when it is asked for."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = torch.randperm(self.num_batches).tolist()
        for index in order:
            yield torch.tensor([index, np.random.rand(), random.random(), torch.rand(()).item()])


class TestState:
    def test_stateful_dataloader_shuffled(self) -> None:
        def make() -> Any:
            return torchdata.StatefulDataLoader(Rows(17), 3, shuffle=True, generator=torch.Generator().manual_seed(3))

        assert assert_resumes_exactly(make) == 12
        assert as_source(make(), "a").resume_mode is ResumeMode.SEEK  # map-style: read as the DataLoader that it is

    def test_stateful_dataloader_with_the_process_wide_generator(self) -> None:
        assert_resumes_exactly(lambda: torchdata.StatefulDataLoader(Rows(11), 3, shuffle=True))

    @pytest.mark.parametrize("persistent", [False, True])
    def test_stateful_dataloader_with_workers(self, persistent: bool) -> None:
        class Plain(Rows):
            def __getitem__(self, index: int) -> torch.Tensor:
                return torch.tensor([index])

        def make() -> Any:
            generator = torch.Generator().manual_seed(3)
            return torchdata.StatefulDataLoader(
                Plain(11), 3, shuffle=True, num_workers=2, generator=generator, persistent_workers=persistent
            )

        assert_resumes_exactly(make, every=3)

    def test_the_seed_of_workers_is_the_same_after_a_resume_between_two_passes(self) -> None:
        def make() -> MultiLoader:
            return MultiLoader(torchdata.StatefulDataLoader(Rows(4), 2, shuffle=True, num_workers=1))

        with make() as whole, make() as resumed:
            assert len(list(whole)) == 2
            resumed.load_state_dict(whole.state_dict())
            next(iter(whole))
            next(iter(resumed))
            assert first_differences(resumed.state_dict(), whole.state_dict()) == []

    @pytest.mark.parametrize("num_steps", [5, 6, 12])
    @pytest.mark.parametrize("is_stateful", [False, True])
    def test_a_loader_that_replaced_a_stateful_one_does_not_get_its_state(
        self, num_steps: int, is_stateful: bool
    ) -> None:
        def stateful(num_rows: int) -> Any:
            generator = torch.Generator().manual_seed(num_rows)
            return torchdata.StatefulDataLoader(Rows(num_rows), 2, shuffle=True, generator=generator)

        def other() -> Any:
            return stateful(10) if is_stateful else DataLoader(Rows(10), 2, shuffle=True)

        def make() -> MultiLoader:
            return MultiLoader({"a": stateful(8), "b": stateful(12)}, fixed(6), loader_factories={"b": other})

        def take(batches: MultiLoader, number: int) -> list[Any]:
            found: list[Any] = []
            while len(found) < number:
                for batch in batches:
                    batches.commit()
                    found.append((batch.name, batch.pass_, batch.batch, batch.data.tolist()))
                    if len(found) == number:
                        break
            return found

        with make() as whole, make() as resumed:
            take(whole, num_steps)
            whole.remove_source("b")
            whole.add_source("b", other())
            state = whole.state_dict()
            resumed.load_state_dict(state)
            resumed.commit()
            assert first_differences(resumed.state_dict(), state) == []
            assert take(resumed, 9) == take(whole, 9)

    def test_stateful_dataset_in_stateful_dataloader(self) -> None:
        assert_resumes_exactly(lambda: torchdata.StatefulDataLoader(StatefulStream(11), 3))

    def test_stateful_dataset_in_a_plain_dataloader(self) -> None:
        assert as_source(DataLoader(StatefulStream(11), 3), "a").resume_mode is ResumeMode.STATEFUL
        assert_resumes_exactly(lambda: DataLoader(StatefulStream(11), 3))

    def test_a_loader_with_state_methods(self) -> None:
        assert_resumes_exactly(lambda: StatefulStream(7))

    def test_it_fails_without_the_snapshot(self) -> None:
        with pytest.raises(AssertionError, match=r"interrupted before batch \d+"):
            assert_resumes_exactly(lambda: StatefulStream(7), change_state=without_snapshot)

    def test_the_snapshot_does_not_change_later(self) -> None:
        class Live(StatefulStream):
            def __init__(self) -> None:
                super().__init__(7)
                self.live: dict[str, Any] = {}

            def state_dict(self) -> dict[str, Any]:
                self.live.update(super().state_dict())
                return self.live

        with MultiLoader({"a": Live()}, fixed(5)) as mixture:
            iterator = iter(mixture)
            next(iterator)
            state = mixture.state_dict()
            before = copy.deepcopy(state)
            next(iterator)
            assert state == before

    def test_a_map_style_dataset_with_state_is_saved(self) -> None:
        class Counting(Rows):
            count = 0

            def __getitem__(self, index: int) -> torch.Tensor:
                self.count += 1
                return torch.tensor([index, self.count])

            def state_dict(self) -> dict[str, int]:
                return {"count": self.count}

            def load_state_dict(self, state: dict[str, int]) -> None:
                self.count = state["count"]

        assert_resumes_exactly(lambda: DataLoader(Counting(7), 2, shuffle=True))
        with pytest.raises(AssertionError):
            assert_resumes_exactly(lambda: DataLoader(Counting(7), 2), change_state=without_snapshot)


class TestReplay:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_iterable_dataset(self, num_workers: int) -> None:
        def make() -> Any:
            return DataLoader(Streamed(11), 3, num_workers=num_workers)

        assert as_source(make(), "a").resume_mode is ResumeMode.REPLAY
        assert_resumes_exactly(make, every=1 if num_workers == 0 else 5)

    def test_an_object_with_iter(self) -> None:
        assert_resumes_exactly(lambda: Batches(6))

    def test_a_generator_goes_forward(self) -> None:
        assert assert_resumes_exactly(lambda: iter(Batches(6)), passes=1, max_batches=6) == 6

    def test_the_cost_is_said_once(self) -> None:
        with MultiLoader({"a": Batches(9)}, fixed(9)) as mixture:
            iterator = iter(mixture)
            for _ in range(4):
                next(iterator)
            state = mixture.state_dict()
        with MultiLoader({"a": Batches(9)}, fixed(9)) as mixture:
            mixture.load_state_dict(state)
            with pytest.warns(
                UserWarning, match="batch 4 of pass 0, the 4 batches before it are produced again"
            ) as caught:
                list(mixture)
            assert len(caught) == 1

    def test_a_loader_that_became_shorter(self) -> None:
        with MultiLoader({"a": Batches(9)}, fixed(9)) as mixture:
            for batch in mixture:
                if batch.step == 5:
                    break
            state = mixture.state_dict()
        with MultiLoader({"a": Batches(3)}, fixed(9)) as mixture:
            mixture.load_state_dict(state)
            with pytest.warns(UserWarning, match="produced again"), pytest.raises(ConfigError, match="ended after 3"):
                next(iter(mixture))

    def test_generators_stay_alive_between_iterations(self) -> None:
        with MultiLoader({"a": iter(range(100))}, fixed(3)) as mixture:
            assert [batch.data for batch in mixture] == [0, 1, 2]
            assert [batch.data for batch in mixture] == [3, 4, 5]

    def test_a_generator_can_not_cycle_or_go_back(self) -> None:
        with MultiLoader({"a": iter(range(2))}, fixed(3)) as mixture:  # noqa: SIM117
            with pytest.raises(ConfigError, match="one-shot iterator and can't start pass 1"):
                list(mixture)
        with MultiLoader({"a": iter(range(9))}, fixed(9)) as mixture:
            start = mixture.state_dict()
            next(iter(mixture))
            mixture.load_state_dict(start)
            with pytest.raises(ConfigError, match="has given 1 batches and can't go back to batch 0"):
                next(iter(mixture))

    def test_process_wide_generators_are_untouched(self) -> None:
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
        with MultiLoader(
            [Batches(5), DataLoader(Streamed(9), 3), DataLoader(Streamed(9), 3, num_workers=1)], fixed(20)
        ) as m:
            list(m)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (str(np.random.get_state()), random.getstate())


class TestEnds:
    @pytest.mark.filterwarnings("ignore:.*but len.. said")  # each resumed run says it as well
    def test_an_early_end_warns_with_both_numbers_and_resumes(self) -> None:
        def make() -> Any:
            return DataLoader(Sized(9, length=15), 3)

        said = r"a: pass 0 ended after 3 batches, but len\(\) said 5"
        with MultiLoader({"a": make(), "b": [0, 1]}, fixed(14)) as mixture, pytest.warns(UserWarning, match=said):
            drawn = [(b.name, b.pass_, b.batch) for b in mixture]
        assert drawn[::2] == [("a", p, b) for p in range(3) for b in range(3)][:7]
        assert_resumes_exactly(make)

    def test_a_late_end_warns(self) -> None:
        def make() -> Any:
            return DataLoader(Sized(9, length=6), 3)

        said = "a: pass [01] went on after 2 batches"
        with MultiLoader({"a": make()}, fixed(4)) as mixture, pytest.warns(UserWarning, match=said):
            assert [(b.pass_, b.batch) for b in mixture] == [(0, 0), (0, 1), (1, 0), (1, 1)]

    def test_unknown_lengths_cycle(self) -> None:
        with MultiLoader({"a": Batches(3), "b": DataLoader(Streamed(4), 2)}, fixed(10)) as mixture:
            drawn = [(b.name, b.pass_, b.batch) for b in mixture]
        assert drawn[::2] == [("a", p, b) for p in range(2) for b in range(3)][:5]
        assert drawn[1::2] == [("b", p, b) for p in range(3) for b in range(2)][:5]

    @pytest.mark.parametrize("said", [sys.maxsize, 2**64, float("inf"), NotImplementedError(), None])
    def test_endless_loaders_whatever_their_len_says(self, said: Any) -> None:
        """``sys.maxsize`` and infinity are usual for what never ends, and ``len()`` can't give more."""

        class Endless(EndlessIndices):
            def __len__(self) -> int:
                if isinstance(said, Exception):
                    raise said
                return said  # type: ignore[no-any-return]

        numbers = (Endless if said is not None else EndlessIndices)(9)
        loaders = {"a": numbers, "b": DataLoader(Rows(9), 2, sampler=numbers), "c": [0]}  # type: ignore[arg-type]
        for strategy in SamplingStrategy:
            settings = fixed(12)
            settings.sampling_strategy = strategy
            settings.alternating_pattern = [0, 1, 2] if strategy is SamplingStrategy.ALTERNATING else None
            with MultiLoader(loaders, settings) as mixture:
                assert len(list(mixture)) == len(list(mixture)) == 12
        with pytest.raises(ConfigError, match=r"needs the length of dataloader 'a' .* use .*FIXED_NUM_STEPS"):
            MultiLoader(loaders)

    def test_a_loader_without_a_batch(self) -> None:
        with MultiLoader({"a": Batches(0)}, fixed(3)) as mixture, pytest.raises(SourceError, match="no batch at all"):
            list(mixture)

    def test_an_unknown_length_where_it_matters(self) -> None:
        with pytest.raises(ConfigError, match="FIXED_NUM_STEPS"):
            MultiLoader({"a": Batches(3)})


class TestSequences:
    def test_lists_of_batches(self) -> None:
        assert isinstance(as_source([1, 2], "a"), SequenceSource)
        assert assert_resumes_exactly(lambda: [torch.tensor([i]) for i in range(4)]) == 8

    def test_ranks_take_turns(self) -> None:
        for rank in range(2):
            with MultiLoader({"a": list(range(7))}, rank=rank, world_size=2) as mixture:
                assert [batch.data for batch in mixture] == [rank, 2 + rank, 4 + rank]


def test_what_is_no_loader() -> None:
    with pytest.raises(
        ConfigError, match="loader 'a' must be a Source, a DataLoader or an iterable of batches, but is 3"
    ):
        as_source(3, "a")


def test_wrapped_loaders_are_refused_by_name() -> None:
    accelerate = pytest.importorskip("accelerate.data_loader")
    wrapped = accelerate.prepare_data_loader(DataLoader(Rows(4)))
    with pytest.raises(ConfigError, match=r"DataLoaderShard.*as it was before Accelerator\.prepare"):
        as_source(wrapped, "a")
    fabric = pytest.importorskip("lightning.fabric.wrappers")
    with pytest.raises(ConfigError, match=r"_FabricDataLoader.*Fabric\.setup_dataloaders"):
        as_source(fabric._FabricDataLoader(DataLoader(Rows(4))), "a")


def test_notes_name_what_does_not_hold() -> None:
    assert "produces the batches before" in IterableSource(Batches(3), "a").notes()[0]
    assert "one-shot" in IterableSource(iter([]), "a").notes()[0]
    assert len(IterableSource(DataLoader(Streamed(3), num_workers=2), "a").notes()) == 2
    assert StatefulSource(StatefulStream(3), "a").notes() == []


def test_content_hash_sees_values_dtypes_and_shapes() -> None:
    values: list[Any] = [
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64), np.zeros(2), [torch.zeros(2)],
        {"a": torch.zeros(2)}, {"b": torch.zeros(2)}, "ab", ["a", "b"], None, 0, torch.tensor(0),
    ]  # fmt: skip
    assert len({content_hash(value) for value in values}) == len(values)
    assert content_hash({"a": [torch.ones(2)]}) == content_hash({"a": (torch.ones(2),)})


class KeepsGenerator(IterableDataset[Any]):
    """Shuffles through a buffer, by a generator that continues from pass to pass."""

    def __init__(self, rng: Any) -> None:
        self.rng = rng

    def __iter__(self) -> Iterator[int]:
        buffer: list[int] = []
        for index in range(20):
            buffer.append(index)
            if len(buffer) > 5:
                yield buffer.pop(int(self.rng.random() * len(buffer)))
        yield from buffer


class CopiesGenerator(KeepsGenerator):
    """Begins each pass at its generator, which it doesn't move on, and the epoch."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = copy.deepcopy(self.rng)
        shift = int(rng.random() * 100) + 1000 * self.epoch
        return iter(range(shift, shift + 20))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("rng", [lambda: random.Random(3), lambda: np.random.default_rng(3)], ids=["python", "numpy"])
@pytest.mark.parametrize("dataset", [KeepsGenerator, CopiesGenerator])
def test_a_generator_that_a_stream_keeps_is_put_where_its_pass_begins(dataset: Any, rng: Any, num_workers: int) -> None:
    def make() -> DataLoader[Any]:
        return DataLoader(dataset(rng()), 3, num_workers=num_workers)

    every = 1 if num_workers == 0 else 6
    assert_resumes_exactly(make, passes=3, every=every, max_batches=18)
    assert check_source(make).ok


@pytest.mark.filterwarnings("ignore:.*are produced again and dropped")
def test_the_first_pass_of_such_a_stream_is_that_of_torch_and_later_passes_differ() -> None:
    expected = [batch.tolist() for batch in DataLoader(KeepsGenerator(random.Random(3)), 4)]
    config = MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=5)
    with MultiLoader(DataLoader(KeepsGenerator(random.Random(3)), 4), config) as mixture:
        start = mixture.state_dict()
        passes = [[batch.data.tolist() for batch in mixture] for _ in range(3)]
        assert passes[0] == expected
        assert len({str(one) for one in passes}) == 3
        mixture.load_state_dict(start)
        assert [[batch.data.tolist() for batch in mixture] for _ in range(3)] == passes
