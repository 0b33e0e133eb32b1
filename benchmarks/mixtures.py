"""The mixtures that every scheduling benchmark uses: n sources with Zipf weights."""

from __future__ import annotations

from mtf import EpochLengthPolicy, MultiDataLoaderConfig, SamplingStrategy, Schedule, WeightedOrder

SIZES = (4, 64, 1024)


def zipf(n: int) -> list[float]:
    """Weights 1, 1/2, 1/3 ... over their sum."""
    weights = [1.0 / (rank + 1) for rank in range(n)]
    total = sum(weights)
    return [weight / total for weight in weights]


def weighted(n: int, order: WeightedOrder, num_steps: int) -> Schedule:
    """A weighted schedule over n sources of 1,000 batches each."""
    config = MultiDataLoaderConfig(
        sampling_strategy=SamplingStrategy.WEIGHTED,
        dataloader_weights=zipf(n),
        weighted_order=order,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=num_steps,
    )
    return Schedule(config, lengths=[1000] * n, seed=0)


def unweighted(n: int, strategy: SamplingStrategy, num_steps: int) -> Schedule:
    """A round-robin, alternating or sequential schedule over n sources of 1,000 batches each."""
    config = MultiDataLoaderConfig(
        sampling_strategy=strategy,
        alternating_pattern=[i % n for i in range(n + 1)] if strategy is SamplingStrategy.ALTERNATING else None,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=num_steps,
    )
    return Schedule(config, lengths=[1000] * n, seed=0)


def power(n: int) -> str:
    """10^k for a power of ten."""
    return f"10^{len(str(n)) - 1}"
