"""Batches whose samples come from several sources, in the shares of their weights."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtf import _core
from mtf.config.mixture import WeightCurve
from mtf.data.blend.items import BlendCollate, BlendOrder, Collate, ItemStream, SampleDataset, make_loader
from mtf.data.blend.mixture import require_one_structure, sample_mixture
from mtf.data.blend.nested import BlendRows
from mtf.data.blend.rows import NativeRows, Rows, as_rows, columns_of, datasets_of
from mtf.data.blend.run import BlendRun, SampleTable, require_names
from mtf.data.blend.sizes import BatchSizes
from mtf.data.blend.traced import TracedBlend
from mtf.data.blend.weights_count import RowWeights, WeightsCount
from mtf.data.prefetch.engine import NativeStream
from mtf.data.sources.base import Snapshot, Stream
from mtf.data.sources.threaded import ThreadLoader
from mtf.data.sources.torch_map import TorchSource
from mtf.distributed.data_group import make_data_group
from mtf.enums import WeightedOrder
from mtf.errors import ConfigError, StateMismatch
from mtf.schedule.caps import PassCaps, WhenSpent, check_max_passes, parse_caps
from mtf.schedule.schedule import Schedule

if TYPE_CHECKING:
    from mtf.data.blend.plan import BlendPlan
    from mtf.data.blend.views import BlendBatchSampler, BlendDataset

_log = logging.getLogger("mtf.data")

Transform = Callable[[Any, np.random.Generator], Any]


class Blend(TracedBlend):
    """Batches whose samples come from several sources, in the shares of their weights.

    The samples of a run are numbered 0, 1, 2 ...; batch ``k`` has the next ``global_batch_size`` of them. Which source
    gives a sample, and which of its rows, is a function of the sample's number, so every batch opens at once at any
    step, and the global batch is the same on any number of ranks. A source's rows go through its passes without a gap,
    each pass in an order of its own: no batch is short, nothing is dropped, and a source of 200 rows takes part in
    batches of 1,000 samples with any weight.

    A blend is a source like any other: for ``Trainer.fit`` and ``MultiLoader``, alone or in a mixture, or to be
    iterated as it is, one pass per ``iter``. Arrays, windows and token rows are gathered by native threads without the
    GIL; datasets are read by the loader machinery, with ``collate_fn``, worker processes or threads.

    Args:
        sources: Name -> data: arrays as ``ArrayLoader`` takes them, ``mtf.Windows``, token rows, a map-style or Hugging
            Face dataset, a shuffling DataLoader of one, a ``mtf.RowSource``, anything whose method ``single_rows()``
            gives one, or another blend, whose samples are then the rows, as it is now.
        weights: By name or in the order of ``sources``: relative shares of the samples. None: all equal.
        global_batch_size: Samples of a batch on all ranks together; a ramp is given as
            ``[(first batch, samples), ...]``, from batch 0 on.
        order: SHUFFLED: a random order with exact shares in every 64 samples. EVEN: as even as can be, within two
            times 1.68 samples of the share in any interval. RANDOM: independent draws.
        weight_curve: Weights that change by themselves; its steps count batches, or samples or tokens as its ``unit``
            says. Replaces ``weights``.
        weights_count: What shares are of. ``"rows"``: of the samples. ``"tokens"``: of the tokens in them, padding left
            out; ``"supervised_tokens"``: of the labels that a loss counts: a source whose rows hold half as many gets
            twice the rows. Token rows know both; other data have an attribute ``tokens_per_row`` or
            ``supervised_tokens_per_row``. Edits of weights count the same.
        max_passes: Name -> how often each row of a source is drawn at most. It is spent after that many passes.
        when_spent: What happens then. ``"others"``: the other sources take its share, in proportion to their weights;
            where none is left the run ends. ``"stop"``: the run ends with the last whole batch before a row of a spent
            source is wanted. A dict, as ``{"math": "code"}``: that source takes its share, also where it had none.
        batches_per_pass: Batches that make up one pass of the blend, for epochs. None: as many as have the samples of
            all sources' rows together; fewer where the run ends before.
        by_source: Batches are ``{name: part}``, for sources of unlike structure; a source without a sample in a batch
            isn't in it. Else the sources have one structure, and their samples are stacked.
        transform: ``transform(batch, rng)`` makes the batch that is handed out, on the thread that takes it; ``rng`` is
            a numpy generator that belongs to this batch. For rows that the core gathers.
        collate_fn: Makes a batch of a list of samples, for datasets; with ``by_source`` it makes a part, and may be one
            per name.
        num_threads: Threads that fetch. For datasets: None reads them in the training process or in ``num_workers``
            processes.
        seed: Of the order. None: the seed of the mixture that the blend is in, 0 where it is iterated alone.
        source_factories: Name -> function that gives the data of a source that was added during training, for a resume.
        options: For datasets, as a DataLoader has them: ``num_workers``, ``pin_memory``, ``timeout``,
            ``worker_init_fn``, ``multiprocessing_context``, ``prefetch_factor``, ``persistent_workers``.

    Raises:
        ConfigError: A name, number, source or option is wrong; no data has been read.
    """

    ahead_bytes = 16 << 20
    has_run_state = True
    names_rows = True

    def __init__(
        self,
        sources: Mapping[str, Any],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        *,
        global_batch_size: int | Sequence[tuple[int, int]],
        order: WeightedOrder | str = WeightedOrder.SHUFFLED,
        weight_curve: WeightCurve | None = None,
        weights_count: WeightsCount = "rows",
        max_passes: Mapping[str, int] | None = None,
        when_spent: WhenSpent = "others",
        batches_per_pass: int | None = None,
        by_source: bool = False,
        transform: Transform | None = None,
        collate_fn: Collate | Mapping[str, Collate] | None = None,
        num_threads: int | None = None,
        seed: int | None = None,
        source_factories: Mapping[str, Callable[[], Any]] | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        if not isinstance(sources, Mapping):
            raise ConfigError(f"sources must be a dict of name and data, but is a {type(sources).__name__}")
        require_names(list(sources))
        self._own_sizes = BatchSizes(global_batch_size)
        self._own_batches_per_pass = 1
        self._curve_counts_batches = weight_curve is not None and weight_curve.unit == "batches"
        sources, collate_fn = datasets_of(sources, collate_fn, by_source, options)
        self._given_threads = num_threads
        self._rows = {name: as_rows(data, name) for name, data in sources.items()}
        self._by_source = by_source
        self._transform, self._collate_fn = transform, collate_fn
        self._factories = dict(source_factories or {})
        self._options = options
        self._gathers = collate_fn is None and all(isinstance(rows, NativeRows) for rows in self._rows.values())
        self._check_options(num_threads)
        if not by_source:
            require_one_structure(self._rows)
        self._row_weights = RowWeights(weights_count, self._rows)
        if weight_curve is None:
            weights = self._row_weights.given(list(sources), weights)
        weights = self._row_weights.of(list(sources), weights)
        curve = self._row_weights.of_curve(list(sources), weight_curve)
        self._caps = parse_caps(max_passes, when_spent, list(sources))
        if self._caps is not None and weight_curve is not None and weight_curve.unit == "tokens":
            raise ConfigError(
                "weight_curve.unit='tokens' can't be used with max_passes: how many tokens a sample holds changes when "
                "a source is spent; count samples or batches"
            )
        self._config = sample_mixture(self._rows, weights, curve, order, self._own_sizes)
        self._seed = seed
        self._key: int | None = (
            None if seed is None else _core.fold_in(_core.fold_in(_checked_seed(seed), "source"), "")
        )
        self._rank, self._world_size = 0, 1
        self._next = 0
        # The run that edits and questions mean; the parts of ranks share it. It refuses weights that can't be.
        self._current = [self._new_run(self._key_alone())]
        total = sum(length for length in self._run.schedule.lengths if length is not None)
        self._own_batches_per_pass = (
            max(1, self._run.num_batches(self._sizes.num_batches_of(total)))
            if batches_per_pass is None
            else _positive("batches_per_pass", batches_per_pass)
        )
        self._run.batches_per_pass = self._own_batches_per_pass
        self._inner: TorchSource | None = None
        if not self._gathers:
            self._prepare_items(num_threads)

    def _check_options(self, num_threads: int | None) -> None:
        if num_threads is not None and num_threads < 0:
            raise ConfigError(f"num_threads must be at least 0, but is {num_threads}")
        self.num_threads = 1 if num_threads is None else num_threads
        if isinstance(self._collate_fn, Mapping) and not self._by_source:
            raise ConfigError("collate_fn may be one per source only with by_source=True")
        if self._gathers and self._options:
            raise ConfigError(
                f"{next(iter(self._options))} is for datasets: the rows of arrays, windows and tokens are gathered by "
                "native threads (num_threads)"
            )
        if not self._gathers and self._transform is not None:
            raise ConfigError("transform is for rows that the core gathers: give collate_fn for datasets")
        if num_threads and self._options.get("num_workers"):
            raise ConfigError("give either num_threads or num_workers, not both")

    def _prepare_items(self, num_threads: int | None) -> None:
        dataset = SampleDataset(self._rows)
        loader = make_loader(dataset, BlendCollate(self._collate_fn, self._by_source), self._options)
        order = BlendOrder(lambda: self._run, self.order())
        if num_threads:
            threaded = ThreadLoader(dataset, batch_sampler=[[]], collate_fn=loader.collate_fn, num_threads=num_threads)
            self._inner = threaded._with_order(order)
            self.max_in_flight = 2 * num_threads
        else:
            self._inner = TorchSource(loader, self.name, order=order)
            self.max_in_flight, self.opens_ahead = self._inner.max_in_flight, False

    def single_rows(self) -> BlendRows:
        """The samples as rows of another blend, as the mixture is now; later edits of this one don't change them.

        Raises:
            ConfigError: What this blend does to whole batches, or to its end, which the other would have to do.
        """
        given = {
            "by_source": self._by_source,
            "transform": self._transform is not None,
            "collate_fn": self._collate_fn is not None,
            "num_threads": self._given_threads is not None,
            "max_passes": self._run.caps is not None,
            **dict.fromkeys(self._options, True),
        }
        of_batches = [name for name, is_given in given.items() if is_given]
        if of_batches or self._world_size > 1:
            what = ", ".join(of_batches) or f"the part of rank {self._rank}"
            raise ConfigError(
                f"a blend inside a blend gives single rows, so {what} of the inner one can't take effect: give it to "
                "the outer blend"
            )
        run = self._run
        rows = {name: run.rows[name] for name in self.names}
        num_rows = self._sizes.start(self._batches_per_pass)
        return BlendRows(run.schedule.config, rows, self._sizes, num_rows, self._key)

    # A source of batches ---------------------------------------------------------------------------------------------

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of all sources by index, those included that were removed."""
        return tuple(self._run.schedule.names)

    def num_batches(self) -> int:
        return self._batches_per_pass

    def __len__(self) -> int:
        return self._batches_per_pass

    @property
    def has_end(self) -> bool:  # type: ignore[override]
        return self._run.caps is not None

    def is_over(self, pass_: int, batch: int) -> bool:
        return self._run.is_over(self._number(pass_, batch))

    def why_over(self, pass_: int, batch: int) -> str:
        return self._run.why_over(self._number(pass_, batch))

    @property
    def is_native(self) -> bool:
        return self._gathers

    def native(self, key: int) -> _core.NativeSource | None:
        if not self._gathers:
            return None
        run, part = self._run_of(key), (self._rank, self._world_size)
        if part not in run.natives:
            run.natives[part] = _core.BlendSource(
                run.schedule,
                self._sizes.stages,
                *self._native_parts(run),
                self._native_build(run),
                batches_per_pass=self._batches_per_pass,
                rank=self._rank,
                world_size=self._world_size,
                by_source=self._by_source,
            )
            run.natives[part].num_taken = run.next_batch
        return run.natives[part]

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        if self._gathers:
            native = self.native(key)
            assert native is not None
            return NativeStream(native, pass_, batch, self._batches_per_pass, self.num_threads)
        inner = self._inner
        assert inner is not None
        run = self._run_of(key)
        dataset: Any = inner.loader.dataset

        def open_at(first: int) -> Stream:
            dataset.rows.update(run.rows)
            dataset.keys.update({name: run.source_key(name) for name in run.rows})
            return inner.open(pass_, first, key)

        return ItemStream(run, pass_, batch, self._batches_per_pass, open_at)

    def shard(self, rank: int, world_size: int) -> Blend:
        if self._world_size > 1:
            raise ConfigError(
                f"source {self.name!r} is already the part of rank {self._rank} of {self._world_size}; shard the whole "
                "blend"
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must be in [0, world_size={world_size}), but is {rank}")
        if self._sizes.smallest < world_size:
            raise ConfigError(
                f"source {self.name!r}: global_batch_size must be at least the number of ranks, {world_size}, but is "
                f"{self._sizes.smallest}"
            )
        other = copy.copy(self)
        other._rank, other._world_size = rank, world_size
        if self._inner is not None:
            other._inner = self._inner.shard(rank, world_size)  # type: ignore[assignment]
        return other

    def weight(self, pass_: int, batch: int) -> float:
        size = self._sizes.size(self._number(pass_, batch))
        share, num_greater = divmod(size, self._world_size)
        return (share + (self._rank < num_greater)) * self._world_size / size

    def mean_batch_size(self, world_size: int) -> float:
        return float(self.global_batch_size)

    def order(self) -> str:
        return f"blended {self._config.weighted_order.name}"

    def notes(self) -> list[str]:
        return [] if self._inner is None else self._inner.notes()

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()

    def __repr__(self) -> str:
        """Sources, rows and sizes."""
        name = f"{self.name!r}, " if self.name else ""
        schedule = self._run.schedule
        rows = ", ".join(f"{source}: {length}" for source, length, present in schedule.source_table if present)
        return f"Blend({name}rows {{{rows}}}, {self._config.weighted_order.name}, global_batch_size={self._sizes!r})"

    # What is drawn ---------------------------------------------------------------------------------------------------

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch on all ranks together; of the last stage of a ramp."""
        return self._sizes.stages[-1][1]

    def samples(self, step: int) -> SampleTable:
        """The samples of batch ``step`` of the run, on all ranks together; reads no data.

        It means the run of the loader or trainer that the blend is in. Before that it means iteration alone, which has
        the seed given here, or 0.

        Args:
            step: Number of the batch, counted over all passes.

        Returns:
            Arrays that unpack as ``source, pass_, row``.
        """
        if step < 0:
            raise ConfigError(f"step must be at least 0, but is {step}")
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
        from mtf.data.blend.plan import batches_of_tokens, make_plan

        run = self._run
        self._mark_taken(run)
        first = run.next_batch if start is None else start
        if tokens is not None:
            if batches is not None:
                raise ConfigError(f"give either batches or tokens, but they are {batches} and {tokens}")
            num = batches_of_tokens(run, first, _positive("tokens", tokens))
        else:
            num = self._batches_per_pass if batches is None else _positive("batches", batches)
        return make_plan(run, first, num, _positive("batches_per_update", batches_per_update))

    def dataset(self) -> BlendDataset:
        """The samples of the run as a map-style dataset, for another framework's loader; see ``batch_sampler``."""
        from mtf.data.blend.views import BlendDataset

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
        from mtf.data.blend.views import BlendBatchSampler

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

    @property
    def weight_curve(self) -> WeightCurve | None:
        """The weight curve in force, its points in samples of the run; None where the weights are fixed."""
        return self._run.schedule.config.weight_curve

    @property
    def weights(self) -> dict[str, float]:
        """The shares in force for the next batch, of what ``weights_count`` says; they sum to 1."""
        run = self._run
        self._mark_taken(run)
        schedule = run.schedule
        rows = schedule.mixture.weights or [1.0] * len(schedule.names)
        if schedule.mixture.curve is not None:
            at = self._sizes.start(run.next_batch)
            before, after = (schedule.expected_counts(position, 0) for position in (at, at + 1))
            rows = [b - a for a, b in zip(before, after, strict=True)]
        present = zip(schedule.names, rows, schedule.present, strict=True)
        counted = {name: share * self._row_weights.per_row(name) for name, share, here in present if here}
        total = math.fsum(counted.values())
        return {name: share / total for name, share in counted.items()}

    # Edits -----------------------------------------------------------------------------------------------------------

    def update_weights(self, weights: Mapping[str, float] | Sequence[float]) -> None:
        """New weights from the next batch on, by name or one per source in their order. Replaces a weight curve.

        On several ranks each has to make the same edits at the same step.

        Raises:
            ConfigError: Wrong number or names; negative, infinite, NaN or all-zero weights.
        """
        in_rows = self._row_weights.of(self.names, weights)
        self._edit(lambda schedule: schedule.update_weights(in_rows))

    def set_weight(self, name: str, weight: float) -> None:
        """A new weight of one source from the next batch on; the others keep theirs."""
        in_rows = self._row_weights.one(name, weight)
        self._edit(lambda schedule: schedule.set_weight(name, in_rows))

    def add_source(self, name: str, data: Any, weight: float | None = None, *, max_passes: int | None = None) -> None:
        """Adds a source from the next batch on. A resume needs it again: as ``source_factories``.

        Args:
            name: Of the source.
            data: As in ``sources``.
            weight: Relative to those of the others; needed where these have weights.
            max_passes: How often each of its rows is drawn at most. Passes that a removed source of this name has begun
                count.

        Raises:
            ConfigError: A name that is there, or data whose rows can't be stacked with those of the others.
        """
        require_names([name])
        run = self._run
        if name in self.names:
            raise ConfigError(f"there is already a source {name!r}; the sources are {self.names}")
        rows = as_rows(data, name)
        self._check_addition(run, name, rows)
        self._row_weights.add(name, rows)
        self._mark_taken(run)
        self._check_cap(run, name, max_passes)
        per_draw = self._row_weights.per_row(name)
        run.add_source(
            name, rows, None if weight is None else self._row_weights.one(name, weight), max_passes, per_draw
        )
        run.set_cap(name, max_passes)

    def remove_source(self, name: str) -> None:
        """Takes a source out from the next batch on."""
        self._edit(lambda schedule: schedule.remove_source(name))

    def _edit(self, change: Callable[[Schedule], Any]) -> None:
        self._mark_taken(self._run)
        self._run.edit(change)

    def _check_cap(self, run: BlendRun, name: str, max_passes: int | None) -> None:
        if max_passes is None:
            return
        check_max_passes(name, max_passes)
        if run.caps is None:
            raise ConfigError(
                f"max_passes of {name!r}: this blend was made without max_passes, so that it has no rule for what "
                "happens when a source is spent: give max_passes and when_spent to Blend"
            )

    def _check_addition(self, run: BlendRun, name: str, rows: Rows) -> None:
        if self._gathers and not isinstance(rows, NativeRows):
            raise ConfigError(
                f"source {name!r} is read in Python, but this blend gathers natively: give collate_fn=... to Blend, so "
                "that it reads all sources in Python"
            )
        if not self._by_source:
            present = {known: run.rows[known] for known in self.names}
            require_one_structure({**present, name: rows})

    # State -----------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """One pass, and the next one at the next call; after ``load_state_dict``, the rest of the state's pass."""
        pass_, batch = divmod(self._next, self._batches_per_pass)
        key = self._key_alone()
        run = self._run
        stream = self.open(pass_, batch, key)
        ahead = min(self.max_in_flight if self._inner is not None else 8, self._batches_per_pass - batch)
        try:
            stream.request(ahead)
            for number in range(batch, self._batches_per_pass):
                if run.is_over(self._number(pass_, number)):
                    _log.info("%r: the run ends: %s", self, run.why_over(self._number(pass_, number)))
                    return
                data = next(stream)
                if number + ahead < self._batches_per_pass:
                    stream.request(1)
                self._next = self._number(pass_, number) + 1
                run.next_batch = self._next
                yield data
        finally:
            stream.close()

    def state_dict(self) -> dict[str, Any]:
        """Where iteration alone stands, after the batch handed out last, with the edits so far."""
        return {"version": 1, "next_batch": self._next, "run": self._run.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues there in the next ``iter``.

        Raises:
            StateMismatch: A state of another blend; nothing has changed.
        """
        if state.get("version") != 1 or not isinstance(state.get("next_batch"), int) or state["next_batch"] < 0:
            raise StateMismatch(f"this is no state of a Blend: its fields are {sorted(state)}")
        self._run.load(state["run"], state["next_batch"])
        self._next = state["next_batch"]

    def run_state(self, pending: bool = False) -> Snapshot:
        run = self._run
        self._mark_taken(run)
        place = divmod(run.next_batch - pending, self._batches_per_pass)
        return Snapshot(*place, run.state_dict(pending), is_global=True)

    def skip_to(self, pass_: int, batch: int) -> None:
        run = self._run
        run.next_batch = self._number(pass_, batch)
        for native in run.natives.values():
            native.num_taken = run.next_batch

    def edited_run_state(self, snapshot: Any) -> tuple[Any, list[str]]:
        from mtf.data.blend.resume_edit import edited_run

        state, run = snapshot["state"], self._new_run(self._run.key)
        number = snapshot["pass"] * state.get("batches_per_pass", run.batches_per_pass) + snapshot["batch"]
        edited, lines = edited_run(run, state, number)
        return {**snapshot, "state": edited}, lines

    def run_layout(self) -> Any:
        return self._run.layout

    def check_run_state(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            self._run.check(snapshot.data)

    def load_run_state(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            per_pass = snapshot.data.get("batches_per_pass", self._batches_per_pass)
            self._run.load(snapshot.data, snapshot.pass_ * per_pass + snapshot.batch)

    # The run ---------------------------------------------------------------------------------------------------------

    def begin_run(self, key: int) -> None:
        """A loop with ``key`` begins at batch 0; edits made before it hold from the start, those of another run not."""
        before = self._run
        self._mark_taken(before)
        if before.next_batch == 0 and before.version > 0:
            table = before.schedule.source_table
            self._rows = {name: before.rows[name] for name, _, present in table if present}
            self._config = before.schedule.config
            self._caps = before.caps
        self._current[:] = [self._new_run(key if self._key is None else self._key)]

    def _run_of(self, key: int) -> BlendRun:
        """The run of a loop with ``key``: the current one, or a new one in its place."""
        if self._run.key != (key if self._key is None else self._key):
            self.begin_run(key)
        return self._run

    def _mark_taken(self, run: BlendRun) -> None:
        """Lets the run know of batches that native threads fetched and a loop took."""
        if run.natives:
            run.next_batch = max(native.num_taken for native in run.natives.values())

    def _key_alone(self) -> int:
        if self._key is not None:
            return self._key
        return _key_of(0)

    def _new_run(self, key: int) -> BlendRun:
        factories = {name: lambda name=name, make=make: as_rows(make(), name) for name, make in self._factories.items()}
        caps = None if self._caps is None else self._with_counts(self._caps)
        run = BlendRun(self._config, self._rows, self._own_sizes, key, factories, self._native_parts, caps)
        run.batches_per_pass = self._own_batches_per_pass
        run.curve_counts_batches = self._curve_counts_batches
        return run

    def _with_counts(self, caps: PassCaps) -> PassCaps:
        return replace(caps, per_draw={name: self._row_weights.per_row(name) for name in self._rows})

    def _native_parts(self, run: BlendRun) -> tuple[list[Any], list[Any]]:
        parts: list[Any] = []
        columns: list[Any] = []
        for name, _, present in run.schedule.source_table:
            rows: Any = run.rows[name] if present else None
            parts.append(None if rows is None else (rows.core, run.source_key(name)))
            columns.append([] if rows is None else columns_of(rows.core.fields))
        return parts, columns

    def _native_build(self, run: BlendRun) -> Any:
        transform, rank, world_size = self._transform, self._rank, self._world_size

        def finish(data: Any, pass_: int, batch: int) -> Any:
            if transform is None:
                return data
            key = _core.fold_in(_core.fold_in(run.key, pass_), batch * world_size + rank)
            return transform(data, np.random.Generator(np.random.Philox(key=key)))

        if self._by_source:

            def parts(stacks: list[Any], pass_: int, batch: int) -> Any:
                names = run.schedule.names
                rows: Mapping[str, Any] = run.rows
                data = {names[source]: rows[names[source]].built(tensors) for source, tensors in stacks}
                return finish(data, pass_, batch)

            return parts
        rows: Any = next(iter(self._rows.values()))
        if transform is None and not callable(rows.build):
            return rows.build
        return lambda tensors, pass_, batch: finish(rows.built(tensors), pass_, batch)


def _key_of(seed: int) -> int:
    return _core.fold_in(_core.fold_in(seed, "source"), "")


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, but is {value!r}")
    return int(value)


def _checked_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be an integer in [0, 2**64), but is {seed!r}")
    return int(seed)
