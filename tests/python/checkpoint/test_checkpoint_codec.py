"""The state tree: everything it promises to keep comes back bit for bit; everything else is refused with its path."""

from __future__ import annotations

import enum
import json
import math
import random
import struct
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtf.checkpoint.compare import first_differences
from mtf.checkpoint.format import codec
from mtf.errors import CheckpointError

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
]  # fmt: skip


def round_trip(value: Any, *, copy: bool = False) -> Any:
    encoded, tensors = codec.split(value, copy=copy)
    return codec.join(json.loads(json.dumps(encoded, allow_nan=False)), {k: v.clone() for k, v in tensors.items()})


def random_tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    size = math.prod(shape) * dtype.itemsize
    raw = random.Random(seed).randbytes(size)
    if dtype == torch.bool:
        raw = bytes(b & 1 for b in raw)
    return torch.frombuffer(bytearray(raw) or bytearray(1), dtype=torch.uint8)[:size].clone().view(dtype).reshape(shape)


floats = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**200), 2**200), floats, st.floats(),
    st.text(), st.text(st.characters(categories=("Cs", "Lu"))), st.binary(max_size=20),
    st.builds(complex, floats, floats),
)  # fmt: skip
tensors = st.builds(
    random_tensor, st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 100)
)
numpy_scalars = st.builds(
    lambda name, seed: np.frombuffer(random.Random(seed).randbytes(16), dtype=name)[0],
    st.sampled_from(sorted(codec.NUMPY_DTYPES - {"bool"})),
    st.integers(0, 100),
)
# Keys that compare equal though they differ (1, True, 1.0) can't be in one dict: NaN keys aren't equal to themselves.
keys = st.one_of(st.text(), st.integers(), st.binary(max_size=4), st.tuples(st.integers(), st.text()), st.none())
trees = st.recursive(
    st.one_of(scalars, tensors, numpy_scalars),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, inner, max_size=4).map(lambda d: defaultdict(list, d)),
        st.dictionaries(keys, st.integers(), max_size=4).map(Counter),
        st.sets(st.one_of(st.integers(), st.text()), max_size=4),
        st.frozensets(st.integers(), max_size=4),
    ),
    max_leaves=15,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees)
def test_any_tree_comes_back_bit_for_bit(value: Any) -> None:
    back = round_trip(value)
    assert first_differences(value, back) == []
    assert codec.split(back)[0] == codec.split(value)[0]  # order of keys, memory formats and aliasing too


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(allow_nan=False), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "data", "dtype", "shape", "stride", "kind"]), inner, max_size=5),
        st.builds(lambda tag, v: {tag: v}, st.sampled_from(["$float", "$int", "$complex", "$bytes", "$tuple", "$set",
                  "$frozenset", "$dict", "$counter", "$ordered", "$defaultdict", "$numpy", "$tensor", "$new"]), inner),
    ),
    max_leaves=12,
)  # fmt: skip
entries = st.fixed_dictionaries(
    {"data": st.sampled_from(["a", "b", "c"]),
     "dtype": st.sampled_from(["float32", "uint8", "int64", "complex128", "x"]),
     "shape": st.lists(st.integers(-1, 2**62), max_size=3)},
    optional={"stride": st.lists(st.integers(-1, 2**62), max_size=3), "offset": st.integers(-8, 2**63),
              "kind": st.sampled_from(["numpy", "bytes", "tensor", "x"])},
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(json_values, st.lists(st.one_of(entries, json_values), max_size=3))
def test_malformed_input_is_refused_or_is_a_tree(value: Any, table: list[Any]) -> None:
    blocks = {"a": torch.zeros(24, dtype=torch.uint8), "b": torch.zeros(2, 3)}
    try:
        result = codec.join({"tree": value, "tensors": table}, blocks)
    except CheckpointError:
        return
    codec.split(result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("copy", [False, True])
def test_tensor_kinds(dtype: torch.dtype, copy: bool) -> None:
    for shape in ([], [0], [3, 0, 2], [5], [2, 3], [1, 1], [2, 3, 4, 5]):
        value = random_tensor(dtype, shape, 7)
        back = round_trip(value, copy=copy)
        assert first_differences(value, back) == []
        assert back.shape == value.shape


def test_memory_formats_are_kept() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    volume = torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d)
    transposed = torch.randn(3, 4, dtype=torch.complex128).t()
    for value in (image, volume, transposed):
        back = round_trip(value)
        assert back.stride() == value.stride()
        assert first_differences(value, back) == []


def test_slices_and_expanded_tensors_are_kept_by_value() -> None:
    column = torch.arange(12.0).reshape(3, 4)[:, 1]
    expanded = torch.ones(1).expand(1000, 1000)
    lazily_conjugated = torch.tensor([1 + 2j]).conj()
    for value in (column, expanded, lazily_conjugated):
        back = round_trip(value)
        assert first_differences(value.clone(), back) == []
        assert back.is_contiguous()


@pytest.mark.parametrize("copy", [False, True])
def test_one_tensor_in_two_places_stays_one(copy: bool) -> None:
    weight = torch.nn.Parameter(torch.randn(3))
    back = round_trip({"a": weight, "b": [weight]}, copy=copy)
    assert back["a"] is back["b"][0]


@pytest.mark.parametrize("copy", [False, True])
def test_views_go_on_sharing_their_elements(copy: bool) -> None:
    base = torch.arange(12, dtype=torch.float32)
    value = {
        "base": base,
        "tail": base[7:],
        "matrix": base.reshape(3, 4),
        "columns": base.reshape(3, 4).t(),
        "bits": base.view(torch.int32),
        "halves": base.view(torch.float16)[1:],
        "twin": base.view_as(base),
        "elsewhere": torch.zeros(2),
    }
    back = round_trip(value, copy=copy)
    assert first_differences(value, back) == []
    back["base"][9] = 100.0
    assert back["tail"][2] == 100.0
    assert back["matrix"][2, 1] == 100.0
    assert back["columns"][1, 2] == 100.0
    assert back["bits"][9] == torch.tensor(100.0).view(torch.int32)
    assert back["twin"][9] == 100.0
    assert back["columns"].stride() == (1, 4)
    assert base[9] == 9.0


def test_small_views_of_a_large_storage_do_not_drag_it_along() -> None:
    large = torch.zeros(1_000_000)
    _, tensors = codec.split({"a": large[:3], "b": large[-3:]})
    assert sum(t.numel() for t in tensors.values()) == 6


def test_copies_share_nothing_with_their_source() -> None:
    value = {"t": torch.zeros(3), "n": np.zeros(3), "d": {"k": [1]}}
    copied = codec.copy_tree(value)
    value["t"] += 1
    value["n"] += 1
    value["d"]["k"].append(2)
    assert copied["t"].sum() == 0
    assert copied["n"].sum() == 0
    assert copied["d"] == {"k": [1]}


def test_numpy_arrays() -> None:
    for name in sorted(codec.NUMPY_DTYPES):
        value = np.frombuffer(bytes(i % 2 for i in range(192)), dtype=name)[:12].reshape(3, 4)
        for array in (value, value.T, value[::-1], value[:, ::2], np.array(value[0, 0]), value[:0]):
            back = round_trip({"x": array})["x"]
            assert type(back) is np.ndarray
            assert back.dtype == array.dtype
            assert back.shape == array.shape
            assert back.tobytes() == array.tobytes()
    state = np.random.RandomState(3).get_state()
    assert first_differences(round_trip(state), state) == []


def test_random_and_optimizer_and_scheduler_states() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5]),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
    ]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    value = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "optimizer": optimizer.state_dict(),
        "schedulers": [scheduler.state_dict() for scheduler in schedulers],
    }
    back = round_trip(value)
    assert first_differences(value, back) == []
    assert type(back["schedulers"][1]["milestones"]) is Counter
    random.setstate(back["python"])
    optimizer.load_state_dict(back["optimizer"])


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


REFUSED: list[Any] = [
    Colour.RED, Level.LOW, object(), lambda: 0, len, random.Random(0), np.array(["x"]),
    np.array([object()], dtype=object),
    np.zeros(2, dtype=">f4"), np.longdouble(1), torch.device("cpu"), torch.float32, torch.Size([1]),
    torch.empty(2, device="meta"),
    torch.eye(2).to_sparse(), defaultdict(lambda: 0), bytearray(b"x"), range(3),
    {torch.ones(1): 1}, {object(): 1},
]  # fmt: skip


@pytest.mark.parametrize("value", REFUSED, ids=lambda v: type(v).__name__)
def test_everything_else_is_refused_with_its_path(value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^state\['hooks'\]\[1\]"):
        codec.split({"hooks": [0, value]})


def test_tensor_subclasses_are_refused() -> None:
    class Mine(torch.Tensor):
        pass

    with pytest.raises(CheckpointError, match=r"state\['x'\]: a Mine"):
        codec.split({"x": torch.ones(2).as_subclass(Mine)})


def test_cycles_and_deep_nesting_are_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(CheckpointError, match="nested deeper"):
        codec.split({"x": cycle})


def test_a_parameter_comes_back_as_a_plain_tensor() -> None:
    back = round_trip(torch.nn.Parameter(torch.ones(2)))
    assert type(back) is torch.Tensor
    assert not back.requires_grad
