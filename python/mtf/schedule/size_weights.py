"""Weights of loaders from the sizes of their data."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from mtf.config.keywords import checked_keywords
from mtf.errors import ConfigError


@checked_keywords(words={"lengths": "sizes", "alpha": "temperature, which is 1 / alpha"})
def size_weights(sizes: Mapping[str, Any], temperature: float = 1.0, maximum: float | None = None) -> dict[str, float]:
    """Weights for ``MultiDataLoaderConfig(dataloader_weights=...)``: ``min(size, maximum) ** (1 / temperature)``.

    Temperature 1 is proportional to the sizes, larger ones bring the shares closer to each other. The mixing rates of
    T5 (Raffel et al. 2020, section 3.5.2), where ``maximum`` is called the artificial data set size limit.

    Args:
        sizes: loader -> number of its samples (or tokens), or something with that length, such as a dataset.
        temperature: above 0.
        maximum: sizes above it count as it. None: no limit.

    Returns:
        Loader -> weight; together they are 1.

    Raises:
        ConfigError: a size that is no positive number, or a setting out of its range.
    """
    if not temperature > 0.0:
        raise ConfigError(f"size_weights: temperature must be above 0, it is {temperature!r}")
    if maximum is not None and not maximum > 0.0:
        raise ConfigError(f"size_weights: maximum must be above 0, it is {maximum!r}")
    if not sizes:
        raise ConfigError("size_weights: sizes must name one loader at least, it is empty")
    counted: dict[str, float] = {}
    for name, given in sizes.items():
        size = len(given) if isinstance(given, Sized) else given
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0.0 < size < float("inf"):
            raise ConfigError(f"size_weights: the size of {name!r} must be a positive number, it is {given!r}")
        counted[name] = float(size if maximum is None else min(size, maximum))
    largest = max(counted.values())  # powers of ratios neither overflow nor vanish together
    powers = {name: (size / largest) ** (1.0 / temperature) for name, size in counted.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}
