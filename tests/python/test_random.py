"""Keys, random words, permutations and samplers as Python sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf import _core
from mtf.errors import ConfigError

KEYS = st.integers(0, 2**64 - 1)
TESTS = Path(__file__).parents[1]
VECTORS = TESTS / "cpp" / "random" / "philox_vectors.txt"
GOLDEN = TESTS / "golden" / "random_v1.txt"


def test_philox_gives_the_published_answers() -> None:
    for line in VECTORS.read_text().splitlines():
        if not line.startswith("#"):
            words = [int(word, 16) for word in line.split()]
            assert _core.philox4x32(words[:4], words[4:6]) == words[6:]


@given(key=KEYS, data=KEYS)
def test_fold_in_is_one_philox_block(key: int, data: int) -> None:
    out = _core.philox4x32([data % 2**32, data >> 32, 1, 0], [key % 2**32, key >> 32])
    assert _core.fold_in(key, data) == out[0] + (out[1] << 32)


@given(key=KEYS, name=st.text())
def test_fold_in_of_a_name_hashes_its_utf8(key: int, name: str) -> None:
    digest = 0xCBF29CE484222325
    for byte in name.encode():
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    out = _core.philox4x32([digest % 2**32, digest >> 32, 2, 0], [key % 2**32, key >> 32])
    assert _core.fold_in(key, name) == out[0] + (out[1] << 32)


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_keys_outside_64_bits_are_refused(bad: int) -> None:
    with pytest.raises(TypeError):
        _core.fold_in(bad, 0)
    with pytest.raises(TypeError):
        _core.Permutation(5, bad)


@given(key=KEYS, start=st.integers(0, 2**63), size=st.integers(0, 100))
def test_philox_fill_is_the_stream_of_blocks(key: int, start: int, size: int) -> None:
    words = _core.philox_fill(key, start, start + size)
    assert words.dtype == np.uint32
    expected = []
    for position in range(start, start + size):
        block = position // 4
        expected.append(_core.philox4x32([block % 2**32, block >> 32, 0, 0], [key % 2**32, key >> 32])[position % 4])
    assert words.tolist() == expected


def test_what_version_1_gave_stays() -> None:
    seen = set()
    for line in GOLDEN.read_text().splitlines():
        if line.startswith("#"):
            continue
        kind, *fields = line.split()
        seen.add(kind)
        if kind == "fold_name":
            assert _core.fold_in(int(fields[0]), fields[1]) == int(fields[2]), line
            continue
        key, *numbers = map(int, fields)
        if kind == "fold_in":
            assert _core.fold_in(key, numbers[0]) == numbers[1], line
        elif kind == "words":
            start, *words = numbers
            assert _core.philox_fill(key, start, start + len(words)).tolist() == words, line
        elif kind == "permutation":
            n, start, *images = numbers
            assert _core.Permutation(n, key).fill(start, start + len(images)).tolist() == images, line
    assert seen >= {"fold_in", "fold_name", "words", "permutation"}


@given(n=st.integers(4097, 2**62), key=KEYS, data=st.data())
def test_large_permutation_is_the_feistel_network_of_its_header(n: int, key: int, data: st.DataObject) -> None:
    words: list[int] = _core.philox_fill(key, 0, 16).tolist()
    right_bits = ((n - 1).bit_length() + 1) // 2
    masks = ((1 << (n - 1).bit_length() // 2) - 1, (1 << right_bits) - 1)

    def encrypt(x: int) -> int:
        halves = [x >> right_bits, x & masks[1]]
        for turn in range(8):
            product = ((halves[(turn + 1) % 2] + words[2 * turn]) % 2**32) * (words[2 * turn + 1] | 1)
            halves[turn % 2] ^= ((product >> 32) ^ product) & masks[turn % 2]
        return halves[0] << right_bits | halves[1]

    index = data.draw(st.integers(0, n - 1))
    image = encrypt(index)
    while image >= n:
        image = encrypt(image)
    assert _core.Permutation(n, key)[index] == image


@given(n=st.integers(0, 6000), key=KEYS)
def test_permutation_is_a_bijection(n: int, key: int) -> None:
    images = _core.Permutation(n, key).fill(0, n)
    assert images.dtype == np.int64
    assert np.array_equal(np.sort(images), np.arange(n))


@pytest.mark.parametrize("n", [65_536, 65_537, 262_143, 262_145, 1_048_577])
def test_permutation_is_a_bijection_above_powers_of_two(n: int) -> None:
    images = _core.Permutation(n, 0).fill(0, n)
    assert np.array_equal(np.bincount(images, minlength=n), np.ones(n))


@given(n=st.integers(1, 2**62), key=KEYS, data=st.data())
def test_single_images_equal_the_bulk(n: int, key: int, data: st.DataObject) -> None:
    permutation = _core.Permutation(n, key)
    assert len(permutation) == n
    start = data.draw(st.integers(0, n - 1))
    stop = min(n, start + data.draw(st.integers(0, 50)))
    assert permutation.fill(start, stop).tolist() == [permutation[i] for i in range(start, stop)]
    assert permutation[-1] == permutation[n - 1]


def test_permutation_iterates_and_refuses_what_lies_outside() -> None:
    permutation = _core.Permutation(5, 1)
    assert sorted(permutation) == [0, 1, 2, 3, 4]  # type: ignore[call-overload]
    for index in (5, -6):
        with pytest.raises(IndexError, match="out of range"):
            permutation[index]
    for start, stop in ((0, 6), (3, 2)):
        with pytest.raises(IndexError):
            permutation.fill(start, stop)
    with pytest.raises(ConfigError, match=r"2\^62"):
        _core.Permutation(2**62 + 1, 0)


@given(
    num_samples=st.integers(0, 300),
    batch_size=st.integers(1, 40),
    key=KEYS,
    pass_=st.integers(0, 2**40),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    world_size=st.integers(1, 9),
    subset=st.booleans(),
)
def test_sampler_cuts_the_global_order(
    num_samples: int,
    batch_size: int,
    key: int,
    pass_: int,
    shuffle: bool,
    drop_last: bool,
    world_size: int,
    subset: bool,
) -> None:
    samples = np.arange(num_samples) * 3 + 5 if subset else np.arange(num_samples)
    ranks = [
        _core.Sampler(
            num_samples,
            batch_size,
            key=key,
            shuffle=shuffle,
            drop_last=drop_last,
            indices=samples if subset else None,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    places = _core.Permutation(num_samples, _core.fold_in(key, pass_)).fill(0, num_samples)
    expected = samples[places] if shuffle else samples
    assert np.array_equal(ranks[-1].order(pass_, 0, num_samples), expected)
    num_batches = num_samples // batch_size if drop_last else -(-num_samples // batch_size)
    for batch in range(num_batches):
        parts = [rank.batch(pass_, batch) for rank in ranks]
        assert [len(part) for part in parts] == [rank.batch_size(batch) for rank in ranks]
        together = np.concatenate(parts)
        assert np.array_equal(together, expected[batch * batch_size : (batch + 1) * batch_size])
        assert len(together) == ranks[0].global_batch_size(batch)
    for rank in ranks:
        assert len(rank) == rank.num_batches == num_batches
        with pytest.raises(IndexError, match="batches"):
            rank.batch(pass_, num_batches)


def test_sampler_refuses_bad_input() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        _core.Sampler(5, 0)
    with pytest.raises(ConfigError, match="rank"):
        _core.Sampler(5, 1, rank=1)
    with pytest.raises(ConfigError, match="indices"):
        _core.Sampler(5, 1, indices=[1, 2])
    with pytest.raises(ConfigError, match="one dimension"):
        _core.Sampler(2, 1, indices=np.zeros((1, 2), dtype=np.int64))
    with pytest.raises(TypeError):
        _core.Sampler(2, 1, indices=np.array([0.5, 1.5]))
