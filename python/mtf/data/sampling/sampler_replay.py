"""Draws of a user's sampler, made again for any pass under generators that start at the pass's key."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from mtf._core import fold_in
from mtf.data.rng.generators import fresh_torch_generator, seed_generators, untouched


class ReplayedDraws:
    """What a user's sampler gives in one pass, under generators of its own that start at the pass's key.

    The sampler is copied, not deeply (that would copy the dataset), its generators are replaced, ``set_epoch`` is
    called, and the process-wide generators are swapped for the sampler's while it runs: it may draw lazily and
    without end.
    """

    def __init__(self, sampler: Any, pass_: int, key: int) -> None:
        with untouched():
            seed_generators(key)
            copied = _copy_sampler(sampler, key, {})
            set_epoch = getattr(copied, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(pass_)
            self._draws: Iterator[Any] = iter(copied)
            self._states = _get_states()

    def take(self, count: int) -> list[Any]:
        with untouched():
            _set_states(self._states)
            drawn = list(islice(self._draws, count))
            self._states = _get_states()
        return drawn

    def skip(self, count: int) -> None:
        if count:
            with untouched():
                _set_states(self._states)
                deque(islice(self._draws, count), maxlen=0)
                self._states = _get_states()


def _copy_sampler(value: Any, key: int, copies: dict[int, Any]) -> Any:
    """A copy of a sampler and of the samplers inside it, each with generators seeded from ``key``.

    An object met twice is copied once, so that what is shared stays shared.
    """
    if id(value) in copies:
        return copies[id(value)]
    result = copies[id(value)] = copy.copy(value)
    attributes = getattr(result, "__dict__", {})
    for attribute, inner in list(attributes.items()):
        replaced = _fresh_generator(inner, fold_in(key, attribute), copies)
        if replaced is None and (
            isinstance(inner, Sampler) or (attribute.endswith("sampler") and _is_reiterable(inner))
        ):
            replaced = _copy_sampler(inner, fold_in(key, attribute), copies)
        if replaced is not None:
            attributes[attribute] = replaced
    return result


def _is_reiterable(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, Iterator)


def _fresh_generator(value: Any, key: int, copies: dict[int, Any]) -> Any | None:
    """A generator like ``value`` that starts at ``key`` (torch's: and at its initial seed); None for other objects."""
    if id(value) in copies:
        return copies[id(value)]
    fresh: Any
    if isinstance(value, torch.Generator):
        fresh = fresh_torch_generator(value, key)
    elif isinstance(value, random.Random):
        fresh = random.Random(key)
    elif isinstance(value, np.random.Generator):
        fresh = np.random.Generator(type(value.bit_generator)(key))
    elif isinstance(value, np.random.RandomState):
        fresh = np.random.RandomState(np.random.MT19937(key))
    else:
        return None
    copies[id(value)] = fresh
    return fresh


_States = tuple[torch.Tensor, Any, Any]


def _get_states() -> _States:
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def _set_states(states: _States) -> None:
    torch.default_generator.set_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
