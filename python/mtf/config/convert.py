"""Configurations to plain data (dicts, lists, numbers, strings) and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from mtf.config.checks import field_types, nearest, parse_enum
from mtf.errors import ConfigError


def place_of_field(cls: type, name: object) -> str:
    """Where a field that ``cls`` doesn't have is, or what was meant: an end of a message that lists the fields."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for outer, inner in field_types(cls).items():
        options = typing.get_args(inner) or (inner,)
        kinds = [kind for kind in options if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        if any(name in field_types(kind) for kind in kinds):
            return f": it is a field of {outer!r}, so set {outer}.{name}"
    return f"{nearest(name, fields)} (fields: {', '.join(fields)})"


def build(cls: type, data: object, where: str) -> object:
    """The dataclass ``cls`` from nested plain data; ``where`` is its place in messages.

    Raises:
        ConfigError: an unknown or missing field, or a value of another kind.
    """
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping of field names to values, got {data!r}")
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{cls.__qualname__} must be a dataclass: put @dataclass above it")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = field_types(cls)
    arguments = {}
    data = getattr(cls, "as_fields", dict)(data)
    for name, value in data.items():
        if name not in fields:
            raise ConfigError(f"{where} has no field {name!r}{place_of_field(cls, name)}")
        arguments[name] = _convert(hints[name], value, f"{where}.{name}")
    missing = [
        n
        for n, f in fields.items()
        if n not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} is required")
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` from plain data as the annotation ``hint`` wants it; what needs no conversion goes through."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where)
    if isinstance(hint, type) and origin is None:
        return _convert_plain(hint, value, where)
    arguments = typing.get_args(hint)
    if origin is typing.Literal:
        if value not in arguments:
            options = ", ".join(map(repr, arguments))
            raise ConfigError(f"{where} must be one of {options}, got {value!r}{nearest(str(value), arguments)}")
        return value
    if origin in (list, Sequence, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ConfigError(f"{where} must be a list, got {value!r}")
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise ConfigError(f"{where} must have {len(arguments)} entries, got {len(value)}: {value!r}")
            return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
        items = [_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping, got {value!r}")
        return {
            _convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}[{k!r}]") for k, v in value.items()
        }
    return value


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"{where} must not be None")
    options = tuple(o for o in options if o is not type(None))
    first: ConfigError | None = None
    # An exact match first, so that `int | float` keeps an int and `bool | str` a bool.
    for option in sorted(options, key=lambda o: type(value) is not o):
        try:
            return _convert(option, value, where)
        except ConfigError as error:
            first = first or error
    assert first is not None
    raise first


def _convert_plain(kind: type, value: Any, where: str) -> Any:
    if issubclass(kind, Enum):
        return parse_enum(kind, value, where)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 as a string.
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{where} must be a number, got {value!r}") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is int and isinstance(value, bool):
        raise ConfigError(f"{where} must be an int, got {value!r}")
    if kind in (int, str, bool, float) and not isinstance(value, kind):
        raise ConfigError(f"{where} must be {'an' if kind is int else 'a'} {kind.__name__}, got {value!r}")
    return value


def to_plain(value: Any, where: str) -> Any:
    """Nested plain data of a dataclass, which ``build`` turns back into an equal object.

    Raises:
        ConfigError: something without a plain form, such as a function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value) if f.init
        }
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {k: to_plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, Sequence):
        return [to_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise ConfigError(f"{where} has no plain form: {value!r}")


def describe(value: Any) -> Any:
    """As ``to_plain``, for people: what has no plain form is named instead of refused."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"
