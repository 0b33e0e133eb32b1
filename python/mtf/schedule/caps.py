"""How often the sources of a schedule may be passed through, and what happens when one has been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtf.config.checks import nearest, whole_number
from mtf.errors import ConfigError

WhenSpent = str | Mapping[str, str]


@dataclass(frozen=True)
class PassCaps:
    """Largest numbers of passes.

    Attributes:
        max_passes: Name -> passes after which the source is spent; the others have no largest number.
        heirs: Name -> the source that gets the weight of a spent one. Of those without one, all others get it in
            proportion to theirs.
        stops: Whether everything ends at the first demand for a spent source.
        per_draw: Name -> what a draw counts of what weights are of; 1 where nothing is said.
    """

    max_passes: Mapping[str, int]
    heirs: Mapping[str, str] = field(default_factory=dict)
    stops: bool = False
    per_draw: Mapping[str, float] = field(default_factory=dict)

    def by_index(self, names: Sequence[str]) -> list[tuple[int | None, int | None, float]]:
        """Per source its largest number of passes, the index of its heir, and what a draw counts, for the core."""
        return [
            (
                self.max_passes.get(name),
                names.index(self.heirs[name]) if self.heirs.get(name) in names else None,
                self.per_draw.get(name, 1.0),
            )
            for name in names
        ]

    def then(self, name: str) -> str:
        """What happens when ``name`` is spent, in words."""
        if self.stops:
            return "the run ends"
        heir = self.heirs.get(name)
        return "the others take its share" if heir is None else f"{heir!r} takes its share"


def parse_caps(max_passes: Mapping[str, int] | None, when_spent: WhenSpent, names: Sequence[str]) -> PassCaps | None:
    """The caps that a user gave; None where there are none.

    Raises:
        ConfigError: An unknown source, a number below 1, or a ``when_spent`` that can't be.
    """
    if isinstance(when_spent, str):
        if when_spent not in ("others", "stop"):
            raise ConfigError(
                f'when_spent must be "others", "stop" or a dict of a spent source and the one that takes over, but is '
                f"{when_spent!r}"
            )
    elif not isinstance(when_spent, Mapping):
        raise ConfigError(f"when_spent must be a string or a dict of names, but is {when_spent!r}")
    if max_passes is None or (isinstance(max_passes, Mapping) and not max_passes):
        if when_spent != "others":
            raise ConfigError(f"when_spent={when_spent!r} has no effect without max_passes: say how many passes")
        return None
    if not isinstance(max_passes, Mapping):
        raise ConfigError(f"max_passes must be a dict of name and number of passes, but is {max_passes!r}")
    for name, number in max_passes.items():
        _require_known(name, names, "max_passes")
        check_max_passes(name, number)
    heirs: dict[str, str] = {}
    if not isinstance(when_spent, str):
        for name, heir in when_spent.items():
            _require_known(name, names, "when_spent")
            _require_known(heir, names, f"when_spent[{name!r}]")
            if name not in max_passes:
                raise ConfigError(f"when_spent[{name!r}] has no effect: max_passes sets no number of passes for it")
            if name == heir:
                raise ConfigError(f"when_spent[{name!r}] must be another source than itself")
            heirs[name] = heir
    return PassCaps({name: int(number) for name, number in max_passes.items()}, heirs, when_spent == "stop")


def check_max_passes(name: str, number: Any) -> None:
    """Raises ``ConfigError`` unless ``number`` is a whole number of at least 1."""
    whole_number(f"max_passes[{name!r}]", number, 1)


def _require_known(name: Any, names: Sequence[str], parameter: str) -> None:
    if name not in names:
        near = nearest(name, names) if isinstance(name, str) else ""
        raise ConfigError(f"{parameter}: there is no source {name!r}{near} (sources: {list(names)})")
