"""Process-wide random generators (torch, numpy, random) as a function of a batch's key, and put back afterwards."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mtf._core import fold_in
from mtf.data.rng.batch_rng import end_batch
from mtf.errors import ConfigError

GENERATOR_TYPES = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
"""Of generators that a dataset, a transform or a sampler may keep for itself."""

_TORCH = torch.default_generator
_WORD = 0xFFFFFFFF


def seed_generators(key: int) -> None:
    """Seeds torch's CPU generator, numpy's and ``random``'s from one 64-bit key. About 6 us.

    torch's generator uses the low 32 bits of a seed, numpy's takes the high ones, so that the two differ. CUDA
    generators aren't touched: ``torch.manual_seed`` would be, and costs 100 us and more.
    """
    _TORCH.manual_seed(key)
    np.random.seed(key >> 32)
    _seed_python(key)


def seed_everything(seed: int) -> None:
    """Seeds torch's generators on all devices, numpy's and ``random``'s, for the initial weights of a model.

    Data and training steps don't depend on it: they have ``TrainerConfig.seed``.

    Args:
        seed: in [0, 2**64); torch gets it as ``torch.manual_seed(seed)`` does.

    Raises:
        ConfigError: another seed.
    """
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    torch.manual_seed(seed)
    np.random.seed(seed if seed <= _WORD else [seed & _WORD, seed >> 32])
    random.seed(seed)


def _seed_python(key: int) -> None:
    """``random.seed`` for an integer, without its look at the type."""
    _seed_inst(key)
    random._inst.gauss_next = None  # type: ignore[attr-defined]


_seed_inst = super(random.Random, random._inst).seed


class _NumpyState:
    """numpy's legacy generator: its full state is read (25 us) only when its words have changed since the last time."""

    def __init__(self) -> None:
        self._bits: Any = None
        self._live: Any = None
        self._words = b""
        self._cached_gauss = False
        self._spare = np.random.MT19937(0)
        self._replaced: Any = None

    def save(self) -> tuple[Any, dict[str, Any] | None]:
        bits = np.random.mtrand.get_bit_generator()
        if bits is self._spare:  # Ctrl-C kept it from being given back
            bits = self._replaced
            np.random.mtrand.set_bit_generator(bits)
        self._replaced = bits
        if not isinstance(bits, np.random.MT19937):
            return bits, None
        if bits is not self._bits:
            self._bits, self._live = bits, _live_bytes(bits.ctypes.state_address)
            self._words = b""
        if self._cached_gauss or not self._words.startswith(self._live):
            # The half of a pair of Gaussians that numpy keeps isn't among the words.
            state: dict[str, Any] = np.random.get_state(legacy=False)
            self._words, self._cached_gauss = bytes(self._live), bool(state["has_gauss"])
            if self._cached_gauss:
                return bits, state
        return bits, None

    def borrow(self) -> None:
        np.random.mtrand.set_bit_generator(self._spare)

    def restore(self, saved: tuple[Any, dict[str, Any] | None]) -> None:
        bits, state = saved
        np.random.mtrand.set_bit_generator(bits)
        if state is not None:
            np.random.set_state(state)

    def moment(self) -> tuple[Any, dict[str, Any] | None, bytes]:
        """What ``go_back`` needs after any use of the generator, also one that isn't numpy's usual kind."""
        bits, state = self.save()
        if state is None and bits is not self._bits:
            return bits, np.random.get_state(legacy=False), b""
        return bits, state, self._words

    def go_back(self, moment: tuple[Any, dict[str, Any] | None, bytes]) -> None:
        bits, state, words = moment
        np.random.mtrand.set_bit_generator(bits)
        if state is None:
            numbers = np.frombuffer(words, dtype=np.uint32)
            inner = {"key": numbers[:624].copy(), "pos": int(numbers[624])}
            state = {"bit_generator": "MT19937", "state": inner, "has_gauss": 0, "gauss": 0.0}
        np.random.set_state(state)
        self.forget()

    def forget(self) -> None:
        """After its state was set: words known before may be the same, and the half of a pair of Gaussians not."""
        self._words = b""


_STATE_BYTES = 625 * 4  # 624 words and the position, both in numpy's generator and in Python's


def _live_bytes(address: int) -> Any:
    """A generator's words and position in its own memory; to be compared by ``bytes.startswith``, which copies nothing.

    It mustn't outlive the generator.
    """
    return memoryview((ctypes.c_ubyte * _STATE_BYTES).from_address(address))


class _PythonState:
    """``random``'s generator: its words are copied and put back in its memory, where that has the expected layout.

    ``getstate`` and ``setstate`` go through a tuple of 625 integers, which takes 10 us; comparing the bytes takes 0.1.
    """

    def __init__(self) -> None:
        self._generator: Any = random._inst
        self._address = id(self._generator) + object.__basicsize__
        self.copies_memory = _has_known_layout(self._generator)
        self._live = _live_bytes(self._address) if self.copies_memory else b""
        self._words = b""

    def save(self) -> Any:
        if not self.copies_memory:
            return random.getstate()
        if not self._words.startswith(self._live):
            self._words = bytes(self._live)
        return self._words, self._generator.gauss_next

    def restore(self, saved: Any) -> None:
        if not self.copies_memory:
            random.setstate(saved)
            return
        ctypes.memmove(self._address, saved[0], _STATE_BYTES)
        self._generator.gauss_next = saved[1]


def _has_known_layout(generator: random.Random) -> bool:
    """Whether behind the object's header there are its position and its 624 words, and nothing else."""
    if sys.implementation.name != "cpython" or type(generator) is not random.Random:
        return False
    base = random.Random.__mro__[1]
    if base.__basicsize__ - object.__basicsize__ not in (_STATE_BYTES, _STATE_BYTES + 4):
        return False
    words = generator.getstate()[1]
    memory = ctypes.string_at(id(generator) + object.__basicsize__, _STATE_BYTES)
    return memory == np.array([words[-1], *words[:-1]], dtype=np.uint32).tobytes()


_disposable = False  # whether somebody seeds the generators after every fetch, before anything is drawn from them
_numpy = _NumpyState()
_python = _PythonState()


def set_numpy_state(state: Any) -> None:
    """``np.random.set_state``, after which the next fetch looks at the whole state."""
    np.random.set_state(state)
    _numpy.forget()


class GeneratorSnapshot:
    """Where the generators stood when it was made, to go back there. Making one takes about 4 us."""

    __slots__ = ("_numpy", "_python", "_torch")

    def __init__(self) -> None:
        self._torch = _TORCH.get_state()
        self._numpy = _numpy.moment()
        self._python = _python.save()

    def go_back(self) -> None:
        """Puts every generator there."""
        _TORCH.set_state(self._torch)
        _numpy.go_back(self._numpy)
        _python.restore(self._python)


class BatchSeed:
    """Puts the generators to a key for the length of one fetch in the training process, and back. About 12 us.

    torch runs on one thread meanwhile, as in a worker process, so that sums and means have the same bits there and
    here.
    """

    __slots__ = ("_numpy", "_python", "_restores", "_threads", "_torch")

    def enter(self, key: int | None) -> None:
        """``key`` None: the caller that fetches seeds the generators."""
        self._restores = False
        self._threads = torch.get_num_threads()
        try:
            if not _disposable:
                self._torch = _TORCH.get_state()
                self._numpy = _numpy.save()
                self._python = _python.save()
                self._restores = True
                _numpy.borrow()
            if self._threads != 1:
                torch.set_num_threads(1)
            if key is not None:
                # guard: seed of a fetch
                seed_generators(key)
        except BaseException:  # Ctrl-C
            self.exit()
            raise

    def exit(self) -> None:
        if self._threads != 1:
            torch.set_num_threads(self._threads)
        try:  # each, also where Ctrl-C comes during another
            end_batch()
        finally:
            # guard: generators of the process
            if self._restores:
                self._put_back()

    def _put_back(self) -> None:
        try:
            _TORCH.set_state(self._torch)
        finally:
            try:
                _numpy.restore(self._numpy)
            finally:
                _python.restore(self._python)


@contextmanager
def discard_rng_changes(are_disposable: bool = True) -> Iterator[None]:
    """Inside, a fetch leaves the generators where it ends, which saves the time of putting them back.

    For a loop that seeds them itself between a fetch and whatever draws from them next.

    Args:
        are_disposable: False for a loop inside such a loop that draws from them as they stand.
    """
    global _disposable
    before, _disposable = _disposable, are_disposable
    try:
        yield
    finally:
        _disposable = before


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
