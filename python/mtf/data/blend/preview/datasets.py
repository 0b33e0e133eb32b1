"""A blend for the loaders of other frameworks: its samples as a dataset, and the positions of each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from mtf.config.checks import whole_number
from mtf.data.blend.items import BlendCollate, SampleDataset
from mtf.data.blend.run import BlendRun
from mtf.data.blend.sizes import BatchSizes
from mtf.errors import ConfigError


class BlendDataset(torch.utils.data.Dataset[Any]):
    """The samples of a run by their positions, for ``torch.utils.data.DataLoader`` and all that is built on it.

    Sample ``p`` is the one that the blend gives at position ``p``: sample ``p - start(k)`` of batch ``k``. Any position
    opens at once, also those of later passes, beyond ``len``. Worker processes see the edits made before they started.

    Attributes:
        collate_fn: Makes a batch of samples as the blend does, to be given to the DataLoader.
    """

    def __init__(self, run: BlendRun, num_samples: int, collate: BlendCollate) -> None:
        self._run = run
        self._num_samples = num_samples
        self._items = SampleDataset(run.rows)
        self._items.keys.update({name: run.source_key(name) for name in run.rows})
        self.collate_fn = collate

    def __len__(self) -> int:
        """Samples in one pass of the blend."""
        return self._num_samples

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Any]:
        """The samples at ``positions``, each with the name of its source before ``collate_fn`` takes it off."""
        indices = []
        begin = 0
        while begin < len(positions):
            end = begin + 1
            while end < len(positions) and positions[end] == positions[end - 1] + 1:
                end += 1
            if positions[begin] < 0:
                raise IndexError(f"positions of samples are at least 0, but one is {positions[begin]}")
            table = self._run.samples(positions[begin], end - begin)
            self._run.require_readable(positions[begin], table)
            if len(table) < end - begin:
                raise IndexError(f"there is no sample {positions[begin] + len(table)}: sources of the blend are spent")
            columns = (table.source.tolist(), table.pass_.tolist(), table.place.tolist(), table.row.tolist())
            indices += [(table.names[source], *where) for source, *where in zip(*columns, strict=True)]
            begin = end
        return self._items.__getitems__(indices)


class BlendBatchSampler(Sampler[list[int]]):
    """Positions of the samples of each batch of one rank: a batch sampler for ``Blend.dataset()``.

    Each ``iter`` gives the rest of a pass of the blend, and the next one the pass after it, so that it can be used for
    epochs. A resume is ``consumed_samples``: no index is drawn twice or skipped over.

    Attributes:
        consumed_samples: Samples of all ranks together before the next batch that is given.
    """

    def __init__(
        self,
        sizes: BatchSizes,
        num_batches: Callable[[int], int],
        batches_per_pass: int,
        consumed_samples: int,
        micro_batch_size: int | None,
        rank: int,
        world_size: int,
    ) -> None:
        if world_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(f"rank must be in [0, world_size={world_size}), but is {rank}")
        if sizes.smallest < world_size:
            raise ConfigError(
                f"global_batch_size must be at least the number of ranks, {world_size}, but is {sizes.smallest}"
            )
        self._step = None if micro_batch_size is None else micro_batch_size * world_size
        if self._step is not None:
            for _, size in sizes.stages:
                if micro_batch_size is None or micro_batch_size < 1 or size % self._step:
                    raise ConfigError(
                        f"micro_batch_size times world_size must divide the global batch of {size} samples, but is "
                        f"{micro_batch_size} x {world_size}"
                    )
        self._sizes, self._num_batches, self._batches_per_pass = sizes, num_batches, batches_per_pass
        self._rank, self._world_size = rank, world_size
        consumed_samples = whole_number("consumed_samples", consumed_samples, 0)
        batch = sizes.batch_of(consumed_samples)
        done = consumed_samples - sizes.start(batch)
        if done % (sizes.size(batch) if self._step is None else self._step):
            unit = "global batch" if self._step is None else "micro-batch of all ranks"
            raise ConfigError(
                f"consumed_samples must be where a {unit} begins, but {consumed_samples} is {done} samples into batch "
                f"{batch}, which begins at {sizes.start(batch)}"
            )
        self.consumed_samples = consumed_samples

    def __len__(self) -> int:
        """Batches that the next ``iter`` gives."""
        if self._step is not None:
            return (self._end() - self.consumed_samples) // self._step
        return self._sizes.batch_of(self._end()) - self._sizes.batch_of(self.consumed_samples)

    def __iter__(self) -> Iterator[list[int]]:
        for begin, size in self._batches():
            share, num_greater = divmod(size, self._world_size)
            first = begin + self._rank * share + min(self._rank, num_greater)
            self.consumed_samples = begin + size
            yield list(range(first, first + share + (self._rank < num_greater)))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of pass ``epoch``, unless the position lies within it already."""
        if self._sizes.batch_of(self.consumed_samples) // self._batches_per_pass != epoch:
            self.consumed_samples = self._sizes.start(epoch * self._batches_per_pass)

    def state_dict(self) -> dict[str, int]:
        """The position, after the batch given last."""
        return {"consumed_samples": self.consumed_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at a position of ``state_dict``."""
        self.consumed_samples = state["consumed_samples"]

    def _end(self) -> int:
        batch = self._sizes.batch_of(self.consumed_samples)
        end = self._num_batches((batch // self._batches_per_pass + 1) * self._batches_per_pass)
        return max(self.consumed_samples, self._sizes.start(end))

    def _batches(self) -> Iterator[tuple[int, int]]:
        """(position, samples) of all ranks' batches up to the pass's end."""
        position, end = self.consumed_samples, self._end()
        while position < end:
            size = self._sizes.size(self._sizes.batch_of(position)) if self._step is None else self._step
            yield position, size
            position += size
