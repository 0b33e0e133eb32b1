"""Process-wide random generators (torch, numpy, random) as a function of a batch's key, and put back afterwards."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mtf._core import fold_in

_TORCH = torch.default_generator
_WORD = 0xFFFFFFFF


def seed_generators(key: int) -> None:
    """Seeds torch's CPU generator, numpy's and ``random``'s from one 64-bit key. About 6 us.

    torch's generator uses the low 32 bits of a seed, numpy's takes the high ones, so that the two differ. CUDA generators
    aren't touched: ``torch.manual_seed`` would be, and costs 100 us and more.
    """
    _TORCH.manual_seed(key)
    np.random.seed(key >> 32)
    random.seed(key)


class _NumpyState:
    """numpy's legacy generator: its full state is read (25 us) only when its words have changed since the last time."""

    def __init__(self) -> None:
        self._bits: Any = None
        self._address = 0
        self._words = b""
        self._cached_gauss = False
        self._spare = np.random.MT19937(0)

    def save(self) -> tuple[Any, dict[str, Any] | None]:
        bits = np.random.get_bit_generator()
        if not isinstance(bits, np.random.MT19937):
            return bits, None
        if bits is not self._bits:
            self._bits, self._address, self._words = bits, bits.ctypes.state_address, b""
        words = ctypes.string_at(self._address, _NUMPY_STATE_BYTES)
        if words != self._words or self._cached_gauss:
            # The half of a pair of Gaussians that numpy keeps isn't among the words.
            state: dict[str, Any] = np.random.get_state(legacy=False)  # type: ignore[assignment]
            self._words, self._cached_gauss = words, bool(state["has_gauss"])
            if self._cached_gauss:
                return bits, state
        return bits, None

    def borrow(self) -> None:
        np.random.set_bit_generator(self._spare)

    def restore(self, saved: tuple[Any, dict[str, Any] | None]) -> None:
        bits, state = saved
        np.random.set_bit_generator(bits)
        if state is not None:
            np.random.set_state(state)


_NUMPY_STATE_BYTES = 625 * 4  # 624 words and the position


class _PythonState:
    """``random``'s generator: its state is read (7 us) only when its memory has changed since the last time."""

    def __init__(self) -> None:
        self._generator: random.Random = random._inst  # type: ignore[attr-defined]
        self._memory = b""
        self._gauss: float | None = None
        self._state: Any = None
        # Reading the object's memory is only used to notice a change, and only where its size is as expected.
        self._header = object.__basicsize__
        self._size = _PYTHON_STATE_BYTES if _python_state_readable(self._generator) else 0

    def save(self) -> Any:
        if not self._size:
            return random.getstate()
        memory = ctypes.string_at(id(self._generator) + self._header, self._size)
        gauss = self._generator.gauss_next  # type: ignore[attr-defined]
        if memory != self._memory or gauss != self._gauss:
            self._memory, self._gauss, self._state = memory, gauss, random.getstate()
        return self._state


_PYTHON_STATE_BYTES = 625 * 4  # the position and 624 words


def _python_state_readable(generator: random.Random) -> bool:
    """Whether a draw and a restore show in the bytes behind the object's header exactly as they should."""
    base: Any = type(generator).__mro__[1] if len(type(generator).__mro__) > 1 else object
    if base.__basicsize__ - object.__basicsize__ < _PYTHON_STATE_BYTES:
        return False

    def memory() -> bytes:
        return ctypes.string_at(id(generator) + object.__basicsize__, _PYTHON_STATE_BYTES)

    state = generator.getstate()
    words = state[1]
    expected = np.array([words[-1], *words[:-1]], dtype=np.uint32).tobytes()
    return memory() == expected


_numpy = _NumpyState()
_python = _PythonState()


class BatchSeed:
    """Puts the generators to a key for the length of one fetch in the training process, and back. About 12 us.

    torch runs on one thread meanwhile, as in a worker process, so that sums and means have the same bits there and here.
    """

    __slots__ = ("_numpy", "_python", "_threads", "_torch")

    def enter(self, key: int) -> None:
        self._torch = _TORCH.get_state()
        self._numpy = _numpy.save()
        self._python = _python.save()
        self._threads = torch.get_num_threads()
        if self._threads != 1:
            torch.set_num_threads(1)
        _numpy.borrow()
        seed_generators(key)

    def exit(self) -> None:
        _TORCH.set_state(self._torch)
        _numpy.restore(self._numpy)
        random.setstate(self._python)
        if self._threads != 1:
            torch.set_num_threads(self._threads)


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """The generators at ``key`` inside the block, and untouched after it."""
    seed = BatchSeed()
    seed.enter(key)
    try:
        yield
    finally:
        seed.exit()


@contextmanager
def untouched() -> Iterator[None]:
    """Whatever the block draws from the process-wide generators, they stand afterwards where they stood."""
    torch_state, numpy_state, python_state = _TORCH.get_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        _TORCH.set_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def fresh_torch_generator(generator: torch.Generator, key: int) -> torch.Generator:
    """A generator on the same device whose start depends on ``key`` and on the user's initial seed."""
    fresh = torch.Generator(device=generator.device)
    fresh.manual_seed(fold_in(key, generator.initial_seed()))
    return fresh


class SeededDataset:
    """A map-style dataset whose index carries the batch's key: ``(key, index)`` or ``(key, indices)``.

    It seeds the generators and then reads from the user's dataset, in a worker process as in the training process. The
    collate function runs right after it and draws from the same generators. A dataset with generators of its own may
    define ``set_batch_seed(key)``, which is called first.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._set_batch_seed = getattr(dataset, "set_batch_seed", None)
        self._getitems = getattr(dataset, "__getitems__", None)

    def __getitems__(self, keyed: tuple[int | None, list[Any]]) -> Any:
        self._seed(keyed[0])
        if self._getitems:
            return self._getitems(keyed[1])
        dataset = self.dataset
        return [dataset[index] for index in keyed[1]]

    def __getitem__(self, keyed: tuple[int | None, Any]) -> Any:
        self._seed(keyed[0])
        return self.dataset[keyed[1]]

    def _seed(self, key: int | None) -> None:
        if key is not None:
            seed_generators(key)
            if self._set_batch_seed is not None:
                self._set_batch_seed(key)
