"""The points of a weight curve as samples of the run, whatever they are counted in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

from mtf.config.mixture import WeightCurve
from mtf.data.blend.rows import Rows
from mtf.data.blend.sizes import BatchSizes
from mtf.enums import Interpolation
from mtf.errors import ConfigError


def in_samples(curve: WeightCurve, rows: Mapping[str, Rows], sizes: BatchSizes) -> WeightCurve:
    """The curve that a schedule with one sample per step has.

    Args:
        curve: Weights of rows, in the order of ``rows``; its points count what its ``unit`` says.
        rows: The sources by name.
        sizes: Samples of each batch.

    Raises:
        ConfigError: A point isn't a whole number of at least 0, or counts tokens and a source doesn't say how many its
            rows hold.
    """
    for number, (step, _) in enumerate(curve.points):
        if isinstance(step, bool) or not hasattr(step, "__index__") or step < 0:
            raise ConfigError(
                f"weight_curve.points[{number}]: {curve.unit} must be a whole number of at least 0, but are {step!r}"
            )
    steps = [int(step) for step, _ in curve.points]
    if curve.unit == "batches":
        steps = [sizes.start(step) for step in steps]
    elif curve.unit == "tokens":
        steps = _from_tokens(curve, _tokens_per_row(rows))
    points = [(step, weights) for step, (_, weights) in zip(steps, curve.points, strict=True)]
    return dataclasses.replace(curve, points=points, every=curve.every * sizes.smallest, unit="batches")


def _tokens_per_row(rows: Mapping[str, Rows]) -> list[Fraction]:
    found = []
    for name, source in rows.items():
        tokens = getattr(source, "tokens_per_row", None)
        if tokens is None or tokens <= 0:
            raise ConfigError(
                f"source {name!r} doesn't say how many tokens a row holds, which weight_curve.unit='tokens' needs: "
                "give its object an attribute tokens_per_row, or count batches or samples"
            )
        found.append(Fraction(tokens))
    return found


def _from_tokens(curve: WeightCurve, tokens_per_row: Sequence[Fraction]) -> list[int]:
    """The first sample before which so many tokens were drawn, on average, for each point. Exact: no floats."""
    rates = []
    for number, (_, weights) in enumerate(curve.points):
        shares = [Fraction(weight) for weight in weights]
        if len(shares) != len(tokens_per_row) or sum(shares) <= 0 or min(shares) < 0:
            raise ConfigError(
                f"weight_curve.points[{number}] must have one weight per source ({len(tokens_per_row)}), none negative "
                f"and not all zero, but has {list(weights)}"
            )
        tokens = sum((share * held for share, held in zip(shares, tokens_per_row, strict=True)), Fraction(0))
        rates.append(tokens / sum(shares))
    steps: list[int] = []
    position, drawn = 0, Fraction(0)
    for number, (target, _) in enumerate(curve.points):
        rate = rates[max(0, number - 1)]
        if curve.interpolation is Interpolation.LINEAR:
            rate = (rate + rates[number]) / 2
        missing = -((drawn - target) // rate) if target > drawn else 0
        if number and missing < 1:
            raise ConfigError(
                f"weight_curve.points[{number}] lies less than one sample behind the point before, at {target} tokens"
            )
        position, drawn = position + int(missing), drawn + int(missing) * rate
        steps.append(position)
    return steps
