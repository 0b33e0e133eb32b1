"""The loaders of a mixture by name: how each is read, which were added or removed, and what of them is state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtf._core import fold_in
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.agreed_lengths import agree_on_lengths
from mtf.data.determinism.recent_batches import from_dict, to_dict
from mtf.data.prefetch.native_reader import NativeReader
from mtf.data.prefetch.scheduler import PrefetchScheduler
from mtf.data.prefetch.source_reader import SourceReader
from mtf.data.sources.base import ResumeMode, Snapshot, Source
from mtf.data.sources.resolve import as_source
from mtf.data.sources.rest_of_pass import RestOfPass, rest_from
from mtf.data.steering.mixture_edit import WAY_OUT, GivenSource, given_source
from mtf.data.tracing.past_cuts import PastCuts
from mtf.distributed.data_group import DataGroup
from mtf.errors import ConfigError, StateMismatch

if TYPE_CHECKING:
    from mtf.data.workers.shared import SharedWorkers
    from mtf.schedule.schedule import Schedule

Reader = SourceReader | NativeReader


class SourceSet:
    """Sources of one mixture, with their readers.

    Args:
        loaders: Name -> loader, in the order of the schedule's sources.
        config: Of the mixture; its prefetch and worker settings are used here.
        seed: Of the mixture; each source's random numbers depend on it and on the source's name.
        factories: Name -> function that makes a loader that a state has and ``loaders`` hasn't.
        ranks: The processes that divide the batches among themselves.
        seed_each_batch: Produce every batch under generators seeded from its position.
        fetch_timeout_s: Seconds that a native fetch may take, None for no limit.

    Attributes:
        readers: Name -> reader; a removed source keeps its reader until its name is used again.
        initial: Sources that the schedule began with.
        additions: How often each name was added, where that differs from once for a name that wasn't there initially.
            Replaced by edits, never changed, so that a commit only keeps it.
        ranks: Those that divide batches among themselves.
        undivided: Names of sources that each rank reads as they are, on several ranks.
        prefetch: Asks for batches ahead, for all sources under one budget.
    """

    def __init__(
        self,
        loaders: Mapping[str, Any],
        config: MultiDataLoaderConfig,
        seed: int,
        *,
        factories: Mapping[str, Callable[[], Any]],
        ranks: DataGroup,
        seed_each_batch: bool,
        fetch_timeout_s: float | None,
    ) -> None:
        self._config = config
        self._seed = seed
        self.factories = dict(factories)
        self.ranks = ranks
        self._world_size = ranks.world_size
        self._seed_each_batch = seed_each_batch
        self.undivided: set[str] = set()
        self.initial = {name: self.adapt(loader, name) for name, loader in loaders.items()}
        _refuse_shared_positions(self.initial)
        self._given = dict(self.initial)
        sources = list(self.initial.values())
        self._shared_workers = self._share_workers(sources)
        self.prefetch = PrefetchScheduler(config, sources, fetch_timeout_s)
        self.readers: dict[str, Reader] = {}
        self._with_state: dict[str, Reader] = {}  # a position doesn't say everything about these
        for name, source in self.initial.items():
            self.add_reader(name, source)
        self.additions: Mapping[str, int] = {}
        self.rests: dict[str, RestOfPass] = {}  # passes that began with other batches or fewer samples
        self.past_cuts = PastCuts()
        self._whole: dict[str, Source] = {}  # their sources, without these passes
        self._replaced: dict[tuple[str, int], Source] = {}  # until batches were committed since
        self._replaced_at = 0
        # What was committed; used once a position is committed.
        self._committed_snapshots: dict[str, Snapshot | None] = {}
        self._committed_additions: Mapping[str, int] = {}

    # Making sources -------------------------------------------------------------------------------------------------

    def adapt(self, loader: Any, name: str) -> Source:
        """The source that reads ``loader``, this rank's part of it."""
        source = as_source(loader, name, seed_each_batch=self._seed_each_batch)
        if self._config.drop_last:
            source = source.drop_last()
        if self._world_size > 1:
            part = source.shard(self.ranks.rank, self._world_size)
            if part is source:
                self.undivided.add(name)
            source = part
        if source.reads_loaders:
            source.join_ranks(self.ranks)
        return source

    def agreed_lengths(self, sources: Mapping[str, Source]) -> dict[str, int | None]:
        """Batches that every rank can give in a pass. Collective when there are several ranks."""
        lengths = [source.num_batches() for source in sources.values()]
        cycling = self._config.cycle_short_loaders
        sizes = [source.size_to_divide() for source in sources.values()]
        agreed = agree_on_lengths(list(sources), lengths, cycling, self.ranks.rank, self._world_size, sizes, self.ranks)
        return dict(zip(sources, agreed, strict=True))

    def _share_workers(self, sources: Sequence[Source]) -> SharedWorkers | None:
        if self._config.shared_workers is None:
            return None
        from mtf.data.workers.shared import SharedWorkers

        return SharedWorkers(sources, self._config.shared_workers, fold_in(self._seed, "workers"))

    def add_reader(self, name: str, source: Source) -> None:
        """From now on ``source`` is read as ``name``."""
        key = fold_in(fold_in(self._seed, "source"), name)
        source.begin_run(key)
        reader = self.prefetch.reader(source, key)
        self.readers[name] = reader
        self._with_state.pop(name, None)  # of a source removed before
        has_snapshots = isinstance(reader, SourceReader) and source.resume_mode is not ResumeMode.SEEK
        if has_snapshots or source.has_run_state:
            self._with_state[name] = reader

    def _renew_reader(self, name: str) -> None:
        """Reads a source anew whose run has another layout, in the same run."""
        reader = self.prefetch.reader(self.readers[name].source, fold_in(fold_in(self._seed, "source"), name))
        self.readers[name] = self._with_state[name] = reader

    def in_order(self, names: Sequence[str]) -> list[Reader]:
        """Readers by index of their sources."""
        # A source that was removed keeps its index and is never drawn; after a resume it may have no reader.
        placeholder = next(iter(self.readers.values()))
        return [self.readers.get(name, placeholder) for name in names]

    def discard_ended_workers(self) -> None:
        """After an error that ended the shared workers: what they had fetched for any source is fetched again."""
        if self._shared_workers is not None and self._shared_workers.closed:
            for reader in self.readers.values():
                if isinstance(reader, SourceReader) and reader.source.worker_group is self._shared_workers:
                    reader.discard()

    def table(self, schedule: Schedule, counts: Sequence[int]) -> list[tuple[object, ...]]:
        """Per source in the mixture: name, adapter, resume mode, batches per pass, weight, draws in this epoch."""
        weights = schedule.mixture.weights
        rows: list[tuple[object, ...]] = []
        for index, (name, length, present) in enumerate(schedule.source_table):
            if present:
                source = self.readers[name].source
                row = (name, type(source).__name__, source.resume_mode.name, "unknown" if length is None else length)
                rows.append((*row, weights[index] if weights else None, counts[index]))
        return rows

    def stats(self) -> dict[str, Any]:
        """``in_flight`` and ``notes`` by name, and ``engine``, as ``MultiLoader.stats`` describes them."""
        return {
            "in_flight": {name: reader.in_flight for name, reader in self.readers.items()},
            "notes": {name: notes for name, reader in self.readers.items() if (notes := reader.source.notes())},
            "engine": self.prefetch.engine_stats(),
        }

    def end_workers(self, *, replay: bool) -> list[str]:
        """Ends worker processes that the next batch starts again at no cost; all of them with ``replay``.

        Returns:
            Names of sources whose worker processes stay.
        """
        readers = [(name, reader) for name, reader in self.readers.items() if isinstance(reader, SourceReader)]
        kept = [name for name, reader in readers if reader.end_workers(replay=replay)]
        if self._shared_workers is not None:
            self._shared_workers.close()
        return kept

    def skip_to(self, places: Mapping[str, tuple[int, int]]) -> None:
        """The batches up to ``places``, (pass, batches given of it) by name, are left out."""
        for name, reader in self.readers.items():
            reader.discard()
            if name in places and reader.source.has_run_state:
                reader.source.skip_to(*places[name])

    def close(self) -> None:
        """Ends worker processes and threads."""
        for reader in self.readers.values():
            reader.close()
        if self._shared_workers is not None:
            self._shared_workers.close()
        self.prefetch.close()

    # Edits ----------------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        source: Source,
        schedule: Schedule,
        length: int | None,
        weight: float | None,
        num_steps: int,
    ) -> None:
        """Adds ``source`` to the schedule and reads it as ``name``, or does neither.

        The source that had the name is kept, because an uncommitted edit may be taken back.

        Args:
            name: Not the name of a source that is present.
            source: What is added.
            schedule: Gets the source at its cursor.
            length: Batches in a pass, None if unknown.
            weight: As for ``Schedule.add_source``.
            num_steps: Batches that the mixture has handed out.
        """
        present = {entry: self.readers[entry].source for entry, _, there in schedule.source_table if there}
        _refuse_shared_positions({**present, name: source})
        was_known = name in schedule.names
        usual = self._usual(name)
        additions = {**self.additions, name: self.additions.get(name, usual) + 1} if was_known else self.additions
        before = schedule.state_dict()
        try:
            schedule.add_source(name, length=length, weight=weight)
            if was_known:
                self._keep_replaced(name, usual, num_steps)
            self.add_reader(name, source)
            self.rests.pop(name, None)
            if was_known:
                self.past_cuts.add(name, schedule.epoch, schedule.step)
        except BaseException:
            schedule.load_state_dict(before)  # Ctrl-C: the schedule mustn't draw what isn't read
            raise
        self.additions = additions

    def commit_addition(self, name: str) -> None:
        """The addition of ``name`` at the committed position is part of the state."""
        self._committed_additions = self.additions
        # Or the state would have that of an earlier loader of this name.
        saved = self._with_state[name].saved() if name in self._with_state else None
        self._committed_snapshots = {**self._committed_snapshots, name: saved}

    def _usual(self, name: str) -> int:
        return 0 if name in self.initial else 1

    def _keep_replaced(self, name: str, usual: int, num_steps: int) -> None:
        if name in self.readers:  # after a resume a source that had been removed has none
            self._replaced[name, self.additions.get(name, usual)] = self.readers[name].source
            self._replaced_at = num_steps

    # State ----------------------------------------------------------------------------------------------------------

    def commit(self, num_steps: int) -> None:
        """What the sources say about themselves now is state."""
        if self._with_state or self._committed_snapshots:
            self._committed_snapshots = {name: reader.saved() for name, reader in self._with_state.items()}
        self._committed_additions = self.additions
        if self._replaced and num_steps != self._replaced_at:
            self._replaced.clear()

    def state_dict(self, names: Sequence[str], *, is_committed: bool) -> dict[str, Any]:
        """State of the sources ``names``, those in the mixture at the position that is saved."""
        present = {name: self.readers[name].source for name in names}
        # guard: committed positions
        if is_committed:
            snapshots: Mapping[str, Snapshot | None] = self._committed_snapshots
            additions = self._committed_additions
        else:
            snapshots = {name: reader.saved() for name, reader in self.readers.items()}
            additions = self.additions
        cuts = {n: cut.to_list() for n, source in present.items() if (cut := source.pass_cut(self._world_size))}
        rests = {name: rest.to_list() for name, rest in self.rests.items() if name in present}
        past_cuts = self.past_cuts.to_dict(names)
        order_states = {n: state for n, source in present.items() if (state := source.order_state()) is not None}
        return {
            "global_batch_sizes": {n: source.global_batch_size_on(self._world_size) for n, source in present.items()},
            "orders": {name: source.order() for name, source in present.items()},
            "sources": {name: to_dict(snapshots.get(name)) for name in names},
            **({"additions": dict(additions)} if additions else {}),
            **({"cuts": cuts} if cuts else {}),
            **({"rests": rests} if rests else {}),
            **({"past_cuts": past_cuts} if past_cuts else {}),
            **({"order_states": order_states} if order_states else {}),
        }

    def prepare_load(self, state: Mapping[str, Any]) -> PreparedLoad:
        """Everything that loading needs, made and compared before anything changes.

        Raises:
            StateMismatch: The state is of other sources.
        """
        snapshots = {name: from_dict(entry) for name, entry in state["sources"].items()}
        additions = {str(name): int(number) for name, number in state.get("additions", {}).items()}
        added = self._missing(state["schedule"], list(snapshots), additions)
        sources = {**{name: reader.source for name, reader in self.readers.items()}, **added}
        self._check_global_batches(state["global_batch_sizes"], sources)
        _check_orders(state.get("orders", {}), sources)
        for name, source in sources.items():
            source.check_run_state(snapshots.get(name))
        began_with = {source["name"] for source in state["schedule"]["setups"][0]["sources"]}
        rests = {name: rest for name, entry in state.get("rests", {}).items() if (rest := rest_from(entry)) is not None}
        for name in rests:
            if name in sources and sources[name].pass_cut(self._world_size) is None:
                raise StateMismatch(
                    f"source {name!r} can't be opened at any sample here, but the state has a pass of it to finish: "
                    "give it the sampler that it had"
                )
        order_states, past_cuts = dict(state.get("order_states", {})), PastCuts.from_state(state)
        return PreparedLoad(snapshots, additions, added, began_with, order_states, rests, past_cuts)

    def load(self, prepared: PreparedLoad, num_steps: int) -> None:
        """Puts every source to its snapshot. Reads no data."""
        for name, source in prepared.added.items():
            self._keep_replaced(name, self._usual(name), num_steps)
            self.add_reader(name, source)
            self.rests.pop(name, None)
        self._finish_passes(prepared.rests)
        self.past_cuts = prepared.past_cuts
        self.additions = prepared.additions
        self.initial = {name: source for name, source in self.initial.items() if name in prepared.began_with}
        for name, reader in list(self.readers.items()):
            reader.discard()
            if isinstance(reader, SourceReader):
                reader.source.close()
            if reader.source.has_run_state:
                layout = reader.source.run_layout()
                reader.source.load_run_state(prepared.snapshots.get(name))
                if reader.source.run_layout() != layout:
                    self._renew_reader(name)
            elif isinstance(reader, SourceReader):
                # guard: state of a source
                reader.snapshot = prepared.snapshots.get(name)
            if name in prepared.order_states:
                reader.source.load_order_state(prepared.order_states[name])

    def _finish_passes(self, rests: Mapping[str, RestOfPass]) -> None:
        """Lets sources finish the passes that began otherwise, and no others."""
        for name in {*self.rests, *rests}:
            if name in self.readers and rests.get(name) != self.rests.get(name):
                if name not in self.rests:
                    self._whole[name] = self.readers[name].source
                self.readers[name].close()
                whole = self._whole[name]
                self.add_reader(name, whole.finish_pass(rests[name]) if name in rests else whole)
        self.rests = {name: rest for name, rest in rests.items() if name in self.readers}

    def given(self, lengths: Mapping[str, int | None]) -> dict[str, GivenSource]:
        """What an edit has to know of the sources that were given here, by name."""
        return {name: given_source(s, lengths[name], self._world_size) for name, s in self._given.items()}

    def _missing(
        self, schedule: Mapping[str, Any], names: Sequence[str], additions: Mapping[str, int]
    ) -> dict[str, Source]:
        """Sources of a state that aren't those here, because they were added, or added again, before it or since."""
        initial = {source["name"]: source["length"] for source in schedule["setups"][0]["sources"]}
        lengths = {s["name"]: s["length"] for s in schedule["setups"][schedule["tail"]["setup"]]["sources"]}
        missing: dict[str, Source] = {}
        for name in names:
            usual = 0 if name in initial else 1
            wanted, here = additions.get(name, usual), self.additions.get(name, usual)
            if name in self.readers and wanted == here:
                continue
            if (name, wanted) in self._replaced:
                missing[name] = self._replaced[name, wanted]
            elif wanted == 0 and name in self.initial:
                missing[name] = self.initial[name]
            elif name in self.factories or name not in self.readers:
                missing[name] = self._made(name, name in initial)
            elif here or lengths[name] != initial[name]:
                raise StateMismatch(
                    f"the state continues with the loader that was added as {name!r} during training (addition "
                    f"{wanted} of this name), and here is another: give it as loader_factories={{{name!r}: ...}}"
                )
        return missing

    def _made(self, name: str, is_initial: bool) -> Source:
        """A source that was added during training, made again for a state that has it."""
        factory = self.factories.get(name)
        if factory is None:
            added = "" if is_initial else ", which was added during training"
            way_out = f", or a function as loader_factories={{{name!r}: ...}}"
            way_out = f" under this name; {WAY_OUT}" if is_initial else way_out
            raise StateMismatch(
                f"the state has a source {name!r}{added}, but here are only {list(self.readers)}: "
                f"pass its loader{way_out}"
            )
        return self.adapt(factory(), name)

    def _check_global_batches(self, saved: Mapping[str, int | None], sources: Mapping[str, Source]) -> None:
        """Raises if a source would cut its samples into other global batches than those of the state."""
        for name, source in sources.items():
            here, there = source.global_batch_size_on(self._world_size), saved.get(name)
            # guard: global batch
            if here is None or there is None or here == there:
                continue
            size, rest = divmod(there, self._world_size)
            ranks = f"{self._world_size} rank{'s' if self._world_size > 1 else ''}"
            way_out = (
                f"batch_size={size}" if rest == 0 else f"an ArrayLoader with global_batch_size={there}"
            ) + f" continues with it on {ranks}"
            raise StateMismatch(
                f"source {name!r} has global batches of {here} samples here ({ranks}), but {there} in the "
                f"state, so the batches would be others: {way_out}; {WAY_OUT}"
            )


@dataclass(frozen=True, slots=True)
class PreparedLoad:
    """A state of the sources, looked at and ready to be loaded.

    Attributes:
        snapshots: By name, what the source said about itself.
        additions: As ``SourceSet.additions``.
        added: Sources that the state has and the set hasn't.
        began_with: Names of the sources that the schedule began with.
        order_states: By name, what ``Source.order_state`` gave.
        rests: By name, passes that began otherwise.
        past_cuts: How batches were cut before.
    """

    snapshots: dict[str, Snapshot | None]
    additions: dict[str, int]
    added: dict[str, Source]
    began_with: set[str]
    order_states: dict[str, Any]
    rests: dict[str, RestOfPass]
    past_cuts: PastCuts


def _refuse_shared_positions(sources: Mapping[str, Source]) -> None:
    """Raises where two sources would move the position of one object, which no state could tell apart."""
    names: dict[int, str] = {}
    for name, source in sources.items():
        owner = source.position_owner()
        if owner is None:
            continue
        other = names.setdefault(id(owner), name)
        if other != name:
            raise ConfigError(
                f"loaders {other!r} and {name!r} read one {type(owner).__name__}, which has a single position: each "
                "would take the other's batches, and neither could be resumed; give each an object of its own"
            )


def _check_orders(saved: Mapping[str, str | None], sources: Mapping[str, Source]) -> None:
    """Raises if a source would give its samples in another kind of order than that of the state."""
    for name, source in sources.items():
        here, there = source.order(), saved.get(name)
        if here is not None and there is not None and here != there:
            raise StateMismatch(
                f"source {name!r} gives its samples {here} here, but {there} in the state, so the batches would be "
                "others: give it the sampler and shuffling that the run began with"
            )
