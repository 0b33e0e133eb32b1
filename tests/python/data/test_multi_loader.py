"""MultiLoader: order, state, commits, edits, ends, errors, and that it ends cleanly."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loaders import Rows, Sized, StatefulStream, shuffled
from torch.utils.data import DataLoader, WeightedRandomSampler

import mtf
from mtf.data.determinism.content_hash import content_hash
from mtf.data.sources.base import Source, Stream
from mtf.testing import assert_resumes_exactly

KEPT: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}


class Numbers(Source):
    """Batches (pass, batch) without any data."""

    def __init__(self, length: int | None, real_length: int | None = None) -> None:
        self.length = length
        self.real_length = length if real_length is None else real_length

    def num_batches(self) -> int | None:
        return self.length

    def open(self, pass_: int, batch: int, key: int, snapshot: Any = None) -> Stream:
        return NumberStream(pass_, batch, self.real_length)


class NumberStream(Stream):
    def __init__(self, pass_: int, batch: int, length: int | None) -> None:
        self.pass_, self.batch, self.length = pass_, batch, length

    def __next__(self) -> Any:
        if self.batch == self.length:
            raise StopIteration
        self.batch += 1
        return self.pass_, self.batch - 1


def config(**options: Any) -> mtf.MultiDataLoaderConfig:
    return mtf.MultiDataLoaderConfig(**options)


def fixed(num_steps: int, **options: Any) -> mtf.MultiDataLoaderConfig:
    return config(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=num_steps, **options)


def mixture(**options: Any) -> mtf.MultiLoader:
    """All kinds of sources that resume exactly, two passes of some in an epoch."""
    loaders = {
        "map": shuffled(11, 3),
        "arrays": mtf.ArrayLoader(torch.arange(26).reshape(13, 2), 4, shuffle=True),
        "state": StatefulStream(5),
        "list": [torch.tensor([i]) for i in range(3)],
    }
    weights = [0.4, 0.3, 0.2, 0.1]
    return mtf.MultiLoader(
        loaders, fixed(24, sampling_strategy="WEIGHTED", dataloader_weights=weights, **options), seed=5
    )


def draws(loader: mtf.MultiLoader, num_epochs: int = 1) -> list[tuple[Any, ...]]:
    return [
        (b.epoch, b.step, b.name, b.pass_, b.batch, b.batch_idx, content_hash(b.data))
        for _ in range(num_epochs)
        for b in loader
    ]


class TestOrder:
    def test_it_follows_the_schedule(self) -> None:
        with mixture() as loader:
            planned = [loader.schedule.at(step, 0) for step in range(24)]
            drawn = list(loader)
        assert [(b.step, b.source, b.name) for b in drawn] == [(d.step, d.source, d.name) for d in planned]
        # The length of "state" isn't known, so its passes show only when they end.
        for one, other in zip(drawn, planned, strict=True):
            assert one.name == "state" or (one.pass_, one.batch) == (other.pass_, other.batch)

    def test_batch_idx_counts_the_sources_draws_in_the_epoch(self) -> None:
        with mixture() as loader:
            for _ in range(2):
                seen = dict.fromkeys(loader.names, 0)
                for batch in loader:
                    assert batch.batch_idx == seen[batch.name]
                    seen[batch.name] += 1

    def test_long_epochs_cross_blocks(self) -> None:
        with mtf.MultiLoader({"a": Numbers(700), "b": Numbers(900)}) as loader:
            assert len(loader) == 1600
            assert [b.data for b in loader if b.name == "b"] == [(0, i) for i in range(800)]

    def test_lists_dicts_and_one_loader(self) -> None:
        assert mtf.MultiLoader([Numbers(1), Numbers(1)]).names == ["dl0", "dl1"]
        assert mtf.MultiLoader(Numbers(1)).names == ["dl0"]
        named = {"b": Numbers(1), "a": Numbers(1)}
        assert mtf.MultiLoader(named).names == ["b", "a"]
        assert mtf.MultiLoader(named, config(dataloader_names=["a", "b"])).names == ["a", "b"]

    def test_bad_names(self) -> None:
        with pytest.raises(mtf.ConfigError, match="must be exactly dataloader_names"):
            mtf.MultiLoader({"a": Numbers(1)}, config(dataloader_names=["b"]))
        with pytest.raises(mtf.ConfigError, match="1 names for 2 loaders"):
            mtf.MultiLoader([Numbers(1), Numbers(1)], config(dataloader_names=["b"]))
        with pytest.raises(mtf.ConfigError, match="'b' is there 2 times"):
            mtf.MultiLoader([Numbers(1), Numbers(1)], config(dataloader_names=["b", "b"]))
        with pytest.raises(mtf.ConfigError, match="loaders is empty"):
            mtf.MultiLoader([])
        with pytest.raises(mtf.ConfigError):
            mtf.MultiLoader({"a": []})

    def test_drop_last(self) -> None:
        with mtf.MultiLoader({"a": shuffled(10, 3)}, config(drop_last=True)) as loader:
            assert [len(b.data) for b in loader] == [3, 3, 3]

    def test_the_prefetch_budget_changes_nothing(self) -> None:
        with mixture() as loader:
            expected = draws(loader, 2)
        budgets: list[dict[str, int]] = [{"prefetch_batches": 1}, {"prefetch_workers": 0}, {"prefetch_bytes": 100}]
        for options in budgets:
            with mixture(**options) as loader:
                assert draws(loader, 2) == expected


class TestState:
    def test_resume_anywhere_in_three_epochs(self) -> None:
        with mixture() as loader:
            states, expected = [copy.deepcopy(loader.state_dict())], []
            for _ in range(3):
                for batch in loader:
                    expected.append((batch.epoch, batch.step, batch.name, content_hash(batch.data)))
                    states.append(copy.deepcopy(loader.state_dict()))
        for cut in range(0, len(states) - 1, 5):
            with mixture() as loader:
                loader.load_state_dict(states[cut])
                tail = []
                while len(tail) < len(expected) - cut:
                    tail += [(b.epoch, b.step, b.name, content_hash(b.data)) for b in loader]
                assert tail == expected[cut:]

    def test_at_the_epochs_end_the_position_is_the_next_ones_start(self) -> None:
        with mixture() as loader:
            list(loader)
            assert (loader.epoch, loader.step) == (1, 0)
            state = loader.state_dict()
            expected = draws(loader)
        with mixture() as loader:
            loader.load_state_dict(state)
            assert (loader.epoch, loader.step) == (1, 0)
            following = draws(loader)
            assert (following or draws(loader)) == expected

    def test_a_state_is_small_and_does_not_grow(self) -> None:
        with mtf.MultiLoader({"a": shuffled(), "b": Numbers(7)}, fixed(4000)) as loader:
            sizes = {len(json.dumps(loader.state_dict())) for batch in loader if batch.step % 1000 == 500}
        assert max(sizes) - min(sizes) < 16

    def test_only_committed_batches_are_state(self) -> None:
        with mixture() as loader:
            iterator = iter(loader)
            for _ in range(3):
                next(iterator)
            loader.commit()
            committed = copy.deepcopy(loader.state_dict())
            later = [next(iterator) for _ in range(9)]
            assert "state" in {batch.name for batch in later}, "a source whose own state moves on"
            expected = [content_hash(batch.data) for batch in later]
            assert content_hash(loader.state_dict()) == content_hash(committed)
        with mixture() as loader:
            loader.load_state_dict(committed)
            assert [content_hash(batch.data) for batch, _ in zip(loader, range(9), strict=False)] == expected

    def test_a_commit_before_the_end_of_the_epoch_survives_the_next_epoch(self) -> None:
        with mixture() as loader:
            iterator = iter(loader)
            for _ in range(22):
                next(iterator)
            loader.commit()
            expected = draws(loader)
            iterator = iter(loader)
            next(iterator)  # of the next epoch, and nothing committed since
            state = copy.deepcopy(loader.state_dict())
        with mixture() as loader:
            loader.load_state_dict(state)
            assert (loader.epoch, loader.step) == (0, 22)
            assert draws(loader) == expected

    def test_loading_goes_back_and_forth_in_one_object(self) -> None:
        with mixture() as loader:
            iterator = iter(loader)
            for _ in range(5):
                next(iterator)
            state = copy.deepcopy(loader.state_dict())
            expected = [content_hash(next(iterator).data) for _ in range(9)]
            loader.load_state_dict(state)
            iterator = iter(loader)
            assert [content_hash(next(iterator).data) for _ in range(9)] == expected

    def test_a_state_of_other_sources_changes_nothing(self) -> None:
        with mtf.MultiLoader({"a": Numbers(3), "x": Numbers(3)}) as other:
            strange = other.state_dict()
        with mtf.MultiLoader({"a": Numbers(3), "b": Numbers(3)}) as loader:
            iterator = iter(loader)
            next(iterator)
            before = loader.state_dict()
            for state in (strange, {**before, "version": 99}):
                with pytest.raises(mtf.StateMismatch):
                    loader.load_state_dict(state)
            assert loader.state_dict() == before
            assert next(iterator).name == "b"

    def test_set_epoch_keeps_a_position_inside_it(self) -> None:
        with mixture() as loader:
            next(iter(loader))
            loader.set_epoch(0)
            assert loader.step == 1
            loader.set_epoch(2)
            assert (loader.epoch, loader.step) == (2, 0)
        with mixture() as reference:
            expected = draws(reference, 3)
        assert expected[48][0] == 2

    def test_every_kind_alone(self) -> None:
        assert_resumes_exactly(lambda: mtf.ArrayLoader(torch.arange(26).reshape(13, 2), 3, shuffle=True))
        assert_resumes_exactly(lambda: Numbers(5))


class TestEdits:
    def test_edits_take_effect_at_the_next_step_and_resume(self) -> None:
        def edited(loader: mtf.MultiLoader, place: int) -> None:
            if place == 5:
                loader.update_weights([0.0, 1.0, 1.0, 1.0])
            if place == 9:
                loader.add_source("new", [torch.tensor([7])], weight=1.0)
            if place == 12:
                loader.remove_source("list")
            if place == 15:
                loader.set_strategy("ROUND_ROBIN", dataloader_weights=None)

        states, expected = [], []
        with mixture() as loader:
            iterator = iter(loader)
            for place in range(24):
                edited(loader, place)
                states.append(copy.deepcopy(loader.state_dict()))
                batch = next(iterator)
                expected.append((batch.name, content_hash(batch.data)))
            assert loader.names == ["map", "arrays", "state", "new"]
        assert "map" not in [name for name, _ in expected[5:15]]
        assert "list" not in [name for name, _ in expected[12:]]
        for cut in (4, 5, 9, 11, 12, 16, 20):
            with mixture() as loader:
                loader._sources.factories["new"] = lambda: [torch.tensor([7])]
                loader.load_state_dict(states[cut])
                iterator, tail = iter(loader), []
                for place in range(cut, 24):
                    if place > cut:
                        edited(loader, place)
                    batch = next(iterator)
                    tail.append((batch.name, content_hash(batch.data)))
                assert tail == expected[cut:], cut

    def test_a_source_added_later_is_asked_for_by_name(self) -> None:
        with mtf.MultiLoader({"a": Numbers(3)}) as loader:
            loader.add_source("b", Numbers(4))
            state = loader.state_dict()
        with mtf.MultiLoader({"a": Numbers(3)}) as loader, pytest.raises(mtf.StateMismatch, match="loader_factories"):
            loader.load_state_dict(state)
        with mtf.MultiLoader({"a": Numbers(3)}, loader_factories={"b": lambda: Numbers(4)}) as loader:
            loader.load_state_dict(state)
            assert loader.names == ["a", "b"]
            assert len(list(loader)) == 7

    def test_rebuild_schedule_reads_the_configuration(self) -> None:
        with mtf.MultiLoader({"a": Numbers(30), "b": Numbers(30)}, fixed(20)) as loader:
            iterator = iter(loader)
            for _ in range(4):
                next(iterator)
            loader.config.sampling_strategy = mtf.SamplingStrategy.WEIGHTED
            loader.config.dataloader_weights = [0.0, 1.0]
            loader.rebuild_schedule()
            assert {batch.name for batch in iterator} == {"b"}
            state = loader.state_dict()
        with mtf.MultiLoader({"a": Numbers(30), "b": Numbers(30)}, fixed(20)) as loader:
            loader.load_state_dict(state)
            assert loader.config.sampling_strategy is mtf.SamplingStrategy.WEIGHTED

    def test_the_users_configuration_is_not_changed(self) -> None:
        mine = fixed(20, sampling_strategy="WEIGHTED", dataloader_weights=[1.0, 1.0])
        with mtf.MultiLoader({"a": Numbers(3), "b": Numbers(3)}, mine) as loader:
            loader.set_weight("a", 9.0)
            assert loader.config.dataloader_weights == [9.0, 1.0]
        assert mine.dataloader_weights == [1.0, 1.0]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), max_size=6), st.integers(1, 4))
    def test_no_sequence_of_edits_loses_or_repeats_a_batch(self, edits: list[tuple[int, int]], budget: int) -> None:
        loaders: dict[str, Any] = {
            "a": Numbers(7),
            "b": mtf.ArrayLoader(torch.arange(40), 3),
            "c": mtf.ArrayLoader(torch.arange(11), 2),
        }
        options = fixed(200, sampling_strategy="WEIGHTED", prefetch_batches=budget)
        seen: dict[str, list[tuple[int, int]]] = {"a": [], "b": [], "c": []}
        with mtf.MultiLoader(loaders, options) as loader:
            iterator = iter(loader)
            for steps, kind in [*edits, (20, 0)]:
                for _ in range(steps):
                    batch = next(iterator)
                    seen[batch.name].append((batch.pass_, batch.batch))
                if kind == 4:
                    loader.set_strategy("ROUND_ROBIN", burst_size=steps, dataloader_weights=None)
                else:
                    loader.set_strategy("WEIGHTED", burst_size=1, dataloader_weights=[1.0, kind, 3.0 - kind / 2])
        for name, length in (("a", 7), ("b", 14), ("c", 6)):
            assert seen[name] == [divmod(index, length) for index in range(len(seen[name]))]


class TestEnds:
    @pytest.mark.filterwarnings("ignore:a. pass:UserWarning")  # each resumed run says it as well
    def test_an_early_end_is_found_again_after_a_resume(self) -> None:
        def make() -> mtf.MultiLoader:
            return mtf.MultiLoader({"a": Numbers(6, real_length=4), "b": Numbers(3)}, fixed(14))

        states, expected = [], []
        with make() as loader:
            states.append(loader.state_dict())
            with pytest.warns(UserWarning, match=r"a: pass 0 ended after 4 batches, but len\(\) said 6"):  # noqa: PT031
                for batch in loader:
                    expected.append((batch.name, batch.data))
                    states.append(loader.state_dict())
        assert [data for name, data in expected if name == "a"] == [divmod(index, 4) for index in range(7)]
        for cut, state in enumerate(states[:-1]):
            with make() as loader:
                loader.load_state_dict(state)
                assert [(batch.name, batch.data) for batch in loader] == expected[cut:]

    def test_a_source_that_ends_early_leaves_when_it_does_not_cycle(self) -> None:
        loaders = {"a": DataLoader(Sized(4, length=8), 2), "b": Numbers(4)}
        said = r"ended after 2 batches, but len\(\) said 4"
        settings = config(cycle_short_loaders=False)
        with mtf.MultiLoader(loaders, settings) as loader, pytest.warns(UserWarning, match=said):
            assert [batch.name for batch in loader] == ["a", "b", "a", "b", "b", "b"]

    def test_len_of_an_unknown_epoch(self) -> None:
        loaders = {"a": Numbers(None, real_length=3), "b": Numbers(None, real_length=9)}
        with mtf.MultiLoader(loaders, config(epoch_length_policy=mtf.EpochLengthPolicy.MIN_LENGTH)) as loader:
            with pytest.raises(TypeError, match="isn't known"):
                len(loader)
            assert [batch.name for batch in loader] == ["a", "b"] * 3


class TestRanks:
    def test_all_ranks_draw_the_same_sources(self) -> None:
        drawn = []
        for rank in range(2):
            loaders = {"a": shuffled(11, 2), "b": mtf.ArrayLoader(torch.arange(20), 2, shuffle=True)}
            with mtf.MultiLoader(loaders, fixed(20), rank=rank, world_size=2) as loader:
                drawn.append([(b.step, b.name, b.pass_, b.batch) for b in loader])
        assert drawn[0] == drawn[1]

    def test_a_source_without_a_division_is_refused(self) -> None:
        with pytest.raises(mtf.ConfigError, match=r"'a' \(Numbers\) can't be divided over 2 ranks"):
            mtf.MultiLoader({"a": Numbers(3)}, world_size=2)

    def test_unknown_lengths_must_cycle_on_several_ranks(self) -> None:
        class Endless:
            def __iter__(self) -> Iterator[int]:
                return iter(range(5))

        with pytest.raises(mtf.ConfigError, match="cycle_short_loaders=True"):
            mtf.MultiLoader({"a": Endless()}, fixed(3, cycle_short_loaders=False), world_size=2)


class TestCleanEnds:
    def test_closed(self) -> None:
        loader = mixture()
        iterator = iter(loader)
        next(iterator)
        position = loader.state_dict()["schedule"]
        loader.close()
        loader.close()
        assert loader.state_dict()["schedule"] == position
        with pytest.raises(mtf.Closed):
            iter(loader)

    def test_iterators_share_the_position(self) -> None:
        with mtf.MultiLoader({"a": Numbers(4)}) as loader:
            first, second = iter(loader), iter(loader)
            assert [next(first).step, next(second).step, next(first).step, next(second).step] == [0, 1, 2, 3]
            assert list(first) == []
            assert list(second) == []

    @pytest.mark.parametrize("loader", [DataLoader(Sized(9, length=9), 1, **KEPT), shuffled(9, 1, **KEPT)])
    def test_workers_that_a_loader_keeps_end_with_it(self, loader: Any) -> None:
        before = len(multiprocessing.active_children())
        for leave in ("close", "remove_source"):
            with mtf.MultiLoader({"a": loader, "b": Numbers(4)}) as mixed:
                batches = iter(mixed)
                assert {next(batches).name for _ in range(2)} == {"a", "b"}
                assert len(multiprocessing.active_children()) == before + 1
                if leave == "remove_source":
                    mixed.remove_source("a")
                    assert len(multiprocessing.active_children()) == before
            assert len(multiprocessing.active_children()) == before

    def test_a_name_may_come_back_with_another_kind_of_loader(self) -> None:
        with mtf.MultiLoader({"a": StatefulStream(5), "b": Numbers(4)}, fixed(20)) as mixed:
            next(iter(mixed))
            mixed.commit()
            mixed.remove_source("a")
            mixed.add_source("a", Numbers(6))
            next(iter(mixed))
            mixed.commit()
            state = mixed.state_dict()
            assert state["sources"]["a"] is None  # a position says everything now
            mixed.load_state_dict(state)
            assert next(iter(mixed)).name in ("a", "b")

    def test_abandoned_loaders_leave_no_threads(self) -> None:
        before = threading.active_count()
        for _ in range(30):
            next(iter(mixture()))
        gc.collect()
        assert threading.active_count() <= before

    def test_a_forked_child_is_told(self) -> None:
        with mtf.MultiLoader({"a": Numbers(4)}) as loader:
            next(iter(loader))
            pid = os.fork()
            if pid == 0:
                try:
                    iter(loader)
                except mtf.Closed:
                    os._exit(7)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert len(list(loader)) == 3

    @pytest.mark.parametrize("ending", ["sys.exit(4)", "raise SystemExit(4)", "os._exit(4)", "signal"])
    def test_the_interpreter_ends_with_live_workers(self, ending: str) -> None:
        code = (
            "import os, sys, time, torch, mtf\n"
            "from torch.utils.data import DataLoader, TensorDataset\n"
            "rows = TensorDataset(torch.arange(100))\n"
            "rows = DataLoader(rows, 2, num_workers=1, persistent_workers=True)\n"
            "loader = mtf.MultiLoader({'a': rows, 'b': mtf.ArrayLoader(torch.arange(9), 2)})\n"
            "batches = iter(loader)\n"
            "for _ in range(3): next(batches)\n"
            "print('ready', flush=True)\n"
        )
        code += "time.sleep(60)" if ending == "signal" else ending
        pipe = subprocess.PIPE
        child = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        if ending == "signal":
            child.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = child.communicate(timeout=20)
        assert time.monotonic() - start < 10
        if ending == "signal":
            assert "KeyboardInterrupt" in errors
        else:
            assert child.returncode == 4
            assert errors == ""

    def test_ctrl_c_while_a_worker_is_slow(self, tmp_path: Path) -> None:
        go_on = tmp_path / "go on"

        class Waiting(Rows):
            def __getitem__(self, index: int) -> torch.Tensor:
                while index >= 2 and not go_on.exists():
                    time.sleep(0.01)
                return torch.tensor([index])

        def interrupt() -> None:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            go_on.touch()

        with mtf.MultiLoader({"a": DataLoader(Waiting(6), 1, num_workers=1)}) as loader:
            iterator = iter(loader)
            assert [next(iterator).data.item() for _ in range(2)] == [0, 1]
            thread = threading.Thread(target=interrupt)
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come before the wait begins
                thread.start()
                next(iterator)
            thread.join()
            # Nothing was lost: the same place comes next.
            assert loader.step == 2
            assert next(iter(loader)).data.item() == 2


class TestDevice:
    def test_batches_are_moved(self) -> None:
        with mtf.MultiLoader({"a": shuffled()}, device="meta") as loader:
            assert next(iter(loader)).data.device.type == "meta"


def test_one_step_costs_little() -> None:
    with mtf.MultiLoader({"a": Numbers(50_000), "b": Numbers(50_000)}) as loader:
        iterator = iter(loader)
        next(iterator)
        best = min(_time_steps(iterator, 2000) for _ in range(5))
    assert best < 60e-6  # about 3 us on an idle machine


def _time_steps(iterator: Iterator[Any], num_steps: int) -> float:
    start = time.perf_counter()
    for _ in range(num_steps):
        next(iterator)
    return (time.perf_counter() - start) / num_steps


def test_statistics_and_notes() -> None:
    with mixture() as loader:
        list(loader)
        stats = loader.stats()
    assert stats["num_steps"] == 24
    assert stats["wait_s"] > 0
    assert set(stats["in_flight"]) == {"map", "arrays", "state", "list"}
    assert stats["engine"]["num_taken"] > 0


def test_arrays_are_not_copied_ahead_beyond_the_cache() -> None:
    rows = torch.zeros(256, 1 << 20, dtype=torch.uint8)  # 32 batches of 8 MiB

    def held(prefetch_bytes: int | None) -> int:
        config = mtf.MultiDataLoaderConfig(prefetch_batches=8, prefetch_bytes=prefetch_bytes)
        with mtf.MultiLoader([mtf.ArrayLoader(rows, batch_size=8)], config) as batches:
            iterator = iter(batches)
            next(iterator)
            deadline = time.monotonic() + (0.4 if prefetch_bytes is None else 30)
            while (most := batches.stats()["engine"]["bytes_held"]) <= mtf.ArrayLoader.ahead_bytes:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            return most

    assert held(None) <= mtf.ArrayLoader.ahead_bytes
    assert held(1 << 40) > mtf.ArrayLoader.ahead_bytes


def test_an_edit_behind_the_last_commit_is_no_state() -> None:
    loader = mtf.MultiLoader({"a": Numbers(5), "b": Numbers(5)})
    batches = iter(loader)
    next(batches)
    loader.commit()
    committed = loader.state_dict()
    next(batches)
    loader.remove_source("a")
    loader.add_source("c", Numbers(2))
    assert loader.state_dict() == committed
    loader.commit()
    assert list(loader.state_dict()["sources"]) == ["b", "c"]
    assert list(loader.state_dict()["global_batch_sizes"]) == ["b", "c"]


def test_a_configuration_that_was_refused_does_not_come_back_with_the_next_edit() -> None:
    loader = mtf.MultiLoader({"a": Numbers(5), "b": Numbers(5)})
    loader.config.sampling_strategy = mtf.SamplingStrategy.ALTERNATING
    loader.config.alternating_pattern = [0, 7]
    with pytest.raises(mtf.ConfigError, match="alternating_pattern"):
        loader.rebuild_schedule()
    loader.config.burst_size = 2
    loader.rebuild_schedule()
    assert loader.config.sampling_strategy is mtf.SamplingStrategy.ROUND_ROBIN
    assert [batch.name for batch in loader][:4] == ["a", "a", "b", "b"]


class Continuing:
    """A stateful loader whose next iterator continues where the last one was left, also at its end."""

    def __init__(self, num: int) -> None:
        self.num, self.place, self.num_ended = num, 0, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.place < self.num:
            self.place += 1
            yield torch.tensor([self.num_ended, self.place])
        self.place, self.num_ended = 0, self.num_ended + 1

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place, "num_ended": self.num_ended}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place, self.num_ended = state["place"], state["num_ended"]


@pytest.mark.parametrize("steps_per_epoch", [3, 4, 6])
@pytest.mark.parametrize("cut", range(1, 10))
def test_a_pass_left_behind_by_the_epochs_end_is_left_as_after_a_resume(steps_per_epoch: int, cut: int) -> None:
    def make() -> mtf.MultiLoader:
        settings = mtf.MultiDataLoaderConfig(
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=steps_per_epoch,
            continue_across_epochs=False,
        )
        return mtf.MultiLoader({"a": Continuing(3)}, settings)

    def take(loader: mtf.MultiLoader, num: int) -> list[list[int]]:
        found: list[list[int]] = []
        while len(found) < num:
            for batch in loader:
                found.append(batch.data.tolist())
                if len(found) == num:
                    break
        return found

    whole = take(make(), 12)
    first, second = make(), make()
    begun = take(first, cut)
    second.load_state_dict(first.state_dict())
    assert begun + take(second, 12 - cut) == whole


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (lambda data: DataLoader(data, 2), "gives its samples in order here, but shuffled in the state"),
        (
            lambda data: DataLoader(data, 2, sampler=WeightedRandomSampler([1.0] * 12, 12)),
            "by WeightedRandomSampler here",
        ),
        (
            lambda data: DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(5)),
            "shuffled by a generator of seed 5 here, but shuffled in the state",
        ),
        (lambda data: mtf.ArrayLoader(data, 2), "in order here, but shuffled in the state"),
    ],
    ids=["in order", "another sampler", "a generator of its own", "an array"],
)
def test_samples_in_another_order_are_refused(here: Any, message: str) -> None:
    data = torch.arange(12)
    began = mtf.MultiLoader({"a": DataLoader(data, 2, shuffle=True)})  # type: ignore[arg-type]
    next(iter(began))
    state = began.state_dict()
    with pytest.raises(mtf.StateMismatch, match=message):
        mtf.MultiLoader({"a": here(data)}).load_state_dict(state)
    mtf.MultiLoader({"a": mtf.ArrayLoader(data, 2, shuffle=True)}).load_state_dict(state)
    del state["orders"]  # as in states that were saved before it was noted
    mtf.MultiLoader({"a": here(data)}).load_state_dict(state)
