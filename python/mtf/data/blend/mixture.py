"""What a blend is made from: the mixture of its samples, and rows of one structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtf.config.checks import nearest, parse_enum
from mtf.config.mixture import MultiDataLoaderConfig, WeightCurve
from mtf.data.blend.curve_points import in_samples
from mtf.data.blend.rows import NativeRows, Rows
from mtf.data.blend.sizes import BatchSizes
from mtf.enums import EpochLengthPolicy, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError

_NUM_STEPS = 1 << 60  # of the schedule's only epoch: a blend has no end of its own


def sample_mixture(
    rows: Mapping[str, Rows],
    weights: Any,
    curve: WeightCurve | None,
    order: WeightedOrder | str,
    sizes: BatchSizes,
) -> MultiDataLoaderConfig:
    """The mixture of samples: the schedule of a blend has one sample per step."""
    names = list(rows)
    if weights is not None and curve is not None:
        raise ConfigError("give either weights or weight_curve, not both")
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise ConfigError(f"weights: there is no source {name!r}{nearest(name, names)} (sources: {names})")
        missing = [name for name in names if name not in weights]
        if missing:
            raise ConfigError(f"weights: nothing is given for {', '.join(map(repr, missing))}")
        weights = [weights[name] for name in names]
    if weights is not None and len(weights) != len(names):
        raise ConfigError(f"weights must have one entry per source ({len(names)}: {names}), but has {len(weights)}")
    if curve is not None:
        curve = in_samples(curve, rows, sizes)
    return MultiDataLoaderConfig(
        sampling_strategy=SamplingStrategy.WEIGHTED,
        dataloader_weights=None if curve is not None else [1.0] * len(names) if weights is None else list(weights),
        dataloader_names=names,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=_NUM_STEPS,
        weighted_order=parse_enum(WeightedOrder, order, "order"),
        weight_curve=curve,
    )


def require_one_structure(rows: Mapping[str, Rows]) -> None:
    """Raises unless the rows that the core gathers have one structure."""
    native = {name: source for name, source in rows.items() if isinstance(source, NativeRows)}
    first: str | None = None
    for name, source in native.items():
        if first is None:
            first = name
        elif source.structure() != native[first].structure():
            raise ConfigError(
                f"source {name!r} has rows of {_described(source)}, but {first!r} of {_described(native[first])}, so "
                "they can't be stacked: give them the same keys, dtypes and shapes, or by_source=True, which gives "
                "{name: part}"
            )


def _described(rows: NativeRows) -> str:
    fields = [f"{dtype}{list(shape)}" for _, dtype, shape, _ in rows.core.fields]
    return str(rows.built([*fields, *("int32[lengths]",) * rows.has_cu_seqlens]))
