"""Windows: the steps whose gradients make one update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TypeVar

from mtf.errors import ConfigError
from mtf.trainer.names import check_names

T = TypeVar("T")


def windows(batches: Iterator[T], length: int) -> Iterator[list[T]]:
    """Groups ``batches`` into lists of ``length``; the last may be shorter, none is empty.

    A window's batches are taken before its first step runs. So its true length is known when the first loss is
    divided by it, also where a loader's end comes as a surprise, and an edit made inside a window finds the
    schedule at the window's end, which is where edits take effect.
    """
    if length == 1:
        for batch in batches:
            yield [batch]
        return
    while window := list(islice(batches, length)):
        yield window


class LossWeights:
    """What each loader's loss is multiplied by: ``weight / length of the window``."""

    def __init__(self, weights: Mapping[str, float] | None) -> None:
        self._weights = dict(weights or {})
        for name, weight in self._weights.items():
            if not 0.0 <= weight < float("inf"):
                raise ConfigError(f"loss_weights_per_loader[{name!r}] must be finite and not negative, it is {weight}")

    def check(self, names: list[str]) -> None:
        """Raises ``ConfigError`` for a name that no loader has."""
        check_names("loss_weights_per_loader", self._weights, names)

    def factor(self, name: str, length: int) -> float:
        """The factor of one step's loss in a window of ``length`` steps; 1.0 where nothing has to be done."""
        return self._weights.get(name, 1.0) / length
