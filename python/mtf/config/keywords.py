"""Keywords that a function doesn't have: one clear error with what they are called here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from mtf.config.checks import field_types, nearest
from mtf.config.convert import place_of_field
from mtf.config.foreign_names import translation
from mtf.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def checked_keywords(
    *, words: Mapping[str, str] | None = None, settings: type | None = None, options: Sequence[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function or ``__init__`` so that an unknown keyword is a ``ConfigError`` in place of a ``TypeError``.

    Args:
        words: keyword of another tool -> what it is called here, before the general table of such words.
        settings: a configuration that the function takes; a keyword that is one of its fields is placed there.
        options: keywords that the function takes by ``**options``.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        known = [each.name for each in parameters if each.name != "self" and each.kind is not each.VAR_KEYWORD]
        known += options

        @functools.wraps(function)
        def checked(*args: P.args, **keywords: P.kwargs) -> R:
            for name in keywords:
                if name not in known:
                    raise ConfigError(_unknown(function.__qualname__, name, known, words or {}, settings, options))
            return function(*args, **keywords)

        return checked

    return decorate


def _unknown(
    function: str,
    name: str,
    known: list[str],
    words: Mapping[str, str],
    settings: type | None,
    options: Sequence[str],
) -> str:
    place = function.removesuffix(".__init__").replace("RunView.", "Trainer.")
    close = nearest(name, known)
    is_option = any(repr(option) in close for option in options)
    text = f"{place} has no {'option' if is_option else 'argument'} {name!r}"
    listed = f" (arguments: {', '.join(known)})"
    if name in words:
        return f"{text}; here it is {words[name]}{listed}"
    if settings is not None:
        way = place_of_field(settings, name) if name not in field_types(settings) else ""
        if not way:
            return f"{text}: it is a field of {settings.__name__}, so set {settings.__name__}({name}=...){listed}"
        if way.startswith(":"):
            return f"{text}{way.replace('it is a field of', f'in {settings.__name__} it is a field of')}{listed}"
    found = translation(name)
    if found is not None and found.rpartition(".")[2] not in known:
        return f"{text}; here it is {found}{listed}"
    return f"{text}{close}{listed}"
