"""State machines of the prefetch engine and of MultiLoader: any order of calls, against plain lists and loops."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from loaders import StatefulStream, shuffled
from torch.utils.data import DataLoader

import mtf
from mtf import _core
from mtf.data.determinism.content_hash import content_hash
from mtf.data.prefetch.engine import Engine
from mtf.data.sources.base import Source, Stream
from mtf.errors import Closed, ConfigError

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.timeout(240)]

BAD = 7  # a fetch of every batch with this number modulo 8 raises


class FetchError(Exception):
    """Raised by a source."""


class EngineMachine(RuleBasedStateMachine):
    """The engine is one queue per source: what was requested comes in its order, whatever threads and budget do."""

    @initialize(
        num_threads=st.sampled_from([0, 1, 3]), budget=st.integers(1, 6), num_bytes=st.sampled_from([None, 1, 250])
    )
    def start(self, num_threads: int, budget: int, num_bytes: int | None) -> None:
        self.budget = budget
        self.queues: list[list[tuple[int, int]]] = []
        self.num_taken = 0
        self.is_closed = False
        self.engine = Engine([], num_threads, budget, num_bytes)
        for _ in range(2):
            self.add_source(concurrent=True)

    @rule(concurrent=st.booleans())
    @precondition(lambda self: len(self.queues) < 4 and not self.is_closed)
    def add_source(self, concurrent: bool) -> None:
        number = len(self.queues)

        def fetch(pass_: int, batch: int) -> Any:
            if batch % 8 == BAD:
                raise FetchError(f"{number} {pass_} {batch}")
            return number, pass_, batch

        assert self.engine.add_source(_core.CallableSource(fetch, lambda _: 100, concurrent=concurrent)) == number
        self.queues.append([])

    @rule(draws=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=12))
    @precondition(lambda self: not self.is_closed)
    def request(self, draws: list[tuple[int, int, int]]) -> None:
        columns = [list(column) for column in zip(*draws, strict=True)]
        if max(columns[0]) >= len(self.queues):
            with pytest.raises(ConfigError):
                self.engine.request(*columns)
            return
        self.engine.request(*columns)
        for source, pass_, batch in draws:
            self.queues[source].append((pass_, batch))

    @rule(source=st.integers(0, 3), num=st.integers(1, 6))
    @precondition(lambda self: not self.is_closed)
    def take(self, source: int, num: int) -> None:
        source %= len(self.queues)
        for _ in range(num):
            if not self.queues[source]:
                with pytest.raises(ConfigError):
                    self.engine.take(source)
                return
            pass_, batch = self.queues[source].pop(0)
            self.num_taken += 1
            if batch % 8 == BAD:
                with pytest.raises(FetchError, match=f"^{source} {pass_} {batch}$"):
                    self.engine.take(source)
            else:
                assert self.engine.take(source, timeout_s=60) == (source, pass_, batch)

    @rule(source=st.integers(0, 3))
    @precondition(lambda self: not self.is_closed)
    def discard(self, source: int) -> None:
        source %= len(self.queues)
        assert self.engine.discard(source) == len(self.queues[source])
        self.queues[source].clear()

    @rule()
    @precondition(lambda self: not self.is_closed)
    def reset(self) -> None:
        self.engine.reset()
        for queue in self.queues:
            queue.clear()

    @rule()
    def close(self) -> None:
        self.engine.close()
        self.is_closed = True
        for call in (lambda: self.engine.take(0), lambda: self.engine.request([0], [0], [0]), self.engine.reset):
            with pytest.raises(Closed):
                call()

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "engine"):
            return
        stats = self.engine.stats()
        assert stats["num_taken"] == self.num_taken
        assert stats["peak_batches_held"] <= self.budget + 1
        held = stats["num_queued"] + stats["num_running"] + stats["num_ready"]
        assert held >= 0 if self.is_closed else held >= sum(map(len, self.queues))

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()


class Numbers(Source):
    """Batches without data, as many as it likes whatever its length says."""

    def __init__(self, name: str, length: int | None, true_length: int) -> None:
        self.label, self.length, self.true_length = name, length, true_length

    def num_batches(self) -> int | None:
        return self.length

    def open(self, pass_: int, batch: int, key: int, snapshot: Any = None) -> Stream:
        return NumberStream(self, pass_, batch)


class NumberStream(Stream):
    def __init__(self, source: Numbers, pass_: int, batch: int) -> None:
        self.source, self.pass_, self.batch = source, pass_, batch

    def __next__(self) -> Any:
        if self.batch == self.source.true_length:
            raise StopIteration
        self.batch += 1
        return self.source.label, self.pass_, self.batch - 1


MAKERS: dict[str, Callable[[], Any]] = {
    "map": lambda: shuffled(11, 3),
    "arrays": lambda: mtf.ArrayLoader(torch.arange(26).reshape(13, 2), 4, shuffle=True),
    "stateful": lambda: StatefulStream(5),
    "list": lambda: [torch.tensor([i]) for i in range(3)],
    "ordered": lambda: DataLoader(torch.arange(6), batch_size=2),
    "unknown": lambda: Numbers("unknown", None, 4),
    "wrong": lambda: Numbers("wrong", 5, 3),
    "right": lambda: Numbers("right", 2, 2),
}
Seen = tuple[int, int, str, int, int, int, str]


class MultiLoaderMachine(RuleBasedStateMachine):
    """Whatever happened before, the batch at a position is that of a plain loop: without threads, saving or loading,
    from the start to there, with the same edits at the same positions."""

    states = Bundle("states")

    @initialize(
        names=st.lists(st.sampled_from(sorted(MAKERS)), min_size=1, max_size=4, unique=True),
        weighted=st.booleans(),
        cycle=st.booleans(),
        budget=st.sampled_from([{}, {"prefetch_batches": 1}, {"prefetch_workers": 0}]),
    )
    def start(self, names: list[str], weighted: bool, cycle: bool, budget: dict[str, int]) -> None:
        self.names, self.budget = names, budget
        self.options: dict[str, Any] = {
            "epoch_length_policy": mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            "steps_per_epoch": 13,
            "sampling_strategy": mtf.SamplingStrategy.WEIGHTED if weighted else mtf.SamplingStrategy.ROUND_ROBIN,
            "cycle_short_loaders": cycle,
        }
        self.edits: list[tuple[int, Callable[[mtf.MultiLoader], None]]] = []
        self.num_read = 0  # batches handed out since the beginning
        self.num_committed: int | None = None
        self.plain: list[Seen] = []
        self.plain_edits = 0
        self.loader = self.fresh()

    def fresh(self, **budget: int) -> mtf.MultiLoader:
        config = mtf.MultiDataLoaderConfig(**self.options, **(budget or self.budget))
        made = {name: MAKERS[name]() for name in self.names}
        return mtf.MultiLoader(made, config, seed=3, loader_factories=MAKERS)

    def expected(self, index: int) -> Seen:
        """Batch ``index`` of the plain loop."""
        if len(self.plain) <= index or self.plain_edits != len(self.edits):
            self.plain, self.plain_edits = [], len(self.edits)
            with self.fresh(prefetch_workers=0) as loader:
                edits = list(self.edits)
                while len(self.plain) <= index + 12:
                    for batch in loader:
                        self.plain.append(seen(batch))
                        while edits and edits[0][0] == len(self.plain):
                            edits.pop(0)[1](loader)
        return self.plain[index]

    def go_to(self, num_read: int, edits: list[tuple[int, Any]]) -> None:
        """The model's side of a load: edits behind the position are forgotten."""
        self.num_read, self.edits, self.plain_edits = num_read, list(edits), -1

    @rule(num=st.integers(1, 9))
    def read(self, num: int) -> None:
        iterator = iter(self.loader)
        for _ in range(num):
            batch = next(iterator, None)
            if batch is None:
                iterator = iter(self.loader)
                batch = next(iterator)
            assert seen(batch) == self.expected(self.num_read)
            self.num_read += 1

    @rule()
    def commit(self) -> None:
        self.loader.commit()
        self.num_committed = self.num_read

    @rule(target=states)
    def save(self) -> Any:
        at = self.num_read if self.num_committed is None else self.num_committed
        return json.dumps(self.loader.state_dict()), at, [edit for edit in self.edits if edit[0] <= at]

    @rule(state=states, here=st.booleans())
    def load(self, state: Any, here: bool) -> None:
        saved, at, edits = state
        if not here:
            self.loader.close()
            self.loader = self.fresh()
        self.loader.load_state_dict(json.loads(saved))
        self.go_to(at, edits)
        self.num_committed = None

    @rule()
    def rewind(self) -> None:
        if self.num_committed is None:
            return
        self.loader.rewind()
        self.go_to(self.num_committed, [edit for edit in self.edits if edit[0] <= self.num_committed])

    def edit(self, edit: Callable[[mtf.MultiLoader], None]) -> None:
        if self.num_read == 0 or self.num_committed not in (None, self.num_read):
            return  # the trainer edits at committed positions; the plain loop edits behind a batch
        before = copy.deepcopy(self.loader.state_dict())
        try:
            edit(self.loader)
        except ConfigError:
            assert self.loader.state_dict() == before
            return
        self.edits.append((self.num_read, edit))

    @rule(weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=8, max_size=8))
    def update_weights(self, weights: list[float]) -> None:
        self.edit(lambda loader: loader.update_weights(weights[: len(loader.names)]))

    @rule(name=st.sampled_from(sorted(MAKERS)))
    def remove(self, name: str) -> None:
        self.edit(lambda loader: loader.remove_source(name))

    @rule(name=st.sampled_from(sorted(MAKERS)))
    def add(self, name: str) -> None:
        weight = 1.0 if self.options["sampling_strategy"] is mtf.SamplingStrategy.WEIGHTED else None
        self.edit(lambda loader: loader.add_source(name, MAKERS[name](), weight))

    @rule(burst=st.integers(1, 3))
    def set_strategy(self, burst: int) -> None:
        self.edit(lambda loader: loader.set_strategy(mtf.SamplingStrategy.ROUND_ROBIN, burst_size=burst))

    @rule()
    def close_and_go_on(self) -> None:
        """Closes it; its state can still be read, and a fresh one continues."""
        if self.num_committed not in (None, self.num_read):
            return
        self.loader.close()
        self.loader.close()
        with pytest.raises(Closed):
            iter(self.loader)
        state = self.loader.state_dict()
        self.loader = self.fresh()
        self.loader.load_state_dict(state)
        self.num_committed = None

    def teardown(self) -> None:
        if hasattr(self, "loader"):
            self.loader.close()


def seen(batch: mtf.Batch) -> Seen:
    where = (batch.epoch, batch.step, batch.name, batch.pass_, batch.batch, batch.batch_idx)
    return (*where, content_hash(batch.data))


def test_any_sequence_of_requests_and_takes() -> None:
    run_state_machine_as_test(EngineMachine, settings=settings(max_examples=80, stateful_step_count=30))


def test_any_sequence_of_batches_edits_and_states() -> None:
    run_state_machine_as_test(MultiLoaderMachine, settings=settings(max_examples=40, stateful_step_count=20))
