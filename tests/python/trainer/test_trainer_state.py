"""TrainerState compares bit by bit and is a copy; batches are hashed by their content."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from mtf import TrainerState
from mtf.checkpoint.compare import first_differences
from mtf.data.determinism.content_hash import content_hash
from mtf.errors import CheckpointError


def quiet_nan(payload: int) -> torch.Tensor:
    return torch.tensor([0x7FC00000 + payload], dtype=torch.int32).view(torch.float32)


def test_equal_states() -> None:
    tree = {"step": 3, "t": torch.tensor([math.nan, 0.0]), "f": math.nan, "x": {"a": (1, [2.0])}}
    assert TrainerState(tree) == TrainerState({name: tree[name] for name in reversed(tree)})
    assert TrainerState(tree).diff(TrainerState(tree)) == []
    assert TrainerState(tree) != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(TrainerState(tree))


@pytest.mark.parametrize(
    ("a", "b", "line"),
    [
        (1, 1.0, "1 against 1.0"),
        (1, True, "1 against True"),
        (0.0, -0.0, "0.0 against -0.0"),
        ((1,), [1], "a tuple of 1 against a list of 1"),
        ([1, 2], [1], "length 2 against 1"),
        ({}, OrderedDict(), "a dict of 0 against a OrderedDict of 0"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "1 of 1 elements differ, first at [0]: 0.0 against -0.0"),
        (quiet_nan(1), quiet_nan(2), "1 of 1 elements differ, first at [0]: nan against nan"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "dtype torch.float32 against torch.float64"),
        (torch.zeros(2), torch.zeros(2, 1), "shape [2] against [2, 1]"),
        (torch.zeros(2, 3), torch.eye(2, 3), "2 of 6 elements differ, first at [0, 0]: 0.0 against 1.0"),
        (np.zeros(2), np.array([0.0, 1.0]), "1 of 2 elements differ, first at [1]: 0.0 against 1.0"),
        (np.float32(1), np.float64(1), "np.float32(1.0) against np.float64(1.0)"),
        ("a", b"a", "'a' against b'a'"),
        ({1, 2}, {1}, "a set of 2 against a set of 1"),
    ],
)
def test_differences_are_exact_and_named(a: Any, b: Any, line: str) -> None:
    one, two = TrainerState({"part": {0: [a]}}), TrainerState({"part": {0: [b]}})
    assert one != two
    assert one.diff(two) == [f"state['part'][0][0]: {line}"]


def test_missing_and_added_parts() -> None:
    one, two = TrainerState({"a": 1, "b": [1]}), TrainerState({"a": 1, "c": torch.ones(2)})
    assert one.diff(two) == [
        "state['b']: a list of 1 against nothing",
        "state['c']: nothing against a tensor of dtype torch.float32, shape [2]",
    ]
    assert len(TrainerState(dict.fromkeys("abcdef", 1)).diff(TrainerState({}), limit=2)) == 2


def test_memory_format_and_aliasing_do_not_count() -> None:
    image = torch.randn(2, 3, 4, 4)
    shared = torch.ones(2)
    one = TrainerState({"i": image, "a": shared, "b": shared})
    two = TrainerState({"i": image.to(memory_format=torch.channels_last), "a": shared.clone(), "b": shared.clone()})
    assert one == two


def test_it_is_a_copy() -> None:
    weight = torch.zeros(2)
    tree: dict[str, Any] = {"w": weight, "l": [1]}
    state = TrainerState(tree)
    weight += 1
    tree["l"].append(2)
    assert state == TrainerState({"w": torch.zeros(2), "l": [1]})
    assert state["l"] == [1]
    assert "w" in state


def test_what_it_cannot_hold_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"state\['hook'\]"):
        TrainerState({"hook": object()})


def test_repr_is_short_and_telling() -> None:
    text = repr(TrainerState({"global_step": 7, "model": {"w": torch.zeros(1000)}}))
    assert text == "TrainerState(global_step=7, 1 tensors, 4000 bytes; parts: model)"


# Hashes of batches


@dataclasses.dataclass
class Sample:
    x: Any
    label: int


Pair = namedtuple("Pair", ["a", "b"])


class Graph:
    def __init__(self, edges: Any) -> None:
        self.edges = edges


class Slots:
    __slots__ = ()


def batch() -> Any:
    torch.manual_seed(0)
    return {
        "image": torch.randn(2, 3, 4, 4),
        "labels": [1, 2.5, "x", b"y", None, True, 1j],
        "nested": (Sample(np.arange(4), 1), Pair(torch.ones(1), {3}), Graph(torch.zeros(2, 2))),
        "sparse": torch.eye(3).to_sparse(),
        "objects": np.array(["a", None], dtype=object),
    }


def test_equal_content_hashes_equally() -> None:
    one, two = batch(), batch()
    two["image"] = two["image"].to(memory_format=torch.channels_last).requires_grad_()
    two["nested"][0].x = np.arange(8)[::2] // 2
    assert content_hash(one) == content_hash(two)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0), (1, True), (0.0, -0.0), ("1", b"1"), ([[1], [2]], [[1, 2]]), (["ab", "c"], ["a", "bc"]),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)), (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(1), np.zeros(1)),
        (quiet_nan(1), quiet_nan(2)), ({"a": 1, "b": 2}, {"a": 1, "c": 2}), (Sample(1, 2), Sample(2, 1)), ({1}, {2}),
        (np.zeros(2, dtype="<f4"), np.zeros(2, dtype="<i4")), (None, "None"), (Pair(1, 2), (1, 2)),
    ],
)  # fmt: skip
def test_other_content_hashes_otherwise(a: Any, b: Any) -> None:
    assert content_hash(a) != content_hash(b)


def test_content_that_cannot_be_taken_is_named() -> None:
    with pytest.warns(UserWarning, match=r"batch\['x'\]\[0\]: a _thread.lock has no content that can be hashed"):
        content_hash({"x": [threading.Lock()]})


def test_hashes_are_the_same_in_every_process() -> None:
    assert content_hash({"x": torch.arange(3), "y": "z"}) == (
        "0dcb858be3b7151902f4eb9e342e1569f4f2702e42447030ad047a557608c367"
    )


def test_first_differences_stops_at_its_limit() -> None:
    assert len(first_differences(list(range(100)), list(range(1, 101)), limit=3)) == 3
