"""What the weights of a blend count: rows, the tokens in them, or those that a loss counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from mtf.config.checks import nearest, weight_of
from mtf.config.mixture import WeightCurve
from mtf.data.blend.rows import Rows
from mtf.errors import ConfigError

WeightsCount = Literal["rows", "tokens", "supervised_tokens"]

_KINDS: tuple[str, ...] = get_args(WeightsCount)
_ATTRIBUTES = {"tokens": "tokens_per_row", "supervised_tokens": "supervised_tokens_per_row"}


class RowWeights:
    """Turns weights of what is counted into weights of rows, which the schedule of a blend has.

    A source whose rows hold half as many tokens needs twice as many rows for the same share of tokens.

    Args:
        kind: What weights count.
        rows: The sources by name; any with ``tokens_per_row`` or ``supervised_tokens_per_row`` says what a row holds.

    Raises:
        ConfigError: An unknown ``kind``, or a source that doesn't say what a row holds.
    """

    def __init__(self, kind: WeightsCount, rows: Mapping[str, Rows]) -> None:
        if kind not in _KINDS:
            raise ConfigError(
                f"weights_count must be one of {', '.join(_KINDS)}, but is {kind!r}{nearest(kind, _KINDS)}"
            )
        self.kind = kind
        self._per_row: dict[str, float] = {}
        for name, source in rows.items():
            self.add(name, source)

    def add(self, name: str, rows: Rows) -> None:
        """Learns what a row of a source holds."""
        if self.kind == "rows":
            self._per_row[name] = 1.0
            return
        attribute = _ATTRIBUTES[self.kind]
        per_row = getattr(rows, attribute, None)
        if per_row is None:
            raise ConfigError(
                f"source {name!r} doesn't say how many tokens a row holds, which weights_count={self.kind!r} needs: "
                f"give its object an attribute {attribute}, or count rows"
            )
        if per_row <= 0:
            raise ConfigError(f"source {name!r} has rows without a token that counts, so that no weight can be reached")
        self._per_row[name] = float(per_row)

    def per_row(self, name: str) -> float:
        """What a row of a source holds of what weights count."""
        return self._per_row.get(name, 1.0)

    def one(self, name: str, weight: float) -> float:
        """The weight in rows of one source."""
        weight = weight_of(f"weights[{name!r}]", weight)
        per_row = self._per_row.get(name, 1.0)
        return weight if per_row == 1.0 else weight / per_row

    def hold(self, per_row: Mapping[str, float]) -> None:
        """Takes what rows hold from a record of another process."""
        self._per_row.update(per_row)

    def of(self, names: list[str], weights: Any) -> Any:
        """The weights in rows, in the form in which they were given: by name or in the order of ``names``."""
        if weights is None:
            return None
        is_named = isinstance(weights, Mapping)
        if not is_named and len(weights) != len(names):
            return weights  # refused, with both numbers, by what takes them
        given = weights if is_named else dict(zip(names, weights, strict=True))
        in_rows = {name: self.one(name, weight) for name, weight in given.items()}
        if set(in_rows) >= set(names) and not any(in_rows.values()):
            raise ConfigError("weights must have a positive one, but all are 0")
        return in_rows if is_named else list(in_rows.values())

    def given(self, names: list[str], weights: Any) -> Any:
        """Weights for ``of``: where none are given, all sources have equal shares of what is counted."""
        return [1.0] * len(names) if weights is None and self.kind != "rows" else weights

    def of_curve(self, names: list[str], curve: WeightCurve | None) -> WeightCurve | None:
        """The curve in rows; between its points, too, shares are those of what is counted."""
        if curve is None or self.kind == "rows":
            return curve
        points = [(step, self.of(names, weights)) for step, weights in curve.points]
        return dataclasses.replace(curve, points=points)
