"""The configuration of a mixture of dataloaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mtf.config.base import Config
from mtf.config.checks import nearest, parse_enum
from mtf.enums import EpochLengthPolicy, Interpolation, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError

Unit = Literal["batches", "samples", "tokens"]
_UNITS: tuple[str, ...] = get_args(Unit)


@dataclass
class WeightCurve(Config):
    """Weights that change during training, as data, so that a resume needs none of the user's code.

    Attributes:
        points: ``(step, weights)`` pairs with increasing steps, which count ``unit`` since the beginning of training.
            Before the first point its weights hold, after the last point the last ones.
        interpolation: STEP keeps a point's weights until the next point, LINEAR goes there in a straight line.
        every: with LINEAR, the number of batches for which the weights are held constant.
        unit: what the steps of points count: ``"batches"``, or in an ``mtf.Blend`` ``"samples"`` or ``"tokens"``.
            Tokens are those that rows hold on average, padding left out; a point takes effect at the first sample
            before which so many were drawn. With LINEAR and ``"tokens"`` the weights of each point should have one sum.
    """

    points: list[tuple[int, list[float]]]
    interpolation: Interpolation = Interpolation.STEP
    every: int = 100
    unit: Unit = "batches"

    def require_valid(self) -> None:
        """Accepts enums by name and points as any sequences."""
        self.interpolation = parse_enum(Interpolation, self.interpolation, "weight_curve.interpolation")
        if self.unit not in _UNITS:
            near = nearest(self.unit, _UNITS)
            raise ConfigError(f"weight_curve.unit must be one of {', '.join(_UNITS)}, but is {self.unit!r}{near}")
        points = []
        for i, point in enumerate(self.points):
            try:
                step, weights = point
                points.append((step, [float(w) for w in weights]))
            except (TypeError, ValueError):
                raise ConfigError(f"weight_curve.points[{i}] must be (step, weights), got {point!r}") from None
        self.points = points


@dataclass
class MultiDataLoaderConfig(Config):
    """How several dataloaders are mixed.

    Attributes:
        sampling_strategy: how the next source is chosen.
        dataloader_weights: WEIGHTED: one weight per source; relative, need not sum to 1. None: all equal. A dict of
            names and weights gives the names, too.
        alternating_pattern: ALTERNATING: indices of sources, repeated.
        burst_size: steps taken in a row from a source whenever it is chosen (without effect in SEQUENTIAL).
        dataloader_names: names of the sources, in order; empty: dl0, dl1 ... or the keys of a dict of loaders.
        epoch_length_policy: where an epoch ends.
        steps_per_epoch: FIXED_NUM_STEPS: batches in an epoch.
        cycle_short_loaders: True: a source that runs out starts its next pass. False: it leaves for the epoch.
        drop_last: leave out a source's incomplete last batch.
        weighted_order: WEIGHTED: RANDOM, SHUFFLED or EVEN.
        continue_across_epochs: True: sources go on where they stopped. False: every epoch opens them afresh.
            None: True for FIXED_NUM_STEPS, else False.
        weight_curve: WEIGHTED: weights that change during training; replaces `dataloader_weights`.
        seed: of the schedule and the sources, in [0, 2**64). None: the trainer's.
        prefetch_batches: most batches held by the prefetch engine, over all sources. None: chosen by it.
        prefetch_bytes: most bytes held by the prefetch engine. None: 16 MiB where all native sources are arrays, whose
            rows are best copied while they fit a cache; else no limit.
        prefetch_workers: threads that fetch native sources. None: chosen by the engine.
        shared_workers: worker processes that fetch for all map-style DataLoaders with ``num_workers > 0`` together.
            None: each has its own.
    """

    sampling_strategy: SamplingStrategy = SamplingStrategy.ROUND_ROBIN
    dataloader_weights: list[float] | None = None
    alternating_pattern: list[int] | None = None
    burst_size: int = 1
    dataloader_names: list[str] = field(default_factory=list)
    epoch_length_policy: EpochLengthPolicy = EpochLengthPolicy.SUM_OF_LENGTHS
    steps_per_epoch: int | None = None
    cycle_short_loaders: bool = True
    drop_last: bool = False
    weighted_order: WeightedOrder = WeightedOrder.RANDOM
    continue_across_epochs: bool | None = None
    weight_curve: WeightCurve | None = None
    seed: int | None = None
    prefetch_batches: int | None = None
    prefetch_bytes: int | None = None
    prefetch_workers: int | None = None
    shared_workers: int | None = None

    @classmethod
    def as_fields(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Also takes weights as a dict of names and their weights, which gives the names as well."""
        fields = super().as_fields(given)
        named = fields.get("dataloader_weights")
        if isinstance(named, Mapping):
            if not fields.get("dataloader_names"):
                fields["dataloader_names"] = list(named)
            fields["dataloader_weights"] = _in_order(named, fields["dataloader_names"], "dataloader_weights")
        return fields

    def require_valid(self) -> None:
        """Accepts enums by name, and weights as a dict of names and their weights."""
        if isinstance(self.dataloader_weights, Mapping):  # assigned
            self.dataloader_weights = _in_order(self.dataloader_weights, self.dataloader_names, "dataloader_weights")
        if isinstance(self.dataloader_names, str):
            raise ConfigError(f"dataloader_names must be a list of names, got {self.dataloader_names!r}")
        self.sampling_strategy = parse_enum(SamplingStrategy, self.sampling_strategy, "sampling_strategy")
        self.epoch_length_policy = parse_enum(EpochLengthPolicy, self.epoch_length_policy, "epoch_length_policy")
        self.weighted_order = parse_enum(WeightedOrder, self.weighted_order, "weighted_order")


def _in_order(named: Mapping[str, float], names: Sequence[str], where: str) -> list[float]:
    """The weights in ``named``, in the order of ``names``."""
    if isinstance(names, str) or set(named) != set(names):
        raise ConfigError(f"the keys of {where}, {list(named)}, must be exactly dataloader_names, {list(names)}")
    return [named[name] for name in names]


def require_mixture(config: object) -> None:
    """Raises ``ConfigError`` for what is no configuration of a mixture, such as that of a whole trainer."""
    if not isinstance(config, MultiDataLoaderConfig):
        way = ""
        if isinstance(config, Mapping):
            way = ': for weights it is MultiDataLoaderConfig(sampling_strategy="WEIGHTED", dataloader_weights={...})'
        elif hasattr(config, "__iter__"):
            way = ": several loaders are one dict or list, the first argument"
        raise ConfigError(f"config must be a MultiDataLoaderConfig, as TrainerConfig.multi is, but is {config!r}{way}")
