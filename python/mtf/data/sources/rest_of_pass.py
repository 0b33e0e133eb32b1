"""A pass that began under another batch size or number of samples, and is finished under those of now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mtf.errors import StateMismatch


@dataclass(frozen=True)
class PassCut:
    """How the samples of a pass are cut into global batches, of a source that opens at any sample.

    Attributes:
        num_samples: Samples of a pass, all ranks together.
        global_batch_size: Samples of a full batch, all ranks together.
        drop_last: Whether an incomplete last batch is left out.
        may_grow: Whether more samples leave those there were where they are in the order of a pass under way.
    """

    num_samples: int
    global_batch_size: int
    drop_last: bool = False
    may_grow: bool = True

    def num_batches(self, num_samples: int | None = None) -> int:
        """Batches of so many samples; None: of a pass."""
        full, rest = divmod(self.num_samples if num_samples is None else num_samples, self.global_batch_size)
        return full + (rest > 0 and not self.drop_last)

    def to_list(self) -> list[Any]:
        """Plain data, for a state."""
        return [self.num_samples, self.global_batch_size, self.drop_last, self.may_grow]


@dataclass(frozen=True)
class RestOfPass:
    """What is left of pass ``pass_``: of its first ``num_samples`` samples those from ``first_sample`` on.

    Attributes:
        pass_: The pass.
        num_samples: Samples that the pass had when it began; its order is that of so many.
        first_sample: The first one that isn't given yet, by its place in the order of the pass.
        first_batch: Number of the batch that begins with it, such that the last one has the number of any pass's last.
    """

    pass_: int
    num_samples: int
    first_sample: int
    first_batch: int

    def to_list(self) -> list[int]:
        """Plain data, for a state and for the core."""
        return [self.pass_, self.num_samples, self.first_sample, self.first_batch]

    def places(self, batch: int, global_batch_size: int) -> range:
        """Places in the order of the pass that a batch has."""
        begin = self.first_sample + (batch - self.first_batch) * global_batch_size
        return range(begin, min(begin + global_batch_size, self.num_samples))


def cut_again(
    name: str, place: tuple[int, int], before: PassCut, now: PassCut, rest: RestOfPass | None
) -> tuple[int | None, RestOfPass | None]:
    """What is left of the pass under way where its samples are cut otherwise from now on.

    Args:
        name: Of the source.
        place: (pass, batches given of it), as ``before`` counts them.
        before: How the samples were cut so far.
        now: How they are cut from now on.
        rest: Of the pass under way, if it had begun otherwise already.

    Returns:
        The number of batches left; None where the pass hasn't begun, so that it has all that ``now`` says. And the rest
        that the source has to be given, None where there is nothing to finish.

    Raises:
        StateMismatch: There are fewer samples than before, or the order of a pass depends on their number otherwise.
    """
    if now.num_samples < before.num_samples:
        raise StateMismatch(
            f"source {name!r} has {now.num_samples} samples here and {before.num_samples} in the state: a source may "
            "grow, but not lose samples; remove it, and add what is left of it under another name"
        )
    if now.num_samples > before.num_samples and not (before.may_grow and now.may_grow):
        raise StateMismatch(
            f"source {name!r} has {now.num_samples} samples here and {before.num_samples} in the state, and the order "
            "of its pass under way can't be made of the samples it had then: add the new ones as a source of their own"
        )
    pass_, batch = place
    if rest is not None and rest.pass_ != pass_:
        rest = None
    num_samples = before.num_samples if rest is None else rest.num_samples
    if rest is None:
        given = min(batch * before.global_batch_size, num_samples)
    else:
        given = min(rest.first_sample + (batch - rest.first_batch) * before.global_batch_size, num_samples)
    if batch == before.num_batches():
        return 0, None
    if given == 0:
        return None, None
    left = now.num_batches(num_samples - given)
    return left, RestOfPass(pass_, num_samples, given, now.num_batches() - left)


def cut_from(entry: Any) -> PassCut | None:
    """What ``PassCut.to_list`` gave."""
    return None if entry is None else PassCut(int(entry[0]), int(entry[1]), bool(entry[2]), bool(entry[3]))


def rest_from(entry: Any) -> RestOfPass | None:
    """What ``RestOfPass.to_list`` gave."""
    return None if entry is None else RestOfPass(*(int(number) for number in entry))


def with_batch_size(cut: PassCut, global_batch_size: int) -> PassCut:
    """The same samples in batches of another size."""
    return replace(cut, global_batch_size=global_batch_size)
