"""Batches whose samples come from several sources, in the shares of their weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtf import _core
from mtf.config.checks import whole_number
from mtf.config.keywords import checked_keywords
from mtf.config.mixture import WeightCurve
from mtf.data.blend.edited import EditedBlend
from mtf.data.blend.items import (
    LOADER_OPTIONS,
    BlendCollate,
    BlendOrder,
    Collate,
    ItemStream,
    SampleDataset,
    make_loader,
)
from mtf.data.blend.mixture import require_one_structure, sample_mixture
from mtf.data.blend.nested import BlendRows
from mtf.data.blend.preview.viewed import ViewedBlend
from mtf.data.blend.rows import NativeRows, as_rows, datasets_of
from mtf.data.blend.run import BlendRun, require_names
from mtf.data.blend.running import key_of
from mtf.data.blend.sizes import BatchSizes
from mtf.data.blend.tracing.traced import TracedBlend
from mtf.data.blend.weights_count import RowWeights, WeightsCount
from mtf.data.prefetch.engine import NativeStream
from mtf.data.sources.base import Snapshot, Stream
from mtf.data.sources.threaded import ThreadLoader
from mtf.data.sources.torch_map import TorchSource
from mtf.enums import WeightedOrder
from mtf.errors import ConfigError, StateMismatch
from mtf.schedule.caps import WhenSpent, parse_caps

_log = logging.getLogger("mtf.data")

Transform = Callable[[Any, np.random.Generator], Any]


class Blend(ViewedBlend, EditedBlend, TracedBlend):
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

    @checked_keywords(
        words={
            "probabilities": "weights",
            "dataloader_weights": "weights",
            "batch_size": "global_batch_size, the samples of all ranks together",
            "datasets": "sources",
            "loaders": "sources",
            "stopping_strategy": "max_passes and when_spent",
        },
        options=LOADER_OPTIONS,
    )
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
        weights, curve = self._in_rows(weights, weight_curve)
        self._caps = parse_caps(max_passes, when_spent, list(sources))
        self._check_curve(weight_curve)
        self._config = sample_mixture(self._rows, weights, curve, order, self._own_sizes)
        self._seed = seed
        self._key = None if seed is None else key_of(seed)
        self._rank, self._world_size = 0, 1
        self._next = 0
        # The run that edits and questions mean; the parts of ranks share it. It refuses weights that can't be.
        self._current = [self._new_run(self._key_alone())]
        total = sum(length for length in self._run.schedule.lengths if length is not None)
        self._own_batches_per_pass = (
            max(1, self._run.num_batches(self._sizes.num_batches_of(total)))
            if batches_per_pass is None
            else whole_number("batches_per_pass", batches_per_pass, 1)
        )
        self._run.batches_per_pass = self._own_batches_per_pass
        self._inner: TorchSource | None = None
        if not self._gathers:
            self._prepare_items(num_threads)

    def _in_rows(
        self, weights: Mapping[str, float] | Sequence[float] | None, curve: WeightCurve | None
    ) -> tuple[list[float] | None, WeightCurve | None]:
        """The weights, and the curve, as shares of the rows."""
        names = list(self._rows)
        if curve is None:
            weights = self._row_weights.given(names, weights)
        return self._row_weights.of(names, weights), self._row_weights.of_curve(names, curve)

    def _check_curve(self, curve: WeightCurve | None) -> None:
        if self._caps is not None and curve is not None and curve.unit == "tokens":
            raise ConfigError(
                "weight_curve.unit='tokens' can't be used with max_passes: how many tokens a sample holds changes when "
                "a source is spent; count samples or batches"
            )

    def _check_options(self, num_threads: int | None) -> None:
        self.num_threads = 1 if num_threads is None else whole_number("num_threads", num_threads, 0)
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
                del data  # its memory is free for the next batch, unless the caller still has it
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
