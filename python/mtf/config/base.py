"""Configurations as plain data: dataclasses to and from dicts and YAML, with errors that name the field."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from mtf.errors import ConfigError
from mtf.formatting import html_table, shortened

C = TypeVar("C", bound="Config")
E = TypeVar("E", bound=Enum)


class Config:
    """Base of mtf's configuration dataclasses, and of your own: subclass it with ``@dataclass`` and type annotations.

    Fields may be numbers, strings, enums, ``Literal``, lists, tuples, mappings and further ``Config`` classes.
    """

    def __init_subclass__(cls) -> None:
        """Keeps ``@dataclass`` from writing a ``__repr__`` with every field."""
        super().__init_subclass__()
        if "__repr__" not in vars(cls):
            setattr(cls, "__repr__", Config.__repr__)  # noqa: B010 - mypy refuses to assign a method

    def __post_init__(self) -> None:
        """Checks the fields."""
        self.require_valid()

    def require_valid(self) -> None:
        """Brings the fields into their form and checks them; the trainer calls it again, as they can be assigned.

        Raises:
            ConfigError: a field holds what it must not.
        """

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what is no field: a slip of the pen would have no effect.

        Raises:
            ConfigError: no field has this name; the nearest is suggested.
        """
        fields = getattr(type(self), "__dataclass_fields__", {})
        if fields and name not in fields and not name.startswith("_") and not hasattr(type(self), name):
            raise ConfigError(
                f"{type(self).__name__} has no field {name!r}{nearest(name, fields)} (fields: {', '.join(fields)})"
            )
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """The fields that differ from their defaults."""
        changed = [f"{name}={_shown(value)}" for name, value, default in _settings(self) if value != default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def _repr_html_(self) -> str:
        rows = sorted(_rows(self, ""), key=lambda row: row[1] == row[2])
        cells = [(name, value, "" if value == default else default) for name, value, default in rows]
        return html_table(type(self).__name__, ("setting", "value", "default, where it differs"), cells)

    @classmethod
    def from_dict(cls: type[C], data: Mapping[str, Any]) -> C:
        """Builds the configuration from nested plain data.

        Args:
            data: field name -> value; nested configurations as dicts, enums by name or value (any case).

        Raises:
            ConfigError: an unknown field (the nearest name is suggested), or a value of the wrong kind.
        """
        return typing.cast(C, _build(cls, data, cls.__name__))

    @classmethod
    def from_yaml(cls: type[C], path: str | Path) -> C:
        """As ``from_dict`` from a YAML file. Needs PyYAML (``pip install mtf[yaml]``)."""
        try:
            import yaml
        except ImportError as error:
            raise ConfigError("reading YAML needs PyYAML: pip install 'mtf[yaml]'") from error
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = yaml.safe_load(text)
        except OSError as error:
            raise ConfigError(f"{cls.__name__}: cannot read {path}: {error.strerror or error}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{cls.__name__}: {path} is not valid YAML: {error}") from error
        return cls.from_dict({} if data is None else data)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data (dicts, lists, numbers, strings) that ``from_dict`` turns back into an equal object.

        Raises:
            ConfigError: a field holds something without a plain form, such as a function.
        """
        return typing.cast("dict[str, Any]", _plain(self, type(self).__name__))


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    int: ((Integral,), "an int"),
    float: ((Real,), "a number"),
    str: ((str, PathLike), "a string"),
    bool: ((bool,), "True or False"),
}


def require_kinds(config: Config, cls: type, where: str) -> None:
    """Checks those fields of ``cls`` that hold one number, string or bool: what comes from ``from_dict`` was checked,
    what is given to a constructor or assigned wasn't.

    Args:
        where: what stands before the field's name in the message, such as ``"checkpoint."``.

    Raises:
        ConfigError: a field holds something else.
    """
    for name, hint in _hints(cls).items():
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


def nearest(name: str, known: Iterable[object]) -> str:
    """``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    names = [str(k) for k in known]
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


def _settings(config: Any) -> Iterable[tuple[str, Any, Any]]:
    """Name, value and default of every field; ``MISSING`` where there is no default."""
    for f in dataclasses.fields(config):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        yield f.name, getattr(config, f.name), default


def _rows(config: Any, prefix: str) -> Iterable[tuple[str, str, str]]:
    """Dotted name, value and default of every field, nested configurations included, as text."""
    for name, value, default in _settings(config):
        if isinstance(value, Config):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _shown(value), "required" if default is dataclasses.MISSING else _shown(default)


def _shown(value: object) -> str:
    """A value in a line: enums and functions by their names, which can be typed again."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Config):
        return repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"<function {value.__qualname__}>"
    return shortened(repr(value))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(cls: type, data: object, where: str) -> object:
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping of field names to values, got {data!r}")
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(f"{cls.__qualname__} must be a dataclass: put @dataclass above it")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = _hints(cls)
    arguments = {}
    for name, value in data.items():
        if name not in fields:
            raise ConfigError(
                f"{where} has no field {name!r}{nearest(str(name), fields)} (fields: {', '.join(fields)})"
            )
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
        return _build(kind, value, where)
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


def _plain(value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value) if f.init
        }
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise ConfigError(f"{where} has no plain form: {value!r}")
