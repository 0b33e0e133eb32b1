"""Checks of single settings: each raises one error that names the field, the rule and the value."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable
from enum import Enum
from functools import cache
from numbers import Integral, Real
from os import PathLike
from typing import Any, TypeVar

from mtf.config.foreign_names import FOREIGN_VALUES, translation
from mtf.errors import ConfigError

E = TypeVar("E", bound=Enum)


def nearest(name: object, known: Iterable[object]) -> str:
    """``"; did you mean 'x'?"`` for the known name closest to ``name``; another tool's word is translated.

    Args:
        name: what was given.
        known: the names there are, in order of preference.

    Returns:
        An end of a message, or an empty string.
    """
    names = [str(k) for k in known]
    here = translation(name)
    if here is not None:
        field = here.rpartition(".")[2]
        return f"; did you mean {(field if field in names else here)!r}?"
    for value in FOREIGN_VALUES.get(str(name).lower().replace("-", "_"), ()):
        if value in names:
            return f"; did you mean {value!r}?"
    folded = {n.lower(): n for n in reversed(names)}
    found = difflib.get_close_matches(str(name).lower(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[found[0]]!r}?" if found else ""


def parse_enum(kind: type[E], value: object, where: str) -> E:
    """The member of ``kind`` that ``value`` is, or names (by name, alias or value, in any case).

    Raises:
        ConfigError: no member is called so; the message lists them.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        word = value.strip().lower().replace("-", "_")
        word = word.removeprefix(kind.__name__.lower() + ".")
        for name, member in kind.__members__.items():
            if word in (name.lower(), str(member.value).lower()):
                return member
    names = list(kind.__members__)
    raise ConfigError(f"{where} must be one of {', '.join(names)}, got {value!r}{nearest(str(value), names)}")


def one_of(where: str, value: object, options: tuple[str, ...]) -> None:
    """Raises ``ConfigError`` unless ``value`` is one of ``options``; suggests the nearest."""
    if value not in options:
        raise ConfigError(f"{where} must be one of {', '.join(options)}, got {value!r}{nearest(str(value), options)}")


def at_least(where: str, value: int, low: int) -> None:
    """Raises ``ConfigError`` unless ``value`` is an int of at least ``low``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{where} must be an int of at least {low}, it is {value!r}")


def whole_number(where: str, value: Any, low: int) -> int:
    """``value`` as an int: Python's, numpy's, or anything else that can be an index, but no bool.

    Raises:
        ConfigError: It is something else, or below ``low``.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{where} must be a whole number of at least {low}, but is {value!r}")
    number = int(value.__index__())
    if number < low:
        raise ConfigError(f"{where} must be at least {low}, but is {number}")
    return number


def number_of(where: str, value: Any) -> float:
    """``value`` as a float: a number of Python or numpy, or a tensor of one; no string that spells one.

    Raises:
        ConfigError: It is something else.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{where} must be a number, but is {value!r}") from None


def weight_of(where: str, value: Any) -> float:
    """``value`` as a weight: a number that is finite and not negative.

    Raises:
        ConfigError: It is something else.
    """
    weight = number_of(where, value)
    if not 0.0 <= weight < math.inf:
        raise ConfigError(f"{where} must be finite and not negative, but is {value!r}")
    return weight


def positive(where: str, value: float | None) -> None:
    """Raises ``ConfigError`` unless ``value`` is None, or positive and finite."""
    if value is not None and not 0.0 < value < float("inf"):
        raise ConfigError(f"{where} must be positive and finite, it is {value!r}")


@cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotations of ``cls``, resolved."""
    return typing.get_type_hints(cls)


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((Integral,), "an int"),
    float: ((Real,), "a number"),
    str: ((str, PathLike), "a string"),
    bool: ((bool,), "True or False"),
}


def require_kinds(config: object, cls: type, where: str) -> None:
    """Checks those fields of ``cls`` that hold one number, string or bool: what comes from ``from_dict`` was checked,
    what is given to a constructor or assigned wasn't.

    Args:
        where: what stands before the field's name in the message, such as ``"checkpoint."``.

    Raises:
        ConfigError: a field holds something else.
    """
    for name, hint in field_types(cls).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = [option for option in options if option is not type(None)]
        if not all(kind in _KINDS for kind in kinds):
            continue
        value = getattr(config, name)
        if value is None and len(kinds) < len(options):
            continue
        is_flag = isinstance(value, bool) and bool not in kinds  # which is an int for Python
        if is_flag or not any(isinstance(value, _KINDS[kind][0]) for kind in kinds):
            raise ConfigError(
                f"{where}{name} must be {' or '.join(_KINDS[kind][1] for kind in kinds)}, it is {value!r}"
            )
