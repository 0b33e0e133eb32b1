"""Ctrl-C at any call, a source that raises at its end, a batch that can't be moved: no batch is missed."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from loaders import Sized, StatefulStream, Streamed, shuffled
from torch.utils.data import DataLoader

import mtf

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    # Ctrl-C while a generator is being dropped is shown and goes no further.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(240),
]

NUM_EPOCHS = 2
PACKAGE = str(Path(mtf.__file__).parent)
SEARCH_STRIDE = 25  # the search for generators makes thousands of calls and only reads: some of them stand for all


class Counting:
    """A loader of known length that saves where it is."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.passes = self.index = 0
        self.errors: list[Exception] = []  # raised where the loader is asked whether its pass has ended

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.index < self.length:
            self.index += 1
            yield torch.tensor([100 * self.passes + self.index])
        if self.errors:
            raise self.errors.pop()
        self.passes, self.index = self.passes + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"passes": self.passes, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passes, self.index = state["passes"], state["index"]


def loaders(kind: str) -> dict[str, Any]:
    numbers = torch.arange(20)
    return {
        "batches": lambda: {"a": [numbers[:3], numbers[3:5]], "b": [numbers[i : i + 2] for i in range(5)]},
        "map": lambda: {"a": shuffled(10, 2), "b": shuffled(8, 3)},
        "state": lambda: {"a": Counting(4), "b": DataLoader(StatefulStream(5), batch_size=2)},
        "replayed": lambda: {"a": DataLoader(Streamed(7), batch_size=2), "b": DataLoader(Sized(3, 3), batch_size=1)},
        "arrays": lambda: {"a": mtf.ArrayLoader(numbers, 6, shuffle=True), "b": mtf.ArrayLoader(numbers[:7], 2)},
        "threads": lambda: {"a": mtf.ThreadLoader(numbers, 6, shuffle=True, num_threads=2), "b": [numbers[:2]] * 3},
        "workers": lambda: {
            "a": shuffled(10, 2, num_workers=1),
            "b": shuffled(8, 3, num_workers=1, persistent_workers=True),
        },
    }[kind]()


def mixture(kind: str) -> mtf.MultiLoader:
    config = mtf.MultiDataLoaderConfig(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=9, burst_size=2)
    return mtf.MultiLoader(loaders(kind), config, seed=3)


def rest(loader: mtf.MultiLoader) -> dict[tuple[int, int], tuple[Any, ...]]:
    """What is left of the epochs, by epoch and step."""
    found = {}
    while loader.epoch < NUM_EPOCHS:
        found.update(described(batch) for batch in loader)
    return found


def described(batch: mtf.Batch) -> tuple[tuple[int, int], tuple[Any, ...]]:
    where = (batch.epoch, batch.step)
    return where, (batch.name, batch.pass_, batch.batch, batch.batch_idx, batch.data.tolist())


class CtrlC:
    """Raises KeyboardInterrupt at a call of one of mtf's functions: Python looks at signals when it begins one."""

    def __init__(self, call: int) -> None:
        self.calls_left = call
        self.search_calls = 0
        self.raised = False
        self.process = os.getpid()  # workers inherit the trace

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if file.endswith("owned_generators.py"):
            self.search_calls += 1
            if self.search_calls % SEARCH_STRIDE:
                return
        if file.startswith(PACKAGE) and not self.raised and os.getpid() == self.process:
            self.calls_left -= 1
            if self.calls_left == 0:
                self.raised = True
                raise KeyboardInterrupt

    @contextmanager
    def threatening(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


@pytest.mark.parametrize(
    ("kind", "stride"),
    [("batches", 3), ("map", 5), ("state", 5), ("replayed", 5), ("arrays", 2), ("threads", 3), ("workers", 41)],
)
def test_ctrl_c_at_any_call_changes_no_batch(kind: str, stride: int) -> None:
    with mixture(kind) as whole:
        expected = rest(whole)
    call, was_raised = 1, True
    while was_raised:
        ctrl_c = CtrlC(call)
        found: dict[tuple[int, int], tuple[Any, ...]] = {}
        state, num_found = None, 0
        with mixture(kind) as loader:
            while loader.epoch < NUM_EPOCHS:
                try:
                    with ctrl_c.threatening():
                        batches = iter(loader)
                    batch: mtf.Batch | None = None
                    while True:
                        with ctrl_c.threatening():
                            batch = next(batches, None)
                        if batch is None:
                            break
                        found.update([described(batch)])
                except KeyboardInterrupt:
                    state, num_found = copy.deepcopy(loader.state_dict()), len(found)
        assert found == expected, f"after Ctrl-C at call {call}"
        if state is not None:
            with mixture(kind) as resumed:
                resumed.load_state_dict(state)
                assert rest(resumed) == dict(list(expected.items())[num_found:]), f"resumed after Ctrl-C at call {call}"
        call, was_raised = call + stride, ctrl_c.raised


def test_an_error_where_a_pass_is_seen_to_end_loses_no_batch() -> None:
    with mixture("state") as whole:
        expected = rest(whole)
    with mixture("state") as loader:
        loader._sources.readers["a"].source.loader.errors.append(OSError("the connection was lost"))  # type: ignore[attr-defined]
        found: dict[tuple[int, int], tuple[Any, ...]] = {}
        with pytest.raises(mtf.SourceError, match=r"pass 0, batch 3 .* the connection was lost"):
            found.update(described(batch) for batch in loader)
        state = copy.deepcopy(loader.state_dict())
        later = rest(loader)
    with mixture("state") as resumed:
        resumed.load_state_dict(state)
        assert rest(resumed) == later
    assert later == dict(list(expected.items())[-len(later) :])
    assert next(iter(later.values()))[:3] == ("a", 0, 3)


EDITS: dict[str, Callable[[mtf.MultiLoader], Any]] = {
    "weights": lambda loader: loader.update_weights([3, 1]),
    "strategy": lambda loader: loader.set_strategy("ROUND_ROBIN"),
    "add": lambda loader: loader.add_source("c", [torch.tensor([7])], weight=2.0),
    "remove": lambda loader: loader.remove_source("a"),
    "set_epoch": lambda loader: loader.set_epoch(1),
    "rewind": lambda loader: loader.rewind(),
}


@pytest.mark.parametrize("edit", EDITS)
def test_ctrl_c_at_any_call_of_an_edit_leaves_what_the_state_says(edit: str) -> None:
    def make() -> mtf.MultiLoader:
        config = mtf.MultiDataLoaderConfig(
            sampling_strategy="WEIGHTED",
            dataloader_weights=[1, 2],
            epoch_length_policy="FIXED_NUM_STEPS",
            steps_per_epoch=9,
        )
        lists = {name: [torch.tensor([number]) for number in range(length)] for name, length in (("a", 4), ("b", 5))}
        return mtf.MultiLoader(lists, config, seed=3, loader_factories={"c": lambda: [torch.tensor([7])]})

    call, was_raised = 1, True
    while was_raised:
        ctrl_c = CtrlC(call)
        loader = make()
        batches = iter(loader)
        next(batches)
        loader.commit()
        next(batches)
        try:
            with ctrl_c.threatening():
                EDITS[edit](loader)
        except KeyboardInterrupt:
            loader.rewind()
        resumed = make()
        resumed.load_state_dict(copy.deepcopy(loader.state_dict()))
        if not ctrl_c.raised:
            loader.rewind()
        assert rest(loader) == rest(resumed), f"after Ctrl-C at call {call}"
        call, was_raised = call + 1, ctrl_c.raised


class Stubborn:
    """A batch that can be moved at the second attempt."""

    def __init__(self, number: int) -> None:
        self.number, self.num_attempts = number, 0

    def to(self, device: torch.device) -> int:
        self.num_attempts += 1
        if self.num_attempts == 1:
            raise RuntimeError("out of memory")
        return self.number


def test_a_batch_that_could_not_be_moved_comes_again() -> None:
    loader = mtf.MultiLoader([[Stubborn(number) for number in range(3)]], device="cpu")
    found = []
    for _ in range(4):
        with suppress(RuntimeError):
            for batch in loader:
                found.append((batch.step, batch.batch_idx, batch.data))
    assert found == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
