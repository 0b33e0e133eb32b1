"""The state of a run as named components: all of them are compared with a state before any of them loads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from mtf.checkpoint.format.codec import copy_tree
from mtf.config.checks import nearest
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError, MtfError, StateMismatch

OTHER_RANKS = "other_ranks"
"""The entry with what ranks 1, 2 ... have of their own; rank 0's is in the components' entries."""


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that is saved. ``state_dict`` returns tensors, numbers, strings, bytes, and nested dicts, lists
    and tuples of them.

    A component may also have ``check(state) -> list[str]``, which returns what makes ``state`` unusable here, one
    difference in words each, and changes nothing. After an empty answer ``load_state_dict(state)`` must succeed.
    """

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


Loading = Literal["copied", "recovers", "checked"]
"""What makes a failing ``load_state_dict`` harmless: a copy of the state before it, which is put back; the component,
which puts itself back; or ``check``, after which it can't fail."""


@dataclass(frozen=True)
class _Entry:
    component: Any
    per_rank: bool | Collection[str]
    loading: Loading
    is_optional: bool

    def own_part(self, state: Any) -> Any:
        """What of ``state`` belongs to one rank alone."""
        if self.per_rank is True:
            return state
        return {} if state is None else {key: state[key] for key in self.per_rank or ()}

    def with_part(self, state: Any, part: Any) -> Any:
        """``state`` with what belongs to one rank replaced by ``part``."""
        if self.per_rank is True:
            return part
        return state if state is None else {**state, **part}


class StateRegistry:
    """The components of a run's state, by name.

    Args:
        ranks: every method but ``register`` is a collective of them.
        upgrade: gives a state that an earlier version took the names of today.
        on_loaded: called after each state that was loaded.
    """

    def __init__(
        self,
        ranks: SingleRank,
        upgrade: Callable[[Any], Any] = lambda state: state,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._ranks = ranks
        self._upgrade = upgrade
        self._on_loaded = on_loaded
        self._entries: dict[str, _Entry] = {}
        self._num_own = 0

    def close_own(self) -> None:
        """Components that are registered from here on are a user's."""
        self._num_own = len(self._entries)

    def register(
        self,
        name: str,
        component: Stateful,
        *,
        per_rank: bool | Collection[str] = False,
        loading: Loading = "copied",
        is_optional: bool = False,
    ) -> None:
        """Adds a component.

        Args:
            name: its entry in the state.
            component: see :class:`Stateful`.
            per_rank: whether its state belongs to each rank alone, or which keys of its state do. Such a component
                also has ``for_rank(parts, rank, world_size) -> part``, to divide what another number of ranks saved.
            loading: what makes a failing ``load_state_dict`` harmless. One component at most may be ``"recovers"``.
            is_optional: whether a state without this entry may be loaded; the component then keeps what it has.

        Raises:
            ConfigError: the name is taken, or ``component`` has no state.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"register: name must be a string that isn't empty, it is {name!r}")
        if name in self._entries or name == OTHER_RANKS:
            raise ConfigError(f"register: the state has a component {name!r} already; choose another name")
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(component, method, None)):
                raise ConfigError(
                    f"register: component {name!r} must have state_dict() and load_state_dict(state), "
                    f"{type(component).__name__} has no {method}"
                )
        self._entries[name] = _Entry(component, per_rank, loading, is_optional)

    @property
    def names(self) -> list[str]:
        """Names of the components, in the order in which they were registered."""
        return list(self._entries)

    @property
    def registered(self) -> list[str]:
        """Names of the components that a user registered."""
        return self.names[self._num_own :]

    def collect(self) -> dict[str, Any]:
        """The state of all components, the same on all ranks. Its tensors are the live ones, not copies."""
        state = {name: entry.component.state_dict() for name, entry in self._entries.items()}
        own = {name: entry.own_part(state[name]) for name, entry in self._entries.items() if entry.per_rank}
        per_rank = self._ranks.gather(own)
        for name, part in per_rank[0].items():
            state[name] = self._entries[name].with_part(state[name], part)
        return {**state, OTHER_RANKS: per_rank[1:]}

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """What makes ``state`` unusable here, in words; the same on all ranks, empty where it fits."""
        return self._compare(state)[1]

    def load(self, state: Mapping[str, Any], only: Collection[str] | None = None) -> None:
        """Loads ``state`` into all components, or into ``only`` some.

        Raises:
            StateMismatch: on all ranks, where a component of any rank refuses it; each difference is named, and
                nothing has changed.
        """
        own, differences = self._compare(state, only)
        if differences:
            raise StateMismatch("the state doesn't fit this trainer:\n  " + "\n  ".join(differences))
        entries = {name: entry for name, entry in self._entries.items() if name in own}
        self._load_unchecked({name: entry for name, entry in entries.items() if entry.loading != "checked"}, own)
        for name, entry in entries.items():
            if entry.loading == "checked":
                entry.component.load_state_dict(own[name])
        self._on_loaded()

    def _load_unchecked(self, entries: Mapping[str, _Entry], own: Mapping[str, Any]) -> None:
        before: dict[str, Any] = {}
        failure: Exception | None = None
        for name, entry in sorted(entries.items(), key=lambda item: item[1].loading == "recovers"):
            try:
                if entry.loading == "copied":
                    before[name] = copy_tree(entry.component.state_dict())
                entry.component.load_state_dict(own[name])
            except Exception as error:  # a user's component may raise anything
                failure = error
                break
        failures = self._ranks.gather(None if failure is None else _in_words(failure))
        if not any(failures):
            return
        # guard: malformed state
        for name, saved in before.items():
            with suppress(Exception):  # the one that failed may fail again; the first failure is raised
                entries[name].component.load_state_dict(saved)
        if isinstance(failure, MtfError):
            raise failure
        first = next(words for words in failures if words)
        raise StateMismatch(f"the state is malformed, nothing of it is used: {first}") from failure

    def _compare(
        self, state: Mapping[str, Any], only: Collection[str] | None = None
    ) -> tuple[dict[str, Any], list[str]]:
        """This rank's state of each component, and the differences that any rank found."""
        state = self._upgrade(state)
        own: dict[str, Any] = {}
        lines: list[str] = []
        if not isinstance(state, Mapping):
            lines.append(f"it is malformed: a state is a mapping, this is {type(state).__name__}")
        else:
            for name, entry in self._entries.items():
                if only is not None and name not in only:
                    continue
                if name not in state:
                    lines += [] if entry.is_optional else [f"the state has no {name!r}{nearest(name, list(state))}"]
                    continue
                try:
                    own[name] = self._of_this_rank(name, entry, state)
                    check = getattr(entry.component, "check", None)
                    lines += [] if check is None else check(own[name])
                except MtfError as error:
                    lines.append(str(error))
                except Exception as error:  # whatever a look into something of another kind raises
                    lines.append(f"{name}: it is malformed: {_in_words(error)}")
        per_rank = self._ranks.gather(lines)
        if len(per_rank) == 1 or all(found == lines for found in per_rank):
            return own, lines
        return own, [f"rank {rank}: {line}" for rank, found in enumerate(per_rank) for line in found]

    def _of_this_rank(self, name: str, entry: _Entry, state: Mapping[str, Any]) -> Any:
        """The part of another rank's number is divided by the component, where the number of ranks has changed."""
        if not entry.per_rank:
            return state[name]
        others: Sequence[Mapping[str, Any]] = state[OTHER_RANKS]
        parts = [entry.own_part(state[name]), *(other[name] for other in others)]
        if len(parts) == self._ranks.world_size:
            part = parts[self._ranks.rank]
        else:
            part = entry.component.for_rank(parts, self._ranks.rank, self._ranks.world_size)
        return entry.with_part(state[name], part)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
