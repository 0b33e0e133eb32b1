"""Resuming from parts of a checkpoint: weights only, for instance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtf.config.checks import nearest
from mtf.errors import ConfigError

_PARTS: dict[str, tuple[str, ...]] = {
    "model": ("model",),
    "optimizers": ("optimizers", "requires_grad", "eval_modules", "hyperparameters", "scaler"),
    "schedulers": ("schedulers", "scheduler_settings"),
    "hooks": ("hooks",),
}
"""Part -> entries of the state. Every other entry of mtf's own is ``"position"``: where the run and its loaders stand,
which only mean something together."""


class ResumeParts:
    """Which entries of a state are loaded.

    Args:
        parts: ``"model"``, ``"optimizers"``, ``"schedulers"``, ``"hooks"``, ``"position"``, or names of components
            that were registered; one, or several.
        entries: names of all entries of the trainer's state.
        registered: those of them that the user registered.

    Raises:
        ConfigError: there is no such part, or none is given.
    """

    def __init__(self, parts: str | Iterable[str], entries: Sequence[str], registered: Iterable[str]) -> None:
        own = set(registered)
        grouped = {entry for group in _PARTS.values() for entry in group}
        groups = {**_PARTS, "position": tuple(e for e in entries if e not in grouped and e not in own)}
        known = [*groups, *(name for name in own if name not in groups)]
        if not isinstance(parts, (str, Iterable)):
            raise ConfigError(f"resume_parts must be one or several of {', '.join(known)}, it is {parts!r}")
        self.names = [parts] if isinstance(parts, str) else list(parts)
        if not self.names:
            raise ConfigError(f"resume_parts is empty: name one or several of {', '.join(known)}, or leave it out")
        for name in self.names:
            if name not in known:
                raise ConfigError(
                    f"resume_parts: the state has no part {name!r}{nearest(name, known)} (parts: {', '.join(known)})"
                )
        self.entries = frozenset(entry for name in self.names for entry in groups.get(name, (name,)))
        self.left_out = [name for name in known if name not in self.names]

    @property
    def continues_run(self) -> bool:
        """Whether the checkpoint's run is continued, and not a new one begun."""
        return "position" in self.names


def require_path(source: str | None, parts: object) -> None:
    """Parts are loaded once, from a checkpoint of another run.

    Raises:
        ConfigError: ``resume_parts`` without a path to load them from.
    """
    if parts is not None and (source is None or source == "latest"):
        raise ConfigError(
            f"resume_parts={parts!r} needs resume_from, the path of a checkpoint, which is {source!r}: a restart would "
            "otherwise drop the other parts of this run's own newest checkpoint"
        )
