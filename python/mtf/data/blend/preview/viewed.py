"""What a blend will give, without reading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mtf.config.checks import whole_number
from mtf.data.blend.items import BlendCollate, Collate
from mtf.data.blend.preview.datasets import BlendBatchSampler, BlendDataset
from mtf.data.blend.preview.plan import BlendPlan, batches_of_tokens, make_plan
from mtf.data.blend.run import SampleTable
from mtf.data.blend.running import RunningBlend
from mtf.distributed.data_group import make_data_group
from mtf.errors import ConfigError


class ViewedBlend(RunningBlend):
    """The part of a Blend that shows samples and plans, and gives its samples to the loaders of other frameworks."""

    _collate_fn: Collate | Mapping[str, Collate] | None

    def samples(self, step: int) -> SampleTable:
        """The samples of batch ``step`` of the run, on all ranks together; reads no data.

        It means the run of the loader or trainer that the blend is in. Before that it means iteration alone, which has
        the seed given here, or 0.

        Args:
            step: Number of the batch, counted over all passes.

        Returns:
            Arrays that unpack as ``source, pass_, row``.
        """
        step = whole_number("step", step, 0)
        if self._run.is_over(step):
            raise ConfigError(f"there is no batch {step}: {self._run.why_over(step)}")
        return self._run.samples(self._sizes.start(step), self._sizes.size(step))

    def sources_of(self, pass_: int, batch: int) -> torch.Tensor:
        """Index of the source of each row of this rank's part of a batch, int64 ``[rows]``; with ``by_source`` in the
        order of the parts."""
        number = self._number(pass_, batch)
        share, num_greater = divmod(self._sizes.size(number), self._world_size)
        begin = self._sizes.start(number) + self._rank * share + min(self._rank, num_greater)
        sources = self._run.draws(begin, share + (self._rank < num_greater))[0]
        return torch.from_numpy((np.sort(sources) if self._by_source else sources).astype(np.int64))

    def plan(
        self,
        batches: int | None = None,
        *,
        tokens: int | None = None,
        start: int | None = None,
        batches_per_update: int = 1,
    ) -> BlendPlan:
        """What will be drawn: rows and passes of each source, and tokens where sources say how many a row has.

        Args:
            batches: How many batches to count; None: one pass of the blend.
            tokens: Instead, as many batches as draw so many tokens, padding left out.
            start: The first of them; None: the one after the batch taken last.
            batches_per_update: Batches of an accumulation window, for the number of updates.

        Raises:
            ConfigError: A number is wrong, both ``batches`` and ``tokens`` are given, or a source doesn't say how many
                tokens a row has.
        """
        run = self._run
        self._mark_taken(run)
        first = run.next_batch if start is None else whole_number("start", start, 0)
        if tokens is not None:
            if batches is not None:
                raise ConfigError(f"give either batches or tokens, but they are {batches} and {tokens}")
            num = batches_of_tokens(run, first, whole_number("tokens", tokens, 1))
        else:
            num = self._batches_per_pass if batches is None else whole_number("batches", batches, 1)
        return make_plan(run, first, num, whole_number("batches_per_update", batches_per_update, 1))

    def dataset(self) -> BlendDataset:
        """The samples of the run as a map-style dataset, for another framework's loader; see ``batch_sampler``."""
        run = self._run
        return BlendDataset(
            run, self._sizes.start(self._batches_per_pass), BlendCollate(self._collate_fn, self._by_source)
        )

    def batch_sampler(
        self,
        consumed_samples: int = 0,
        micro_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        *,
        process_group: Any = None,
    ) -> BlendBatchSampler:
        """Indices into ``dataset()`` for each batch of one rank, from any position on.

        Args:
            consumed_samples: Samples that all ranks together have trained on; must lie between two micro-batches.
            micro_batch_size: Samples of a batch on one rank; None: the rank's part of the global batch.
            rank: This process among ``world_size`` that train together.
            world_size: Number of processes.
            process_group: The processes that train together, instead of ``rank`` and ``world_size``: a ``ProcessGroup``
                or a ``DeviceMesh`` of one dimension, as ``mesh["dp"]``.

        Raises:
            ConfigError: Numbers that don't fit each other.
        """
        ranks = make_data_group(process_group, rank, world_size)
        return BlendBatchSampler(
            self._sizes,
            self._run.num_batches,
            self._batches_per_pass,
            consumed_samples,
            micro_batch_size,
            ranks.rank,
            ranks.world_size,
        )
