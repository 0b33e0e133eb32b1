"""Configurations from a command line: YAML files, and single settings as ``--performance.precision=bf16``.

OmegaConf merges the files and the settings, because its dotted lists know nested names, lists and YAML's values, and it
brings nothing else with it; the dataclasses then check kinds and names as they do for ``from_dict``.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import typing
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from mtf.config.checks import field_types
from mtf.errors import ConfigError


def read_command_line(cls: type, args: Sequence[str] | None, description: str | None) -> dict[str, Any]:
    """The settings that a command line gives for the configuration ``cls``, as nested plain data.

    Args:
        cls: a dataclass.
        args: the arguments; None: those of this process.
        description: what ``--help`` says first.

    Returns:
        What the files given by ``--config`` say, each overriding those before it, and then the single settings.

    Raises:
        ConfigError: OmegaConf isn't installed, a file can't be read, or an argument is no setting.
        SystemExit: ``--help`` was asked for, and printed.
    """
    parser = argparse.ArgumentParser(description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[], type=Path, metavar="FILE")
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(args)
    if known.help:
        print(_help(cls, parser.prog, description))
        raise SystemExit(0)
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError as error:
        raise ConfigError("reading a command line needs OmegaConf: pip install 'mtf-torch[cli]'") from error
    merged: Any = OmegaConf.create({})
    for path in known.config:
        try:
            merged = OmegaConf.merge(merged, OmegaConf.load(path))
        except OSError as error:
            raise ConfigError(f"--config: cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # PyYAML's and OmegaConf's errors have no common base
            raise ConfigError(f"--config: {path} is no YAML mapping of settings: {error}") from error
    for assignment in _assignments(rest):
        try:
            given = OmegaConf.from_dotlist([assignment])
            merged = _set(OmegaConf, merged, assignment.partition("=")[0], given)
        except Exception as error:  # as above
            raise ConfigError(f"--{assignment}: {' '.join(str(error).split())}") from error
    try:
        found = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the settings can't be resolved: {error}") from error
    return typing.cast("dict[str, Any]", found)


def _set(omega: Any, merged: Any, name: str, given: Any) -> Any:
    """``merged`` with a single setting. A dict is merged with one that is there; other values replace it."""
    try:
        return omega.merge(merged, given)
    except TypeError:  # a list where a dict is, or the other way round
        omega.update(merged, name, omega.select(given, name), merge=False)
        return merged


def _assignments(rest: Sequence[str]) -> Iterable[str]:
    """``a.b=c`` for each ``--a.b=c``, ``--a.b c`` and ``a.b=c``."""
    words = list(rest)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"[A-Za-z_][\w.\-]*", name) or (word.startswith("-") and not word.startswith("--")):
            raise ConfigError(f"{word!r} is no setting: write --name=value, such as --performance.precision=bf16")
        if not equals and not word.startswith("-") and Path(word).suffix in (".yaml", ".yml", ".json"):
            raise ConfigError(f"{word!r} is no setting: a file of settings is read with --config {word}")
        if not equals:
            if not word.startswith("--") or not words or words[0].startswith("--"):
                raise ConfigError(f"{word!r} has no value: write --{name}=value")
            value = words.pop(0)
        yield f"{name.replace('-', '_')}={value}"


def _help(cls: type, prog: str, description: str | None) -> str:
    lines = [f"usage: {prog} [--config FILE] [--name=value ...]", ""]
    if description:
        lines += [description, ""]
    lines += ["settings (values are YAML; later ones win):", ""]
    width = 100
    for name, kind, default, text in _settings(cls, ""):
        lines.append(f"  --{name} ({kind}{', default ' + default if default else ', required'})")
        if text:
            lines.append(f"      {text if len(text) <= width else text[: width - 3].rstrip() + '...'}")
    return "\n".join(lines)


def _settings(cls: type, prefix: str) -> Iterable[tuple[str, str, str, str]]:
    """Dotted name, kind, default and meaning of every setting, nested ones included."""
    texts = _meanings(cls)
    for field in dataclasses.fields(cls):
        hint = field_types(cls)[field.name]
        options = [option for option in (typing.get_args(hint) or (hint,)) if isinstance(option, type)]
        inner = next((option for option in options if dataclasses.is_dataclass(option)), None)
        if inner is not None:
            yield from _settings(inner, f"{prefix}{field.name}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = default.name if isinstance(default, Enum) else repr(default)
        kind = "|".join(hint.__members__) if isinstance(hint, type) and issubclass(hint, Enum) else _kind(hint)
        yield f"{prefix}{field.name}", kind, "" if default is dataclasses.MISSING else shown, texts.get(field.name, "")


def _kind(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return re.sub(r"\b(typing|collections\.abc)\.|Literal(?=\[)", "", text)


def _meanings(cls: type) -> dict[str, str]:
    """Field -> what the docstring's ``Attributes:`` say of it, in one line."""
    _, _, attributes = (cls.__doc__ or "").partition("Attributes:")
    found: dict[str, str] = {}
    for match in re.finditer(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", attributes, re.MULTILINE):
        found[match[1]] = re.sub(r"``?", "", " ".join(match[2].split()))
    return found


def exit_with(error: ConfigError) -> typing.NoReturn:
    """Ends the process as ``argparse`` does for a wrong argument: the message, and status 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)
