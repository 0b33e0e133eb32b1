"""What docs/configuration.md shows, read from the dataclasses: fields, types, defaults, docstrings. No sphinx."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from enum import Enum
from typing import Any, NamedTuple

import mtf.config
from mtf.config.base import Config


class Setting(NamedTuple):
    """One field of a configuration."""

    name: str
    kind: str
    default: str
    meaning: str


def configurations() -> list[type[Config]]:
    """Every configuration dataclass, `TrainerConfig` first and then as it names them, the rest by name."""
    for module in pkgutil.iter_modules(mtf.config.__path__, "mtf.config."):
        importlib.import_module(module.name)
    known = {cls.__name__: cls for cls in Config.__subclasses__() if cls.__module__.startswith("mtf.config.")}
    top = known["TrainerConfig"]
    mentioned = [word for field in dataclasses.fields(top) for word in re.findall(r"\w+", str(field.type))]
    order = ["TrainerConfig", *(word for word in mentioned if word in known), *sorted(known)]
    return [known[name] for name in dict.fromkeys(order)]


def summary(cls: type) -> str:
    """The docstring up to its list of attributes."""
    return inspect.cleandoc(cls.__doc__ or "").split("\nAttributes:\n")[0].strip()


def meanings(cls: type) -> dict[str, str]:
    """Field -> what the docstring's `Attributes` say about it."""
    _, _, listed = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", listed, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in entries}


def settings(cls: type[Config]) -> list[Setting]:
    """The fields in their order.

    Raises:
        KeyError: a field that the docstring doesn't mention.
    """
    explained = meanings(cls)
    return [
        Setting(field.name, str(field.type).replace("Literal", "one of "), default(field), explained[field.name])
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]  # every subclass of Config is a dataclass
        if field.init
    ]


def default(field: dataclasses.Field[Any]) -> str:
    """As one would write it in Python."""
    if field.default is not dataclasses.MISSING:
        value = field.default
        return f"{type(value).__name__}.{value.name}" if isinstance(value, Enum) else repr(value)
    if field.default_factory is dataclasses.MISSING:
        return "required"
    made = field.default_factory()
    return f"{type(made).__name__}()" if isinstance(made, Config) else repr(made)


def enums() -> list[type[Enum]]:
    """The sets of choices that fields name."""
    module = importlib.import_module("mtf.enums")
    found = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Enum)]
    return [value for value in found if value is not Enum]


def page() -> str:
    """The reference in reStructuredText."""
    lines: list[str] = []
    for cls in configurations():
        lines += ["", cls.__name__, "-" * len(cls.__name__), "", summary(cls), ""]
        for setting in settings(cls):
            needed = "required" if setting.default == "required" else f"default ``{setting.default}``"
            lines += [f"**{setting.name}**: ``{setting.kind}``, {needed}", f"   {setting.meaning}"]
    lines += ["", "Choices", "-------", "", "In Python a member or its name, in YAML a name or value, in any case.", ""]
    for enum in enums():
        names = ", ".join(f"``{name}``" for name in enum.__members__)
        lines += [f"``{enum.__name__}``", f"   {inspect.cleandoc(enum.__doc__ or '')} {names}.", ""]
    return "\n".join(lines)
