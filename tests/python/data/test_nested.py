"""One walk through a batch: which containers are opened, what they become, and how many bytes they hold."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from mtf.data.nested import leaves, map_leaves, num_bytes

Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    label: str = "a"
    made: Any = dataclasses.field(init=False, default=None)


NESTINGS = [
    {"x": 1.0, "y": [2.0, (3.0,)]},
    OrderedDict(b=1.0, a=2.0),
    defaultdict(list, x=1.0),
    UserDict(x=1.0, y=UserDict(z=2.0)),
    Pair(1.0, [2.0]),
    deque([1.0, 2.0]),
    Frozen({"deep": 1.0}),
    [],
    5.0,
]


@pytest.mark.parametrize("data", NESTINGS, ids=lambda data: type(data).__name__)
def test_a_nesting_keeps_its_type_and_order(data: Any) -> None:
    same = map_leaves(lambda value: value, data)
    assert type(same) is type(data)
    assert same == data
    doubled = map_leaves(lambda value: value * 2 if isinstance(value, float) else value, data)
    numbers = [value for value in leaves(data) if isinstance(value, float)]
    assert [value for value in leaves(doubled) if isinstance(value, float)] == [2 * number for number in numbers]


def test_what_was_given_is_not_changed() -> None:
    data = {"x": [1.0], "y": Frozen(1.0), "z": UserDict(a=1.0)}
    map_leaves(lambda value: 7.0, data)
    assert data == {"x": [1.0], "y": Frozen(1.0), "z": UserDict(a=1.0)}


def test_a_mapping_that_cannot_be_changed_becomes_a_dict() -> None:
    assert map_leaves(lambda value: value + 1, MappingProxyType({"x": 1})) == {"x": 2}


def test_a_container_may_count_as_a_leaf() -> None:
    data = {"x": Pair(1.0, 2.0), "y": 3.0}
    assert list(leaves(data, lambda value: isinstance(value, Pair))) == [Pair(1.0, 2.0), 3.0]


def test_bytes_of_tensors_and_arrays() -> None:
    batch = {"x": torch.zeros(3, 4), "y": Frozen(np.zeros(5)), "z": UserDict(t=torch.zeros(2)), "text": "abc", "n": 3}
    assert num_bytes(batch) == 48 + 40 + 8
    assert num_bytes(torch.zeros(7, dtype=torch.uint8)) == 7
