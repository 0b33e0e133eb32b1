"""The closed sets of choices in mtf's configurations. Values are what YAML files and states contain."""

from __future__ import annotations

from enum import Enum


class SamplingStrategy(Enum):
    """How the next source is chosen."""

    ROUND_ROBIN = "round_robin"
    WEIGHTED = "weighted"
    ALTERNATING = "alternating"
    SEQUENTIAL = "sequential"


class WeightedOrder(Enum):
    """Order of a WEIGHTED mixture: independent draws, exact quotas in random order, or as even as can be."""

    RANDOM = "random"
    SHUFFLED = "shuffled"
    EVEN = "even"


class EpochLengthPolicy(Enum):
    """Where an epoch ends."""

    SUM_OF_LENGTHS = "sum_of_lengths"
    MAX_LENGTH = "max_length"
    MIN_LENGTH = "min_length"
    FIXED_NUM_STEPS = "fixed_num_steps"
    MAX_OF_LENGTHS = "max_length"  # noqa: PIE796 - an alias, as in the guide
    MIN_OF_LENGTHS = "min_length"  # noqa: PIE796


class Interpolation(Enum):
    """How a weight curve goes from one of its points to the next."""

    STEP = "step"
    LINEAR = "linear"


class ValAggregation(Enum):
    """How validation metrics of several loaders become one."""

    MICRO_AVG_WEIGHTED_BY_SAMPLES = "micro_avg_weighted_by_samples"
    MACRO_AVG_EQUAL_LOADERS = "macro_avg_equal_loaders"
    PRIMARY_METRIC_PER_LOADER = "primary_metric_per_loader"
    CUSTOM = "custom"


class ValidationFrequency(Enum):
    """When ``fit`` validates."""

    PER_EPOCH = "per_epoch"
    EVERY_N_STEPS = "every_n_steps"
    NEVER = "never"
