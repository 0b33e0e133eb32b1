"""Names of loaders: which loader of a dict, a list or alone has which of the configuration's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtf.errors import ConfigError


def name_loaders(
    given: Any, names: Sequence[str], parameter: str = "loaders", *, may_have_more: bool = False
) -> dict[str, Any]:
    """Loaders by name, in the order of ``names``.

    Args:
        given: A dict name -> loader, a list, or one loader.
        names: ``dataloader_names``; empty: the dict's own, or ``dl0``, ``dl1`` ...
        parameter: What errors call ``given``.
        may_have_more: Whether a dict may have loaders that ``names`` leaves out; they come last.

    Raises:
        ConfigError: Numbers or names don't agree.
    """
    if isinstance(given, Mapping):
        chosen, more = list(names), [name for name in given if name not in names]
        if chosen and (not set(chosen) <= set(given) or (more and not may_have_more)):
            rule = "include" if may_have_more else "be exactly"
            raise ConfigError(f"the keys of {parameter}, {list(given)}, must {rule} dataloader_names, {chosen}")
        return {name: given[name] for name in [*chosen, *more]}
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if not listed:
        raise ConfigError(f"{parameter} is empty: give at least one")
    chosen = list(names) or [f"dl{index}" for index in range(len(listed))]
    if len(chosen) != len(listed):
        if parameter == "loaders":
            raise ConfigError(f"dataloader_names has {len(chosen)} names for {len(listed)} loaders: {chosen}")
        raise ConfigError(f"{parameter}: {len(listed)} loaders for {len(chosen)} names {chosen}")
    if len(set(chosen)) != len(chosen):
        twice = next(name for name in chosen if chosen.count(name) > 1)
        raise ConfigError(f"dataloader_names must differ, but {twice!r} is there {chosen.count(twice)} times")
    return dict(zip(chosen, listed, strict=True))
