"""mtf.ArrayLoader gives the rows that indexing gives, whatever their dtype, shape, strides, threads and ranks."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtf
from mtf import _core
from mtf.data.prefetch.engine import Engine

ALL_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def order_of(num_rows: int, key: int, pass_: int) -> torch.Tensor:
    """The rows of a shuffled pass, from the permutation itself."""
    permutation = _core.Permutation(num_rows, _core.fold_in(key, pass_))
    return torch.from_numpy(permutation.fill(0, num_rows))


def key_of(seed: int, name: str = "") -> int:
    return _core.fold_in(_core.fold_in(seed, "source"), name)


def random_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).to(torch.bool)
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("row_shape", [(), (1,), (3,), (16,), (2, 3, 5), (4, 0)], ids=str)
def test_rows_of_every_dtype_equal_indexing(dtype: torch.dtype, row_shape: tuple[int, ...]) -> None:
    data = random_bytes((53, *row_shape), dtype)
    batches = list(mtf.ArrayLoader(data, 8, shuffle=True, seed=3))
    order = order_of(53, key_of(3), 0)
    assert [len(batch) for batch in batches] == [8] * 6 + [5]
    assert all(batch.is_contiguous() for batch in batches)
    for number, batch in enumerate(batches):
        assert same_bits(batch, data[order[number * 8 : number * 8 + 8]])


STRIDED = {
    "transposed": lambda t: t.transpose(1, 2),
    "every other column": lambda t: t[:, ::2],
    "every third row": lambda t: t[::3],
    "one column": lambda t: t[:, 1, 2],
    "broadcast rows": lambda t: t[:1].expand(40, -1, -1),
    "broadcast columns": lambda t: t[:, :1].expand(-1, 7, -1),
    "columns as rows": lambda t: t.permute(2, 0, 1),
    "middle": lambda t: t[5:31, 1:3, 2:5],
}


@pytest.mark.parametrize("view", STRIDED, ids=str)
@pytest.mark.parametrize("shuffle", [False, True])
def test_any_strides(view: str, shuffle: bool) -> None:
    data = STRIDED[view](torch.arange(60 * 4 * 6, dtype=torch.float32).reshape(60, 4, 6))
    order = order_of(len(data), key_of(0), 0) if shuffle else torch.arange(len(data))
    assert torch.equal(torch.cat(list(mtf.ArrayLoader(data, 7, shuffle=shuffle))), data[order])


def test_negative_strides_of_numpy() -> None:
    data = np.arange(24).reshape(8, 3)[::-1, ::-1]
    assert np.array_equal(torch.cat(list(mtf.ArrayLoader(data, 3))).numpy(), data)


def test_structures_are_kept() -> None:
    Pair = collections.namedtuple("Pair", ["first", "second"])
    x, y = torch.arange(10), np.arange(20.0).reshape(10, 2)
    data = {"a": x, "b": [y, (x, Pair(y, {"deep": x}))]}
    batch = next(iter(mtf.ArrayLoader(data, 4)))
    assert list(batch) == ["a", "b"]
    assert isinstance(batch["b"], list)
    assert isinstance(batch["b"][1], tuple)
    assert isinstance(batch["b"][1][1], Pair)
    assert torch.equal(batch["b"][1][1].second["deep"], x[:4])
    assert torch.equal(batch["b"][1][1].first, torch.from_numpy(y)[:4])
    assert torch.equal(next(iter(mtf.ArrayLoader([x], 4)))[0], x[:4])


def test_batches_own_their_memory() -> None:
    data = torch.zeros(64, 4)
    batches = []
    for batch in mtf.ArrayLoader(data, 4):
        batch += len(batches) + 1.0
        batches.append(batch)
    assert [float(batch.mean()) for batch in batches] == [k + 1.0 for k in range(16)]
    assert float(data.abs().sum()) == 0.0
    assert batches[0].data_ptr() % 64 == 0


def test_memory_returns_to_the_pool() -> None:
    loader = mtf.ArrayLoader(torch.zeros(4096, 64), 64, num_threads=0)
    list(loader)
    before = _core.batch_memory_stats()
    for batch in loader:
        del batch
    after = _core.batch_memory_stats()
    assert after["num_allocated"] - before["num_allocated"] <= 2
    assert after["live_bytes"] == before["live_bytes"]


def test_memory_maps_are_read_in_place(tmp_path: Path) -> None:
    rows = 4000
    path = tmp_path / "rows.bin"
    np.arange(rows * 256, dtype=np.int32).reshape(rows, 256).tofile(path)
    data = np.memmap(path, dtype=np.int32, mode="r", shape=(rows, 256))
    order = order_of(rows, key_of(0), 0)
    for number, batch in enumerate(mtf.ArrayLoader(data, 512, shuffle=True)):
        assert np.array_equal(batch.numpy(), data[order[number * 512 : number * 512 + 512]])


def test_a_memory_map_larger_than_memory_opens_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    rows, width = 1 << 31, 512  # a terabyte of holes
    with path.open("wb") as file:
        file.truncate(rows * width)
    data = np.memmap(path, dtype=np.uint8, mode="r", shape=(rows, width))
    loader = mtf.ArrayLoader(data, 16, shuffle=True)
    stream = loader.open(3, loader.num_batches() - 2, key=1)
    assert next(stream).shape == (16, width)
    assert int(next(stream).sum()) == 0
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 8, 9])
@pytest.mark.parametrize("drop_last", [False, True])
def test_empty_and_tiny(num_rows: int, drop_last: bool) -> None:
    data = torch.arange(num_rows)
    loader = mtf.ArrayLoader(data, 8, drop_last=drop_last)
    batches = list(loader)
    assert len(loader) == loader.num_batches() == len(batches) == (num_rows // 8 if drop_last else -(-num_rows // 8))
    assert sum(map(len, batches)) == (num_rows // 8 * 8 if drop_last else num_rows)
    assert len(mtf.ArrayLoader(data, 8).drop_last()) == num_rows // 8


@given(
    num_tokens=st.integers(0, 200),
    length=st.integers(1, 40),
    stride=st.integers(1, 50) | st.none(),
    batch=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_windows(num_tokens: int, length: int, stride: int | None, batch: int) -> None:
    tokens = torch.arange(num_tokens, dtype=torch.int32) * 3
    windows = list(mtf.ArrayLoader.windows(tokens, length, stride, batch_size=batch, num_threads=0))
    expected = tokens.unfold(0, length, stride or length) if num_tokens >= length else torch.empty(0, length)
    assert sum(map(len, windows)) == len(expected)
    if windows:
        assert torch.equal(torch.cat(windows), expected)


@given(
    num_rows=st.integers(1, 100),
    global_batch=st.integers(1, 20),
    world_size=st.integers(1, 6),
    pass_=st.integers(0, 3),
    shuffle=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_global_order_does_not_depend_on_ranks(
    num_rows: int, global_batch: int, world_size: int, pass_: int, shuffle: bool
) -> None:
    data = torch.arange(num_rows)
    global_batch = max(global_batch, world_size)
    whole = mtf.ArrayLoader(data, global_batch_size=global_batch, shuffle=shuffle)
    shards = [whole.shard(rank, world_size) for rank in range(world_size)]
    assert {shard.num_batches() for shard in shards} == {whole.num_batches()}
    streams = [shard.open(pass_, 0, key=5) for shard in shards]
    reference = whole.open(pass_, 0, key=5)
    for batch in range(whole.num_batches()):
        parts = [next(stream) for stream in streams]
        weights = [shard.weight(pass_, batch) for shard in shards]
        real = [part for part, weight in zip(parts, weights, strict=True) if weight > 0.0]
        expected = next(reference)
        shares = [len(part) if weight else 0 for part, weight in zip(parts, weights, strict=True)]
        assert weights == [share * world_size / len(expected) for share in shares]
        assert torch.equal(torch.cat(real), expected)
        assert all(torch.equal(p, expected[:1]) for p, w in zip(parts, weights, strict=True) if w == 0.0)


def test_batch_size_is_per_rank() -> None:
    loader = mtf.ArrayLoader(torch.arange(100), 10)
    assert loader.shard(1, 4).global_batch_size == 40
    assert len(next(iter(loader.shard(1, 4)))) == 10


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("prefetch_batches", [1, 2, 50])
def test_threads_and_budget_change_nothing(num_threads: int, prefetch_batches: int) -> None:
    data = torch.arange(1000)
    loader = mtf.ArrayLoader(
        data, 7, shuffle=True, num_threads=num_threads, prefetch_batches=prefetch_batches, prefetch_bytes=200
    )
    for pass_ in range(3):
        assert torch.equal(torch.cat(list(loader)), data[order_of(1000, key_of(0), pass_)])


def test_transform_has_a_generator_of_its_batch() -> None:
    def noisy(batch: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        return batch + torch.from_numpy(rng.random(len(batch)))

    def run(num_threads: int) -> torch.Tensor:
        return torch.cat(list(mtf.ArrayLoader(torch.zeros(40), 8, transform=noisy, num_threads=num_threads)))

    assert torch.equal(run(0), run(2))
    assert len(run(0).unique()) == 40
    loader = mtf.ArrayLoader(torch.zeros(40), 8, transform=noisy)
    key = key_of(0)
    expected = np.random.Generator(np.random.Philox(key=_core.fold_in(_core.fold_in(key, 0), 3))).random(8)
    assert np.array_equal(next(loader.open(0, 3, key)).numpy(), expected)


@pytest.mark.parametrize("cut", range(12))
def test_state_goes_on_where_it_was_taken(cut: int) -> None:
    def make() -> mtf.ArrayLoader:
        return mtf.ArrayLoader(torch.arange(40), 8, shuffle=True)

    def draw(loader: mtf.ArrayLoader, count: int) -> list[list[int]]:
        batches: list[list[int]] = []
        while len(batches) < count:
            for batch in loader:
                batches.append(batch.tolist())
                if len(batches) == count:
                    break
        return batches

    first = make()
    head = draw(first, cut)
    second = make()
    second.load_state_dict(first.state_dict())
    assert head + draw(second, 15 - cut) == draw(make(), 15)


def test_state_of_other_data_is_refused() -> None:
    state = mtf.ArrayLoader(torch.arange(40), 8).state_dict()
    other = mtf.ArrayLoader(torch.arange(40), 4)
    with pytest.raises(mtf.StateMismatch, match="global_batch_size is 4 here, but 8"):
        other.load_state_dict(state)
    with pytest.raises(mtf.StateMismatch, match="fields"):
        other.load_state_dict({"pass": 3})
    with pytest.raises(mtf.StateMismatch, match="within 10 batches"):
        other.load_state_dict({**other.state_dict(), "batch": 11})
    assert other.state_dict()["batch"] == 0


x10 = torch.arange(10)
BAD_INPUT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unequal lengths": ({"a": x10, "b": x10[:9]}, {"batch_size": 2}, r"\['a'\] has 10 and \['b'\] has 9"),
    "objects": (np.array([{}, {}]), {"batch_size": 1}, "dtype that torch has"),
    "strings": (np.array(["a", "b"]), {"batch_size": 1}, "dtype that torch has"),
    "dates": (np.array(["2020-01-01"], dtype="datetime64[D]"), {"batch_size": 1}, r"view\('int64'\)"),
    "records": (np.zeros(3, dtype=[("a", "i4")]), {"batch_size": 1}, "dtype that torch has"),
    "foreign byte order": (np.arange(3, dtype=">i4"), {"batch_size": 1}, "byte order"),
    "masked": (np.ma.masked_array([1, 2], [True, False]), {"batch_size": 1}, "mask"),
    "scalar": (torch.tensor(3), {"batch_size": 1}, "scalar"),
    "sparse": (torch.eye(3).to_sparse(), {"batch_size": 1}, "dense tensor on the CPU"),
    "numbers": ([1, 2, 3], {"batch_size": 1}, r"data\[0\] must be a tensor or a numpy array"),
    "nothing": ({}, {"batch_size": 1}, "at least one array"),
    "no batch size": (x10, {}, "either batch_size"),
    "two batch sizes": (x10, {"batch_size": 1, "global_batch_size": 1}, "either batch_size"),
    "batch size 0": (x10, {"batch_size": 0}, "batch_size must be at least 1, but is 0"),
    "budget 0": (x10, {"batch_size": 1, "prefetch_batches": 0}, "prefetch_batches must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_by_name(case: str) -> None:
    data, options, message = BAD_INPUT[case]
    with pytest.raises(mtf.ConfigError, match=message):
        mtf.ArrayLoader(data, **options)


def test_bad_shards_and_windows_are_refused() -> None:
    loader = mtf.ArrayLoader(x10, global_batch_size=4)
    with pytest.raises(mtf.ConfigError, match="at least the number of ranks"):
        loader.shard(0, 5)
    with pytest.raises(mtf.ConfigError, match="rank must be in"):
        loader.shard(2, 2)
    with pytest.raises(mtf.ConfigError, match="already the part of rank 1 of 2"):
        loader.shard(1, 2).shard(0, 2)
    with pytest.raises(mtf.ConfigError, match="length must be at least 1"):
        mtf.ArrayLoader.windows(x10, 0, batch_size=1)
    with pytest.raises(mtf.ConfigError, match="stride must be at least 1"):
        mtf.ArrayLoader.windows(x10, 2, 0, batch_size=1)


def test_a_batch_beyond_the_pass_is_an_error_at_its_step() -> None:
    with Engine([mtf.ArrayLoader(x10, 5).native(0)], num_threads=1) as engine:
        engine.request([0, 0, 0], [0, 0, 0], [0, 2, 1])
        assert engine.take(0).tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(IndexError, match=r"\[0, 2\), but is 2"):
            engine.take(0)
        assert engine.take(0).tolist() == [5, 6, 7, 8, 9]


def test_requires_grad_and_conjugates() -> None:
    data = torch.ones(4, requires_grad=True)
    assert not next(iter(mtf.ArrayLoader(data, 2))).requires_grad
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    assert torch.equal(next(iter(mtf.ArrayLoader(numbers.conj(), 2))), numbers.conj())
