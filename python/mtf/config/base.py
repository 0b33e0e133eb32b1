"""Configurations as plain data: dataclasses to and from dicts and YAML, with errors that name the field."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mtf.config.checks import field_types
from mtf.config.command_line import exit_with, read_command_line
from mtf.config.convert import build, place_of_field, to_plain
from mtf.errors import ConfigError
from mtf.formatting import html_table, shortened

C = TypeVar("C", bound="Config")


class _Keywords(type):
    """Of configuration classes: a keyword that is no field is one clear error, and other spellings are understood."""

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        """Makes a configuration."""
        as_fields: Callable[[Mapping[str, Any]], dict[str, Any]] = getattr(cls, "as_fields")  # noqa: B009 - of Config
        keywords = as_fields(keywords)
        for name in keywords:
            if name not in _parameters(cls):
                raise ConfigError(f"{cls.__name__} has no field {name!r}{place_of_field(cls, name)}")
        return super().__call__(*args, **keywords)


@cache
def _parameters(cls: type) -> frozenset[str]:
    """The keywords that the constructor takes."""
    return frozenset(inspect.signature(vars(cls).get("__init__", Config)).parameters) | frozenset(field_types(cls))


class Config(metaclass=_Keywords):
    """Base of mtf's configuration dataclasses, and of your own: subclass it with ``@dataclass`` and type annotations.

    Fields may be numbers, strings, enums, ``Literal``, lists, tuples, mappings and further ``Config`` classes.
    """

    SPELLINGS: ClassVar[Mapping[str, Mapping[Any, Any]]] = {}
    """Field -> other spelling of a value -> the value."""

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

    @classmethod
    def as_fields(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """What was given as keywords or plain data, in the names and forms of the fields. Subclasses add to it."""
        return {name: _spelled(cls, name, value) for name, value in given.items()}

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what is no field: a slip of the pen would have no effect.

        Raises:
            ConfigError: no field has this name; the nearest is suggested.
        """
        fields = getattr(type(self), "__dataclass_fields__", {})
        if fields and name not in fields and not name.startswith("_") and not hasattr(type(self), name):
            raise ConfigError(f"{type(self).__name__} has no field {name!r}{place_of_field(type(self), name)}")
        object.__setattr__(self, name, _spelled(type(self), name, value))

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
        return typing.cast(C, build(cls, data, cls.__name__))

    @classmethod
    def from_yaml(cls: type[C], path: str | Path) -> C:
        """As ``from_dict`` from a YAML file. Needs PyYAML (``pip install mtf-torch[yaml]``)."""
        try:
            import yaml
        except ImportError as error:
            raise ConfigError("reading YAML needs PyYAML: pip install 'mtf-torch[yaml]'") from error
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = yaml.safe_load(text)
        except OSError as error:
            raise ConfigError(f"{cls.__name__}: cannot read {path}: {error.strerror or error}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{cls.__name__}: {path} is not valid YAML: {error}") from error
        return cls.from_dict({} if data is None else data)

    @classmethod
    def from_cli(cls: type[C], args: Sequence[str] | None = None, description: str | None = None) -> C:
        """As ``from_dict`` from a command line: ``script.py --config run.yaml --performance.precision=bf16``.

        ``--config`` may be given several times; single settings win over files, later ones over earlier ones. Values
        are YAML (``--multi.dataloader_weights=[3,1]``), ``--name value`` works as well, and ``--help`` lists every
        setting. Needs OmegaConf, which merges them.

        Args:
            args: the arguments; None: those of this process.
            description: what ``--help`` says first.

        Raises:
            SystemExit: with status 2 after one message, where an argument or a setting is wrong; after ``--help``.
        """
        try:
            return cls.from_dict(read_command_line(cls, args, description))
        except ConfigError as error:
            exit_with(error)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain data (dicts, lists, numbers, strings) that ``from_dict`` turns back into an equal object.

        Raises:
            ConfigError: a field holds something without a plain form, such as a function.
        """
        return typing.cast("dict[str, Any]", to_plain(self, type(self).__name__))


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


def _spelled(cls: type[Config], name: str, value: Any) -> Any:
    spellings = cls.SPELLINGS.get(name)
    if spellings is None or not isinstance(value, (str, int)) or isinstance(value, bool):
        return value
    return spellings.get(value.lower() if isinstance(value, str) else value, value)
