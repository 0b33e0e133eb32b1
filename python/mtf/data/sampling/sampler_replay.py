"""Draws of a user's sampler, made again for any pass under generators that start at the pass's key.

A sampler may keep something from pass to pass: a count, a range that widens, losses. What a whole pass changes in its
attributes is carried over to the next pass, so that pass p always begins as if passes 0 ... p-1 had been drawn to their
ends, whatever a run really drew.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mtf._core import fold_in
from mtf.call_site import user_level
from mtf.data.protocols import copy_state, has_state_methods, length_of
from mtf.data.rng.generators import GENERATOR_TYPES, fresh_torch_generator, seed_generators, untouched

_MAX_DRAWS = 10**6  # of a pass whose length isn't known, after which it is taken for endless
_KEPT_PASSES = 8
_COMPARED = 256  # draws of a pass that are made twice and compared
_MAX_DEPTH = 4

_Path = tuple[str, ...]


class SamplerReplay:
    """The passes of one sampler.

    The sampler itself is never iterated. It is copied, not deeply (that would copy the dataset), its generators are
    replaced, ``set_epoch`` is called, and the process-wide generators are swapped for the sampler's while it runs. What
    somebody changes in the sampler itself (weights, a curriculum) is seen by the next pass that is opened.

    Args:
        sampler: The user's sampler or batch sampler.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self._holder = _state_holder(sampler)
        self._keeps_nothing = _is_torchs_own(sampler)
        # By pass: what the passes before it left in the sampler's attributes. Nothing before pass 0.
        self._left: dict[int, dict[_Path, Any]] = {0: {}}
        # By pass: the state that a sampler with ``state_dict`` had at its start.
        self._starts: dict[int, Any] = {}
        self.num_draws: int | None = None  # of the pass opened last, where its length is known
        self._opened: tuple[int, ReplayedDraws] | None = None  # the pass opened last
        self._has_warned = self._has_more = False

    def open(self, pass_: int, key: int) -> ReplayedDraws:
        """The draws of a pass.

        Args:
            pass_: The pass, counted over the whole training.
            key: Key of the source's random numbers.
        """
        known = max((p for p in {*self._left, *self._starts} if p <= pass_), default=0)
        for earlier in range(known, pass_):
            if self._keeps_nothing:
                break
            self._advance(earlier, key)
        copied = self._copy(pass_, key)
        if self._holder is not None:
            holder: Any = _state_holder(copied)
            self._remember(self._starts, pass_, copy_state(holder.state_dict()))
        self.num_draws = length_of(copied)
        draws = ReplayedDraws(copied, pass_, fold_in(key, pass_))
        self._opened = pass_, draws
        return draws

    def warn_of_more(self, num_batches: int) -> None:
        """Warns, once, that the sampler gives more than its length says; growth is said elsewhere."""
        if not self._has_more and self.num_draws == length_of(self.sampler):
            self._has_more = True
            warnings.warn(
                f"{type(self.sampler).__name__}: its len() says {self.num_draws}, but it gives more. The schedule "
                f"knows {num_batches} batches, so what is more is left out: correct its len()",
                stacklevel=user_level(),
            )

    def state_dict(self) -> dict[str, Any] | None:
        """State of a sampler with ``state_dict``; None for others.

        Returns:
            ``now``, the state of the user's sampler; ``passes``, by pass the state at its ``start``, None where that is
            the same, and the names of attributes ``carried`` over from the passes before it.
        """
        if self._holder is None:
            return None
        now = copy_state(self._holder.state_dict())
        passes = {
            str(pass_): {
                "start": None if _same(start, now) else start,
                "carried": [list(attributes) for attributes in self._left.get(pass_, {})],
            }
            for pass_, start in self._starts.items()
        }
        return {"now": now, "passes": passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the user's sampler there; passes open as they did in the run that saved the state."""
        if self._holder is None:
            return
        self._holder.load_state_dict(copy_state(state["now"]))
        self._starts, self._left = {}, {0: {}}
        for text, entry in state["passes"].items():
            start = state["now"] if entry["start"] is None else entry["start"]
            self._starts[int(text)] = start
            copied = copy_sampler(self.sampler, 0, {})
            holder: Any = _state_holder(copied)
            holder.load_state_dict(copy_state(start))
            held = _attributes(copied)
            self._left[int(text)] = {tuple(path): held[tuple(path)] for path in entry["carried"]}

    def _copy(self, pass_: int, key: int) -> Any:
        """The sampler as it is at the start of a pass, before ``set_epoch``."""
        copied = copy_sampler(self.sampler, fold_in(key, pass_), {})
        if pass_ in self._starts and self._holder is not None:
            holder: Any = _state_holder(copied)
            holder.load_state_dict(copy_state(self._starts[pass_]))
        else:
            _overlay(copied, self._left.get(pass_, {}))
        return copied

    def _advance(self, pass_: int, key: int) -> None:
        """Draws a pass to its end, to see what it leaves to the next one."""
        start = self._copy(pass_, key)
        before = _attributes(_copy_containers(start))  # set_epoch comes after, and again in the next pass
        draws = ReplayedDraws(start, pass_, fold_in(key, pass_))
        length = length_of(self.sampler)
        limit = _MAX_DRAWS if length is None else length
        self._compare_again(pass_, draws)
        ends = draws.num_draws + draws.skip(max(0, limit + 1 - draws.num_draws)) <= limit or length is not None
        after = _attributes(start)
        left = {path: value for path, value in after.items() if path not in before or not _same(before[path], value)}
        left = {**self._left.get(pass_, {}), **left}
        plain, advanced = self._copy_with({}, key, pass_ + 1), self._copy_with(left, key, pass_ + 1)
        if _all_same(_attributes(plain), _attributes(advanced)):
            self._keeps_nothing = True
            return
        if not ends:
            warnings.warn(
                f"{type(self.sampler).__name__} keeps something from pass to pass and pass {pass_} doesn't end within "
                f"{_MAX_DRAWS} draws, so every pass begins as pass 0 did: give it __len__, or set_epoch",
                stacklevel=user_level(),
            )
            self._keeps_nothing = True
            return
        self._remember(self._left, pass_ + 1, left)

    def _compare_again(self, pass_: int, draws: ReplayedDraws) -> None:
        """Makes the first draws of a pass, and warns where they aren't those that the run has got.

        Args:
            draws: The pass, from its start.
        """
        if self._opened is None or self._opened[0] != pass_ or self._has_warned:
            return
        first = self._opened[1].first
        if first and not _same(draws.take(len(first)), first):
            self._has_warned = True
            warnings.warn(
                f"{type(self.sampler).__name__} gives other indices when pass {pass_} is drawn again: it depends on "
                "something outside of it (a class attribute, a global, a variable of a function, the clock), so a "
                "resume can't be exact. Keep it in attributes of the sampler, or make it a function of set_epoch",
                stacklevel=user_level(),
            )

    def _copy_with(self, left: dict[_Path, Any], key: int, pass_: int) -> Any:
        copied = copy_sampler(self.sampler, fold_in(key, pass_), {})
        _overlay(copied, left)
        _set_epoch(copied, pass_)
        return copied

    @staticmethod
    def _remember(by_pass: dict[int, Any], pass_: int, value: Any) -> None:
        by_pass[pass_] = value
        for old in sorted(by_pass)[:-_KEPT_PASSES]:
            if old:  # pass 0 is where everything can be drawn again from
                del by_pass[old]


class ReplayedDraws:
    """What a copied sampler gives in one pass.

    Args:
        sampler: The copy, which nothing else uses.
        pass_: Given to its ``set_epoch``.
        key: Key of the pass, at which all generators start.

    Attributes:
        first: The first draws, a few; none where draws were skipped before them.
        num_draws: Draws taken so far.
    """

    def __init__(self, sampler: Any, pass_: int, key: int) -> None:
        self.first: list[Any] = []
        self.num_draws = 0
        with untouched():
            seed_generators(key)
            _set_epoch(sampler, pass_)
            self._draws = _drawn(iter(sampler))
            self._states = _get_states()

    def take(self, count: int) -> list[Any]:
        """The next ``count`` draws; fewer at the pass's end."""
        with untouched():
            _set_states(self._states)
            drawn = list(islice(self._draws, count))
            self._states = _get_states()
        if len(self.first) == self.num_draws < _COMPARED:
            self.first += drawn[: _COMPARED - self.num_draws]
        self.num_draws += len(drawn)
        return drawn

    def skip(self, count: int) -> int:
        """Makes ``count`` draws, fewer at the pass's end, and returns how many."""
        if not count:
            return 0
        with untouched():
            _set_states(self._states)
            counted = enumerate(islice(self._draws, count), 1)
            last = deque(counted, maxlen=1)
            self._states = _get_states()
        skipped = last[0][0] if last else 0
        self.num_draws += skipped
        return skipped


def _drawn(iterator: Iterator[Any]) -> Iterator[Any]:
    """What it gives, by ``next`` alone: samplers that are their own iterators start again at every ``iter``."""
    while True:
        try:
            draw = next(iterator)
        except StopIteration:
            return
        yield draw


def _state_holder(sampler: Any, depth: int = 0) -> Any | None:
    """The sampler, or the one inside it, that has ``state_dict``."""
    if has_state_methods(sampler):
        return sampler
    inner = getattr(sampler, "sampler", None)
    return None if inner is None or depth == _MAX_DEPTH else _state_holder(inner, depth + 1)


def _is_torchs_own(sampler: Any) -> bool:
    """Whether every pass of it is a function of its generators and ``set_epoch``, because torch wrote it."""
    if type(sampler) in (list, tuple, range):
        return True
    if not type(sampler).__module__.startswith("torch.utils.data."):
        return False
    inner = getattr(sampler, "sampler", None)
    return inner is None or _is_torchs_own(inner)


def _set_epoch(sampler: Any, pass_: int) -> None:
    told: set[int] = set()
    while sampler is not None and id(sampler) not in told:
        told.add(id(sampler))
        method = getattr(sampler, "set_epoch", None)
        if callable(method):
            method(pass_)
        sampler = getattr(sampler, "sampler", None)


def copy_sampler(value: Any, key: int, copies: dict[int, Any]) -> Any:
    """A copy of a sampler and of the samplers inside it, each with generators seeded from ``key``.

    An object met twice is copied once, so that what is shared stays shared. Containers and small objects of a sampler
    are copied as well, because it may change them; datasets aren't.
    """
    if id(value) in copies:
        return copies[id(value)]
    result = copies[id(value)] = copy.copy(value)
    for attribute, inner in _held(result).items():
        inner_key = fold_in(key, attribute)
        replaced = _fresh_generator(inner, inner_key, copies)
        if replaced is None and (
            isinstance(inner, Sampler) or (attribute.endswith("sampler") and _is_reiterable(inner))
        ):
            replaced = copy_sampler(inner, inner_key, copies)
        if replaced is None:
            replaced = _copied_part(inner, inner_key, copies, 0)
        if replaced is not None:
            _put(result, attribute, replaced)
    return result


def _held(value: Any) -> dict[str, Any]:
    """Attributes of an object by name, those in slots as well."""
    held = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{base.__name__.lstrip('_')}{name}" if name[:2] == "__" and name[-2:] != "__" else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                held.setdefault(mangled, getattr(value, mangled))
    return held


def _put(owner: Any, name: str, value: Any) -> None:
    """Sets an attribute, past a ``__setattr__`` of its class."""
    if name in getattr(owner, "__dict__", {}) or not hasattr(type(owner), name):
        vars(owner)[name] = value
    else:
        object.__setattr__(owner, name, value)


def _copied_part(value: Any, key: int, copies: dict[int, Any], depth: int) -> Any | None:
    """A copy of something that a sampler may change while it runs; None for what it can only read."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, (list, dict, set, deque, bytearray, np.ndarray)):
        copies[id(value)] = copied = copy.copy(value)
        return copied
    if isinstance(value, torch.Tensor):
        copies[id(value)] = value.clone()
        return copies[id(value)]
    if isinstance(value, Iterator):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                copies[id(value)] = copy.copy(value)  # itertools.count, an iterator over a list
        except TypeError:  # a generator
            return None
        return copies[id(value)]
    if depth < _MAX_DEPTH and _is_small_object(value):
        small = copies[id(value)] = copy.copy(value)
        for attribute, inner in _held(small).items():
            part = _fresh_generator(inner, fold_in(key, attribute), copies)
            if part is None:
                part = _copied_part(inner, fold_in(key, attribute), copies, depth + 1)
            if part is not None:
                _put(small, attribute, part)
        return small
    return None


def _is_small_object(value: Any) -> bool:
    """Whether it looks like a sampler's own bookkeeping and not like data or code."""
    return (
        (hasattr(value, "__dict__") or bool(_held(value)))
        and not isinstance(value, (type, Dataset, torch.nn.Module))
        and not callable(value)
        and not hasattr(type(value), "__getitem__")
        and type(value).__module__ not in ("builtins", "threading", "_thread")
    )


def _copy_containers(sampler: Any) -> Any:
    """A copy to compare with later: whatever the sampler changes in place stays as it is here."""
    copies: dict[int, Any] = {}
    result = copy.copy(sampler)
    for attribute, inner in _held(result).items():
        if isinstance(inner, Sampler) or (attribute.endswith("sampler") and _is_reiterable(inner)):
            _put(result, attribute, _copy_containers(inner))
        else:
            part = _copied_part(inner, 0, copies, 0)
            if part is not None and not isinstance(inner, GENERATOR_TYPES):
                _put(result, attribute, part)
    return result


def _attributes(sampler: Any, path: _Path = ()) -> dict[_Path, Any]:
    """What a sampler, and those inside it, hold by name, generators left out."""
    found: dict[_Path, Any] = {}
    for attribute, value in _held(sampler).items():
        here = (*path, attribute)
        if isinstance(value, GENERATOR_TYPES):
            continue
        if len(path) < _MAX_DEPTH and (
            isinstance(value, Sampler)
            or (attribute.endswith("sampler") and _is_reiterable(value))
            or _is_small_object(value)
        ):
            found.update(_attributes(value, here))
        else:
            found[here] = value
    return found


def _overlay(sampler: Any, left: Mapping[_Path, Any]) -> None:
    copies: dict[int, Any] = {}
    for path, value in left.items():
        owner = sampler
        for attribute in path[:-1]:
            owner = getattr(owner, attribute)
        part = _copied_part(value, 0, copies, 0)
        _put(owner, path[-1], value if part is None else part)


def _all_same(one: Mapping[_Path, Any], other: Mapping[_Path, Any]) -> bool:
    return one.keys() == other.keys() and all(_same(one[path], other[path]) for path in one)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return bool(one.shape == other.shape and torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Iterator):
        return repr(one) == repr(other)  # the place of itertools.count is in it; the address of others is
    try:
        return bool(one == other)
    except Exception:  # an object of the user's that can't be compared
        return False


def _is_reiterable(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (Iterator, str, bytes))


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
    elif isinstance(value, np.random.BitGenerator):
        fresh = type(value)(key)
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
