"""What a user says of a schedule, checked and made into what the core takes: names, lengths, seed, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtf import _core
from mtf.config.checks import nearest, parse_enum
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.enums import EpochLengthPolicy, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError


def name_sources(
    names: Sequence[str], lengths: Sequence[int | None] | Mapping[str, int | None]
) -> tuple[list[str], list[int | None]]:
    """Names and lengths in index order."""
    for name in [*names, *(lengths if isinstance(lengths, Mapping) else ())]:
        if not isinstance(name, str):
            raise ConfigError(f"names of dataloaders must be strings, got {name!r}")
    if isinstance(lengths, Mapping):
        if names:
            match_names(names, lengths, "dataloader_names")
        ordered = list(names or lengths)
        return ordered, [check_length(lengths[name], name) for name in ordered]
    if names and len(names) != len(lengths):
        raise ConfigError(
            f"lengths must have one entry for each of the {len(names)} dataloader_names ({', '.join(names)}), "
            f"got {len(lengths)}"
        )
    ordered = list(names) or [f"dl{i}" for i in range(len(lengths))]
    return ordered, [check_length(length, name) for name, length in zip(ordered, lengths, strict=True)]


def match_names(names: Sequence[str], given: Mapping[str, Any], parameter: str) -> None:
    """Raises ``ConfigError`` unless ``given`` has exactly ``names``."""
    for name in given:
        if name not in names:
            raise ConfigError(
                f"{name!r} is not among the {parameter}{nearest(name, names)} (known: {', '.join(names)})"
            )
    for name in names:
        if name not in given:
            raise ConfigError(f"{parameter}: nothing is given for {name!r}")


def check_length(length: int | None, name: str) -> int | None:
    """``length``, if it is a number of batches or None; else raises ``ConfigError``."""
    if length is None:
        return None
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise ConfigError(f"the length of dataloader {name!r} must be a number of batches or None, got {length!r}")
    return length


def check_seed(seed: int) -> int:
    """``seed``, if it is one.

    Raises:
        ConfigError: it isn't an integer in ``[0, 2**64)``.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    return seed


def _integer(value: object, parameter: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise ConfigError(f"{parameter} must be an integer, got {value!r}")
    return value


def to_core(config: MultiDataLoaderConfig, num_sources: int, kept: Sequence[int] | None = None) -> _core.MixtureConfig:
    """The configuration for the core; ``kept``: index of each source that the configuration speaks of."""
    kept = range(num_sources) if kept is None else kept

    def spread(weights: Sequence[float], parameter: str) -> list[float]:
        """Weights by index, 0 for removed sources. A wrong number goes through when nothing was removed: the core
        has the message for it."""
        try:
            numbers = [float(w) for w in weights]
        except (TypeError, ValueError):
            raise ConfigError(f"{parameter} must be numbers, one per dataloader in order, got {weights!r}") from None
        if len(kept) == num_sources:
            return numbers
        if len(numbers) != len(kept):
            raise ConfigError(f"{parameter} must have one weight per dataloader ({len(kept)}), got {len(numbers)}")
        out = [0.0] * num_sources
        for index, weight in zip(kept, numbers, strict=True):
            out[index] = weight
        return out

    pattern = [_integer(p, f"alternating_pattern[{i}]") for i, p in enumerate(config.alternating_pattern or [])]
    for i, entry in enumerate(pattern):
        if not 0 <= entry < len(kept):
            raise ConfigError(
                f"alternating_pattern[{i}] must be the index of a dataloader, in [0, {len(kept)}), got {entry}"
            )
    weights = config.dataloader_weights
    if weights is not None and len(weights) == 0:
        raise ConfigError(f"dataloader_weights must have one weight per dataloader ({len(kept)}), got 0")
    curve = None
    if config.weight_curve is not None:
        given = config.weight_curve
        if given.unit != "batches":
            raise ConfigError(
                f"weight_curve.unit must be 'batches' in a mixture of batches, but is {given.unit!r}: samples and "
                "tokens are known to mtf.Blend(weight_curve=...)"
            )
        points = []
        for i, (step, point_weights) in enumerate(given.points):
            where = f"weight_curve.points[{i}]"
            if _integer(step, f"{where}: the step") < 0:
                raise ConfigError(f"{where}: the step must not be negative, got {step}")
            points.append((step, spread(point_weights, where)))
        every = _integer(given.every, "weight_curve.every")
        if every < 1:
            raise ConfigError(f"weight_curve.every must be at least 1, got {every}")
        curve = (points, given.interpolation.name, every)
    steps = config.steps_per_epoch
    return _core.MixtureConfig(
        strategy=parse_enum(SamplingStrategy, config.sampling_strategy, "sampling_strategy").name,
        order=parse_enum(WeightedOrder, config.weighted_order, "weighted_order").name,
        weights=[] if weights is None else spread(weights, "dataloader_weights"),
        pattern=[kept[entry] for entry in pattern],
        burst=_integer(config.burst_size, "burst_size"),
        policy=parse_enum(EpochLengthPolicy, config.epoch_length_policy, "epoch_length_policy").name,
        steps_per_epoch=None if steps is None else _integer(steps, "steps_per_epoch"),
        cycle=bool(config.cycle_short_loaders),
        continue_across_epochs=config.continue_across_epochs,
        curve=curve,
    )
