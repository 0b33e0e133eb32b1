"""The order of a map-style loader's indices in a pass: a function of the pass and its key, never of history."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler, SubsetRandomSampler
from torch.utils.data.distributed import DistributedSampler

from mtf._core import Permutation, fold_in
from mtf.data.protocols import length_of
from mtf.data.sampling.sampler_replay import ReplayedDraws, SamplerReplay
from mtf.data.sources.rest_of_pass import PassCut, RestOfPass
from mtf.errors import ConfigError

_MAX_CHUNK = 64  # batches of indices drawn at once: bounds memory, and spreads the cost of swapping generators (100 us)


class IndexOrder(ABC):
    """What to read for each batch of a pass: a list of indices, or one index where the loader doesn't batch."""

    @abstractmethod
    def num_batches(self) -> int | None:
        """Batches in a pass, None when the sampler has no length."""

    @abstractmethod
    def open(self, pass_: int, key: int, batch: int) -> Iterator[Any]:
        """The indices of batch ``batch`` and those after it. Reads no data.

        Args:
            pass_: The pass.
            key: Key of the source's random numbers; that of the pass is ``fold_in(key, pass_)``.
            batch: The first batch.
        """

    @property
    def replay(self) -> SamplerReplay | None:
        """The user's sampler where its draws are made again; None where the order is computed."""
        return None

    def drop_last(self) -> IndexOrder:
        """The order without an incomplete last batch; the same order where the user's sampler makes the batches."""
        return self

    @abstractmethod
    def shard(self, rank: int, world_size: int) -> IndexOrder:
        """The part of every global batch that rank ``rank`` reads."""

    def weight(self, batch: int, pass_: int | None = None) -> float:
        """This rank's share of a global batch, times the number of ranks: 1.0 where all have equally many samples,
        0.0 where it has none left and repeats one of another rank."""
        return 1.0

    def global_batch_size(self, world_size: int) -> int | None:
        """Samples that a full batch has on all ranks together; None where the user's sampler decides."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """What decides which samples come when, in words."""

    replays_indices: bool = False
    """Whether a position is reached by drawing the indices before it, O(position), instead of computing it."""


class FlatOrder(IndexOrder):
    """Samples in one order, cut into batches. ``world_size`` ranks share a global batch in contiguous parts.

    Args:
        samples: Gives the order of a pass.
        batch_size: Samples per batch and rank; None gives single indices.
        drop_last: Leave out the incomplete last batch.
    """

    def __init__(
        self, samples: SampleOrder, batch_size: int | None, drop_last: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.incomplete = not drop_last
        self.rank, self.world_size = rank, world_size
        self.replays_indices = samples.replays_indices
        self._rest: RestOfPass | None = None

    @property
    def replay(self) -> SamplerReplay | None:
        return self.samples.replay

    def num_batches(self) -> int | None:
        num = self.samples.num_samples()
        if num is None:
            return None
        size = (self.batch_size or 1) * self.world_size
        return -(-num // size) if self.incomplete else num // size

    def drop_last(self) -> IndexOrder:
        return (
            self
            if self.batch_size is None
            else FlatOrder(self.samples, self.batch_size, True, self.rank, self.world_size)
        )

    def shard(self, rank: int, world_size: int) -> IndexOrder:
        if self.samples.divides(rank, world_size):
            return self
        return FlatOrder(self.samples, self.batch_size, not self.incomplete, rank, world_size)

    def pass_cut(self) -> PassCut | None:
        """How the samples are cut into global batches; None where a place costs a replay."""
        num = self.samples.num_samples()
        if self.replays_indices or num is None or self.samples.divides(self.rank, self.world_size):
            return None
        return PassCut(num, (self.batch_size or 1) * self.world_size, not self.incomplete, self.samples.may_grow)

    def finish_pass(self, rest: RestOfPass) -> FlatOrder:
        """The order with the rest of a pass that began otherwise."""
        other = copy.copy(self)
        other._rest = rest
        return other

    def weight(self, batch: int, pass_: int | None = None) -> float:
        num, size = self.samples.num_samples(), (self.batch_size or 1) * self.world_size
        if self._rest is not None and self._rest.pass_ == pass_:
            num_here = len(self._rest.places(batch, size))
            share, num_greater = divmod(num_here, self.world_size)
            return (share + (self.rank < num_greater)) * self.world_size / num_here
        if self.world_size == 1 or num is None or num >= (batch + 1) * size:
            return 1.0
        share, num_greater = divmod(num - batch * size, self.world_size)
        return (share + (self.rank < num_greater)) * self.world_size / (num - batch * size)

    def global_batch_size(self, world_size: int) -> int | None:
        return (self.batch_size or 1) * world_size

    def describe(self) -> str:
        return self.samples.describe()

    def _part(self, whole: list[Any]) -> list[Any]:
        """This rank's part of a global batch: contiguous, sizes differ by one at most (as in sampling/shard.hpp)."""
        share, num_greater = divmod(len(whole), self.world_size)
        begin = self.rank * share + min(self.rank, num_greater)
        return whole[begin : begin + share + (self.rank < num_greater)]

    def open(self, pass_: int, key: int, batch: int) -> Iterator[Any]:
        per_step = (self.batch_size or 1) * self.world_size
        num_batches = self.num_batches()
        block = max(1, 4096 // per_step) * per_step
        if self._rest is not None and self._rest.pass_ == pass_:
            first = self._rest.places(batch, per_step).start
            take = self.samples.first(self._rest.num_samples).open(pass_, key, first)
        else:
            take = self.samples.open(pass_, key, batch * per_step)
        return self._batches(take, batch, num_batches, block)

    def _batches(
        self, take: Callable[[int], list[Any]], batch: int, num_batches: int | None, block: int
    ) -> Iterator[Any]:
        per_step = (self.batch_size or 1) * self.world_size
        while num_batches is None or batch < num_batches:
            samples = take(min(block, per_step * _MAX_CHUNK))
            is_last, start = len(samples) < min(block, per_step * _MAX_CHUNK), 0
            while start < len(samples):
                whole = samples[start : start + per_step]
                start += per_step
                if len(whole) < per_step and not self.incomplete:
                    return
                if batch + 1 == num_batches and self.replay is not None:
                    samples += take(per_step) if start == len(samples) else []
                    if len(samples) - start >= (1 if self.incomplete else per_step):
                        self.replay.warn_of_more(num_batches)
                # A rank without a sample of its own repeats the first one; its batch has weight zero.
                mine = whole if self.world_size == 1 else (self._part(whole) or whole[:1])
                yield mine if self.batch_size is not None else mine[0]
                batch += 1
            if is_last:
                return


class SamplerBatches(IndexOrder):
    """Batches as the user's batch sampler makes them, drawn again for each pass from its key.

    On several ranks a global batch is ``world_size`` consecutive batches, one for each rank; an incomplete last group
    is left out, since a batch of nothing has no shape.
    """

    replays_indices = True

    def __init__(self, sampler: Any, rank: int = 0, world_size: int = 1) -> None:
        self.sampler = sampler
        self._replay = SamplerReplay(sampler)
        self.rank, self.world_size = rank, world_size

    @property
    def replay(self) -> SamplerReplay | None:
        return self._replay

    def num_batches(self) -> int | None:
        num = length_of(self.sampler)
        return None if num is None else num // self.world_size

    def shard(self, rank: int, world_size: int) -> IndexOrder:
        if _divides(self.sampler, rank, world_size):
            return self
        return SamplerBatches(self.sampler, rank, world_size)

    def describe(self) -> str:
        return f"by {type(self.sampler).__name__}"

    def open(self, pass_: int, key: int, batch: int) -> Iterator[Any]:
        draws = self._replay.open(pass_, key)
        draws.skip(batch * self.world_size)
        return self._groups(draws)

    def _groups(self, draws: ReplayedDraws) -> Iterator[Any]:
        # One at first, so that a batch is there at once; then as many as make up for swapping generators.
        number, size = 1, self.world_size
        batch, num_batches = draws.num_draws // size, self.num_batches()
        while True:
            groups = draws.take(number * size)
            is_last, start = len(groups) < number * size, 0
            while start + size <= len(groups):
                batch += 1
                if batch == num_batches:
                    groups += draws.take(size) if start + size == len(groups) else []
                    if start + 2 * size <= len(groups):
                        self._replay.warn_of_more(batch)
                yield groups[start + self.rank]
                start += size
            if is_last:
                return
            number = min(2 * number, _MAX_CHUNK)


class EveryNth(IndexOrder):
    """Batches ``rank``, ``rank + world_size`` ... of another order: nothing is left out, and ranks may have unequal
    numbers of batches."""

    replays_indices = True

    def __init__(self, order: IndexOrder, rank: int, world_size: int) -> None:
        self.order = order
        self.rank, self.world_size = rank, world_size

    @property
    def replay(self) -> SamplerReplay | None:
        return self.order.replay

    def num_batches(self) -> int | None:
        num = self.order.num_batches()
        return None if num is None else len(range(self.rank, num, self.world_size))

    def shard(self, rank: int, world_size: int) -> IndexOrder:
        raise ConfigError("these batches are already divided among ranks")

    def describe(self) -> str:
        return self.order.describe()

    def open(self, pass_: int, key: int, batch: int) -> Iterator[Any]:
        return islice(self.order.open(pass_, key, batch * self.world_size), self.rank, None, self.world_size)


class SampleOrder(ABC):
    """The samples of a pass, one after the other."""

    replays_indices: bool = False
    replay: SamplerReplay | None = None
    may_grow: bool = False
    """Whether the order of the samples there were is known once there are more."""

    @abstractmethod
    def num_samples(self) -> int | None:
        """Samples in a pass, None when that isn't known."""

    @abstractmethod
    def open(self, pass_: int, key: int, start: int) -> Callable[[int], list[Any]]:
        """A function that gives the next ``n`` samples from ``start`` on; fewer at the pass's end."""

    @abstractmethod
    def describe(self) -> str:
        """What decides which sample comes when, in words."""

    def first(self, num_samples: int) -> SampleOrder:
        """The order as it was with so many samples."""
        return self

    def divides(self, rank: int, world_size: int) -> bool:
        """Whether the order is already the part of one rank."""
        return False


class SequentialOrder(SampleOrder):
    """0, 1, 2 ... up to the length that the dataset has when a pass is opened."""

    may_grow = True

    def __init__(self, sampler: SequentialSampler, num_samples: int | None = None) -> None:
        self._sampler = sampler
        self._num_samples = num_samples

    def num_samples(self) -> int:
        return len(self._sampler) if self._num_samples is None else self._num_samples

    def first(self, num_samples: int) -> SequentialOrder:
        return SequentialOrder(self._sampler, num_samples)

    def describe(self) -> str:
        return "in order"

    def open(self, pass_: int, key: int, start: int) -> Callable[[int], list[Any]]:
        samples = iter(range(start, self.num_samples()))
        return lambda n: list(islice(samples, n))


class PermutedOrder(SampleOrder):
    """A permutation of [0, n) computed at any index in O(1) memory, or of a given list of indices.

    Args:
        sampler: A RandomSampler without replacement, or a SubsetRandomSampler.
        indices: What is permuted; None for 0 ... n-1.
    """

    def __init__(self, sampler: Any, indices: Any | None, num_samples: int | None = None) -> None:
        self._sampler = sampler
        self._indices = indices
        self._num_samples = num_samples
        self.may_grow = indices is None

    def num_samples(self) -> int:
        return len(self._sampler) if self._num_samples is None else self._num_samples

    def first(self, num_samples: int) -> PermutedOrder:
        return PermutedOrder(self._sampler, self._indices, num_samples)

    def describe(self) -> str:
        generator = getattr(self._sampler, "generator", None)
        return "shuffled" if generator is None else f"shuffled by a generator of seed {generator.initial_seed()}"

    def open(self, pass_: int, key: int, start: int) -> Callable[[int], list[Any]]:
        num, indices = self.num_samples(), self._indices
        key = fold_in(key, pass_)
        generator = getattr(self._sampler, "generator", None)
        if generator is not None:
            key = fold_in(key, generator.initial_seed())
        permutation = Permutation(num, key)
        position = start

        def take(count: int) -> list[Any]:
            nonlocal position
            stop = min(position + count, num)
            if stop <= position:
                return []
            samples: list[Any] = permutation.fill(position, stop).tolist()
            position = stop
            return samples if indices is None else [indices[i] for i in samples]

        return take


class ReplayedOrder(SampleOrder):
    """Samples as any other sampler gives them, drawn again for each pass from its key. A position costs O(position)."""

    replays_indices = True

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.replay = self._replay = SamplerReplay(sampler)

    def num_samples(self) -> int | None:
        return length_of(self._sampler)

    def describe(self) -> str:
        return f"by {type(self._sampler).__name__}"

    def open(self, pass_: int, key: int, start: int) -> Callable[[int], list[Any]]:
        draws = self._replay.open(pass_, key)
        draws.skip(start)
        return draws.take

    def divides(self, rank: int, world_size: int) -> bool:
        return _divides(self._sampler, rank, world_size)


def index_order(batch_sampler: Any | None, sampler: Any, name: str, generator: Any = None) -> IndexOrder:
    """The order of a DataLoader.

    Args:
        batch_sampler: The loader's; None when it doesn't batch (``batch_size=None``).
        sampler: The loader's; unused when there is a batch sampler, since it may be a dummy.
        name: The source's, for messages.
        generator: The loader's. torchdata's random sampler makes one of a random seed where there is none.
    """
    batch_sampler, sampler = _as_torchs(batch_sampler, generator), _as_torchs(sampler, generator)
    if batch_sampler is None:
        return FlatOrder(_sample_order(sampler, name), None, False)
    if type(batch_sampler) is BatchSampler:
        samples = _sample_order(batch_sampler.sampler, name)
        return FlatOrder(samples, batch_sampler.batch_size, batch_sampler.drop_last)
    _refuse_one_shot(batch_sampler, name)
    return SamplerBatches(batch_sampler)


def _as_torchs(sampler: Any, generator: Any) -> Any:
    """torch's own sampler in place of the equivalent one that a StatefulDataLoader makes."""
    cls = type(sampler)
    if not cls.__module__.startswith("torchdata.stateful_dataloader."):
        return sampler
    if cls.__name__ == "BatchSampler":
        return BatchSampler(_as_torchs(sampler.sampler, generator), sampler.batch_size, sampler.drop_last)
    if cls.__name__ == "RandomSampler":
        given = sampler.generator if sampler.generator is generator else None
        return RandomSampler(sampler.data_source, sampler.replacement, sampler._num_samples, given)
    return sampler


def _sample_order(sampler: Any, name: str) -> SampleOrder:
    _refuse_one_shot(sampler, name)
    if type(sampler) is SequentialSampler:
        return SequentialOrder(sampler)
    if type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(sampler.data_source):
        return PermutedOrder(sampler, None)
    if type(sampler) is SubsetRandomSampler:
        return PermutedOrder(sampler, sampler.indices)
    return ReplayedOrder(sampler)


def _refuse_one_shot(sampler: Any, name: str) -> None:
    if isinstance(sampler, Iterator) and not isinstance(sampler, Sampler):
        raise ConfigError(
            f"loader {name!r}: its sampler is a one-shot iterator ({type(sampler).__name__}), which can be neither "
            "started again nor skipped; pass a list or a Sampler"
        )


def _divides(sampler: Any, rank: int, world_size: int) -> bool:
    """Whether the sampler (or the one inside it) is the user's own division among ranks.

    Raises:
        ConfigError: It divides among other ranks than there are.
    """
    inner = getattr(sampler, "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        return inner is not None and inner is not sampler and _divides(inner, rank, world_size)
    if (sampler.num_replicas, sampler.rank) != (world_size, rank):
        raise ConfigError(
            f"a DistributedSampler for rank {sampler.rank} of {sampler.num_replicas} is used on rank {rank} of "
            f"{world_size}; make it with these numbers, or leave it out: mtf divides a map-style DataLoader among ranks"
        )
    return True
