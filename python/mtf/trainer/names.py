"""Names of loaders in settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtf.config.checks import nearest
from mtf.errors import ConfigError


def check_names(parameter: str, used: Iterable[str], known: Sequence[str]) -> None:
    """Raises ``ConfigError`` for the first of the ``used`` names that no loader has, with the nearest known one."""
    for name in used:
        if name not in known:
            raise ConfigError(
                f"{parameter}: no loader is called {name!r}, there are {list(known)}{nearest(name, known)}"
            )
