"""One batch of a mixture, where it comes from, and what goes wrong there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtf.errors import FetchTimeout, MtfError, SourceError, UsageError
from mtf.formatting import outline


def place_of(name: str, pass_: int, batch: int, epoch: int, step: int) -> str:
    """A place in the schedule, in words."""
    return f"loader {name!r}, pass {pass_}, batch {batch} (epoch {epoch}, step {step})"


def located(error: Exception, place: str) -> Exception:
    """``error`` with the place where a loader raised it in its message; what mtf refuses stays what it is."""
    if isinstance(error, MtfError) and not isinstance(error, SourceError):
        return error
    kind = FetchTimeout if isinstance(error, FetchTimeout) else SourceError
    text = str(error) if isinstance(error, MtfError) else f"{type(error).__name__}: {error}"
    # guard: place of an error
    return kind(f"{place}: {text}")


@dataclass(slots=True, repr=False)
class Batch:
    """One batch and where it comes from.

    Attributes:
        data: What the loader gave, on the device if there is one.
        source: Index of the source.
        name: Name of the source.
        step: Step within the epoch.
        pass_: The source's pass, counted over the whole training.
        batch: Number of the batch in its pass.
        batch_idx: Batches of this source drawn before it in this epoch.
        epoch: The epoch.
        weight: What this rank's loss counts: its share of the global batch times the number of ranks, so 1.0 where
            shares are equal, and 0.0 where it had no sample left and repeats one.
    """

    data: Any
    source: int
    name: str
    step: int
    pass_: int
    batch: int
    batch_idx: int
    epoch: int
    weight: float = 1.0

    @property
    def place(self) -> str:
        """Where it is in the schedule, in words."""
        return place_of(self.name, self.pass_, self.batch, self.epoch, self.step)

    def __getitem__(self, key: object) -> Any:
        """Also called where a batch is unpacked, as in ``for inputs, targets in batches``.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"a Batch isn't what its loader gave: that is batch.data, here {outline(self.data)}; as in "
            "`inputs, targets = batch.data`"
        )

    def __getattr__(self, name: str) -> Any:
        """Only called for what isn't there.

        Raises:
            AttributeError: with where to look.
        """
        where = "" if name.startswith("_") or not hasattr(self.data, name) else f"; batch.data has: batch.data.{name}"
        raise AttributeError(f"a Batch has no attribute {name!r}{where}")

    def __repr__(self) -> str:
        """Where it comes from, and the structure of its data."""
        place = f"epoch={self.epoch}, step={self.step}, pass_={self.pass_}, batch={self.batch}"
        weight = "" if self.weight == 1.0 else f", weight={self.weight:.4g}"
        return f"Batch({self.name!r}, {place}, data={outline(self.data)}{weight})"
