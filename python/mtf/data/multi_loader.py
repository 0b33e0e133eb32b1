"""A mixture of loaders as one iterable: the schedule says which source comes next, the sources give their batches."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mtf._core import fold_in
from mtf.config.mixture import MultiDataLoaderConfig, require_mixture
from mtf.data.agreed_lengths import agree_on_lengths, check_same_schedule
from mtf.data.batch import Batch, located, place_of
from mtf.data.determinism.recent_batches import RecentBatches, from_dict, to_dict
from mtf.data.prefetch.native_reader import NativeReader
from mtf.data.prefetch.scheduler import PrefetchScheduler
from mtf.data.prefetch.source_reader import PassEnded, SourceReader
from mtf.data.sources.base import ResumeMode, Snapshot, Source
from mtf.data.sources.resolve import as_source
from mtf.data.workers.fetch_timeout import FetchGuard
from mtf.errors import Closed, ConfigError, MtfError, SourceError, StateMismatch
from mtf.formatting import html_table
from mtf.schedule.schedule import Schedule

if TYPE_CHECKING:
    import torch

    from mtf.data.workers.shared import SharedWorkers

# Draws are taken from the schedule in blocks that grow, so that an edit, after which all are taken anew, wastes few.
# The next block is taken when this many are left: they are what can be asked for ahead.
_SMALLEST_BLOCK, _LARGEST_BLOCK, _LEFT = 256, 1024, 128
_STATE_VERSION = 1


class MultiLoader:
    """Batches of several loaders in the order of a schedule, with an exact state between any two of them.

    Iterating gives the rest of the current epoch; then the position is the start of the next one. All iterators of one
    MultiLoader share its position. To be used from one thread, the main thread where loaders have worker processes.

    Args:
        loaders: A dict or list of loaders (anything that ``as_source`` accepts), or one.
        config: How they are mixed.
        seed: Of the schedule, the shuffling and the batches; ``config.seed`` wins.
        device: Batches are moved there; None leaves them where the loader made them.
        loader_factories: Name -> function that makes the loader, for sources that a loaded state has and ``loaders``
            hasn't.
        rank: This process among ``world_size`` that train together.
        world_size: Number of processes.
        seed_each_batch: Produce every batch under generators seeded from its position.
        fetch_timeout_s: Seconds after which a fetch is given up, None for no limit.
        pin_memory: Copy to the device from pinned memory; None: where the device is CUDA.
        device_prefetch: On CUDA, copy on a stream of its own, which overlaps with the step before.
        remember_batches: Keep hashes of each source's last batches in the state, for ``verify_recent_batches``.

    Attributes:
        config: A copy of what was given, kept up to date with edits and loaded states. ``rebuild_schedule`` reads what
            was changed in it.

    Raises:
        ConfigError: A name, loader or option is wrong; no data has been read.
    """

    def __init__(
        self,
        loaders: Mapping[str, Any] | Sequence[Any] | Any,
        config: MultiDataLoaderConfig | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        *,
        loader_factories: Mapping[str, Callable[[], Any]] | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed_each_batch: bool = True,
        fetch_timeout_s: float | None = None,
        pin_memory: bool | None = None,
        device_prefetch: bool = True,
        remember_batches: bool = False,
    ) -> None:
        self.config = MultiDataLoaderConfig() if config is None else copy.deepcopy(config)
        require_mixture(self.config)
        self._seed = seed if self.config.seed is None else self.config.seed
        self._factories = dict(loader_factories or {})
        self._rank, self._world_size = rank, world_size
        self._seed_each_batch = seed_each_batch
        self._guard = None if fetch_timeout_s is None else FetchGuard(fetch_timeout_s)
        self._pid = os.getpid()
        self._closed = False

        named = _named_loaders(loaders, self.config.dataloader_names)
        sources = {name: self._adapt(loader, name) for name, loader in named.items()}
        self._schedule = Schedule(self.config, self._agreed_lengths(sources), seed=self._seed)
        check_same_schedule(self._schedule, world_size)
        self._shared_workers = self._share_workers(list(sources.values()))
        self._ahead = PrefetchScheduler(self.config, list(sources.values()), fetch_timeout_s)
        self._readers: dict[str, SourceReader | NativeReader] = {}
        self._with_state: dict[str, SourceReader] = {}  # those of which a position doesn't say everything
        for name, source in sources.items():
            self._add_reader(name, source)
        self._initial = sources  # those that the schedule began with
        # How often each name was added, where that isn't once for a name that wasn't there initially. Replaced by
        # edits, never changed, so that a commit only keeps it.
        self._additions: Mapping[str, int] = {}
        self._replaced: dict[tuple[str, int], Source] = {}  # until batches were committed since
        self._replaced_at = 0
        self._mover = _mover(device, pin_memory, device_prefetch)

        # What was committed: a position (epoch, step) and the snapshots at it. None until commit() is first called.
        self._committed: tuple[int, int] | None = None
        self._committed_snapshots: dict[str, Snapshot | None] = {}
        # Where the schedule can't tell it any more: its epoch was left, or the end of a pass was found behind it.
        self._committed_schedule: dict[str, Any] | None = None
        self._committed_additions: Mapping[str, int] = {}
        self._recent_batches = RecentBatches() if remember_batches else None
        self._num_steps = 0
        self._wait_s: list[float] = []  # by source; only ever grows, also when loaders come and go
        self._ended_passes: list[tuple[str, int]] = []

        # The draws taken from the schedule: `_place` is the next of them, and step `_first_step + _place` of the epoch.
        self._sources: list[int] = []
        self._passes: list[int] = []
        self._batches: list[int] = []
        self._first_step = self._place = self._num_drawn = self._refill_at = self._epoch = 0
        self._is_stale = False  # the schedule was moved or edited, and isn't followed yet
        self._block = _SMALLEST_BLOCK
        self._names: list[str] = []
        self._order: list[SourceReader | NativeReader] = []
        self._counts: list[int] = []  # draws of each source in this epoch so far
        self._follow_schedule()

    # Iteration ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        self._check_usable()
        self._open_next_epoch()
        return _Batches(self)

    def __len__(self) -> int:
        """Steps of the current epoch.

        Raises:
            TypeError: It isn't known before the end.
        """
        num_steps: int | None = self._schedule.num_steps(self.epoch)
        if num_steps is None:
            raise TypeError("the epoch's length isn't known: a source has no len(), and the epoch ends where it does")
        return num_steps

    def __repr__(self) -> str:
        """Strategy, sources and position."""
        if "_order" not in vars(self):  # a traceback shows the object whose constructor has raised
            return "MultiLoader(not constructed)"
        names = ", ".join(self.names)
        place = "closed" if self._closed else f"epoch={self._epoch}, step={self._first_step + self._place}"
        return f"MultiLoader({self._schedule.mixture.strategy}, [{names}], seed={self._seed}, {place})"

    def _repr_html_(self) -> str:
        schedule = self._schedule
        weights = schedule.mixture.weights
        rows = []
        for index, (name, length, present) in enumerate(schedule.source_table):
            if present:
                source = self._readers[name].source
                row = (name, type(source).__name__, source.resume_mode.name, "unknown" if length is None else length)
                rows.append((*row, weights[index] if weights else None, self._counts[index]))
        columns = ("source", "read as", "addressed by", "batches per pass", "weight", "drawn in this epoch")
        return html_table(repr(self), columns, rows)

    def _next(self) -> Batch:
        """The batch at the position, which moves on by one."""
        while True:
            place = self._place
            if place >= self._refill_at:
                self._refill()
                place = self._place
                if place >= self._num_drawn:
                    raise StopIteration
            source, pass_, batch = self._sources[place], self._passes[place], self._batches[place]
            reader = self._order[source]
            before = None if self._recent_batches is None else reader.saved()
            start = time.perf_counter()
            try:
                data = reader.take(pass_, batch) if self._guard is None else self._guard.call(reader.take, pass_, batch)
            except PassEnded as ended:
                self._on_pass_end(source, pass_, ended.num_batches)
                continue
            except Exception as error:  # a loader may raise anything; it is named and chained
                self._forget_shared_workers()
                raise located(error, self._location(source, pass_, batch)) from error
            except BaseException:
                self._forget_shared_workers()
                raise
            if data is None:
                raise SourceError(f"{self._location(source, pass_, batch)}: the loader gave None instead of a batch")
            self._wait_s[source] += time.perf_counter() - start
            self._ahead.took(place, reader, data)
            index = self._counts[source]
            handed = Batch(
                data if self._mover is None else self._mover(data),
                source,
                self._names[source],
                self._first_step + place,
                pass_,
                batch,
                index,
                self._epoch,
                1.0 if self._world_size == 1 else reader.source.weight(pass_, batch),
            )
            if self._recent_batches is not None:
                self._recent_batches.note(self._names[source], pass_, batch, data, before)
            # Whatever interrupts what is above, the position still stands before this batch, which comes again then.
            # Nothing interrupts these: Python looks at signals where functions are called and loops go round.
            self._counts[source] = index + 1
            self._num_steps += 1
            self._place = place + 1
            reader.pending_batch = None
            if reader.overruns:
                self._on_late_end(source)
            return handed

    def _forget_shared_workers(self) -> None:
        """After an error that ended them: what they had fetched for any source is fetched again."""
        if self._shared_workers is not None and self._shared_workers.closed:
            for reader in self._readers.values():
                if isinstance(reader, SourceReader) and reader.source.worker_group is self._shared_workers:
                    reader.discard()

    def _refill(self) -> None:
        """Takes the next draws from the schedule and asks for them ahead."""
        self._check_usable()
        self._sync()
        drawn, step = self._schedule.draw_lists(self._block), self._schedule.step
        num_drawn = len(drawn[0])
        self._sources, self._passes, self._batches = drawn
        self._first_step, self._place, self._num_drawn = step, 0, num_drawn
        self._refill_at = num_drawn - _LEFT if num_drawn == self._block else num_drawn
        self._block = min(2 * self._block, _LARGEST_BLOCK)
        self._ahead.start(self._order, self._sources, self._passes, self._batches)

    def _sync(self) -> None:
        """Brings the schedule's cursor to the position; after an interruption, the position to the cursor."""
        if self._is_stale:
            self._follow_schedule()
        behind = self._first_step + self._place - self._schedule.step
        if behind:
            self._schedule.advance(behind)

    def _leave_draws(self) -> None:
        """Before the schedule is moved or edited: what was drawn from it counts no more, whatever interrupts that."""
        self._sync()
        self._num_drawn = self._refill_at = 0
        self._is_stale = True

    def _follow_schedule(self) -> None:
        """Starts anew from the schedule's cursor, after it was moved or edited."""
        schedule = self._schedule
        self._names = list(schedule.names)
        self._wait_s += [0.0] * (len(self._names) - len(self._wait_s))
        # A source that was removed keeps its index and is never drawn; after a resume it may have no reader.
        placeholder = next(iter(self._readers.values()))
        self._order = [self._readers.get(name, placeholder) for name in self._names]
        self._epoch = schedule.epoch
        self._first_step, self._place = schedule.step, 0
        self._num_drawn = self._refill_at = 0
        self._block = _SMALLEST_BLOCK
        self._counts = [int(count) for count in schedule.counts(schedule.step)]
        self._is_stale = False

    def _open_next_epoch(self) -> None:
        self._sync()
        if self._schedule.epoch_done:
            self._leave_epoch(self._schedule.next_epoch)

    def _leave_epoch(self, move: Callable[[], Any]) -> None:
        """Lets the schedule ``move`` to another epoch, from where it can't tell what was committed in this one."""
        is_committed = self._committed == self._schedule.position
        if self._committed is not None and self._committed_schedule is None:
            self._committed_schedule = self._schedule.state_dict(self._committed[1])
        self._leave_draws()
        move()
        if is_committed:
            self._committed, self._committed_schedule = self._schedule.position, None
        self._follow_schedule()

    # What sources do that their length didn't say ---------------------------------------------------------------------

    def _on_pass_end(self, source: int, pass_: int, num_batches: int) -> None:
        name, expected = self._names[source], self._schedule.lengths[source]
        if num_batches == 0:
            raise SourceError(f"{self._location(source, pass_, 0)}: the loader gave no batch at all")
        self._ended_passes.append((name, pass_))
        self._sync()
        if self._committed == self._schedule.position and self._committed_schedule is None:
            # The draw that found the end isn't committed: whoever goes on from here finds it, and tells of it, again.
            self._committed_schedule = self._schedule.state_dict()
        self._leave_draws()
        self._schedule.end_pass(source, num_batches)
        self._follow_schedule()
        if expected is not None:
            warnings.warn(
                f"{name}: pass {pass_} ended after {num_batches} batches, but len() said {expected}; correct the "
                "loader's len(), so that the schedule is right from the start",
                stacklevel=4,
            )

    def _on_late_end(self, source: int) -> None:
        reader = self._order[source]
        late = list(reader.overruns)
        if isinstance(reader, SourceReader):
            reader.overruns.clear()
        self._sync()
        self._schedule.extend_pass(source, late[-1][1] + 1)
        for pass_, length in late:
            warnings.warn(
                f"{self._names[source]}: pass {pass_} went on after {length} batches, where len() said it would end; "
                "the rest was left out: correct the loader's len()",
                stacklevel=4,
            )

    def _location(self, source: int, pass_: int, batch: int) -> str:
        return place_of(self._names[source], pass_, batch, self._epoch, self._first_step + self._place)

    def take_ended_passes(self) -> list[tuple[str, int]]:
        """(name, pass) of passes whose end no length had told before, each once: found since the last call."""
        found, self._ended_passes = self._ended_passes, []
        return found

    # Position and state ----------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Names of the sources in the mixture, in the order of their indices."""
        if self._is_stale:
            self._follow_schedule()
        return [name for name, present in zip(self._names, self._schedule.present, strict=True) if present]

    @property
    def initial_names(self) -> list[str]:
        """Names of the sources that training began with, whatever was removed or added since."""
        return list(self._initial)

    @property
    def schedule(self) -> Schedule:
        """What is drawn when, its cursor behind the last batch handed out. Edit it through the MultiLoader."""
        self._sync()
        return self._schedule

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives (the rest of)."""
        if self._place < self._num_drawn:
            return self._epoch  # there are more draws in it
        self._sync()
        return int(self._schedule.epoch) + bool(self._schedule.epoch_done)

    @property
    def step(self) -> int:
        """Steps of the current epoch that were handed out."""
        self._sync()
        return 0 if self._schedule.epoch_done else int(self._schedule.step)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of ``epoch``; the current epoch's position stays."""
        if epoch != self.epoch:
            self._sync()
            self._leave_epoch(lambda: self._schedule.seek(epoch, 0))
        else:
            self._open_next_epoch()

    def commit(self) -> None:
        """Declares every batch handed out so far as trained on. From now on only committed batches are state."""
        self._committed = (self._epoch, self._first_step + self._place)
        if self._with_state or self._committed_snapshots:
            self._committed_snapshots = {name: reader.saved() for name, reader in self._with_state.items()}
        self._committed_schedule = None
        self._committed_additions = self._additions
        if self._replaced and self._num_steps != self._replaced_at:
            self._replaced.clear()
        if self._recent_batches is not None:
            self._recent_batches.commit()

    def rewind(self) -> None:
        """Goes back to the last ``commit()``: the next iteration gives batches handed out since again."""
        self._sync()
        if self._committed is not None and (
            self._committed != self._schedule.position or self._committed_schedule is not None
        ):
            self.load_state_dict(self.state_dict())
            self.commit()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch committed, or handed out if ``commit`` was never called.

        Nothing in it grows with the step, except what sources with a state of their own put there.
        """
        self._sync()
        if self._committed is None:
            snapshots: Mapping[str, Snapshot | None] = {name: reader.saved() for name, reader in self._readers.items()}
            schedule = self._schedule.state_dict()
        else:
            snapshots = self._committed_snapshots
            schedule = self._committed_schedule or self._schedule.state_dict(self._committed[1])
        # Those in the mixture at that position: a batch handed out since may have been followed by an edit.
        sources = schedule["setups"][schedule["tail"]["setup"]]["sources"]
        names = [source["name"] for source in sources if source["present"]]
        present = {name: self._readers[name].source for name in names}
        additions = self._additions if self._committed is None else self._committed_additions
        return {
            "version": _STATE_VERSION,
            "schedule": schedule,
            "global_batch_sizes": {n: source.global_batch_size_on(self._world_size) for n, source in present.items()},
            "orders": {name: source.order() for name, source in present.items()},
            "sources": {name: to_dict(snapshots.get(name)) for name in names},
            "last_batches": {} if self._recent_batches is None else self._recent_batches.state_dict(),
            **({"additions": dict(additions)} if additions else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to the position of a state. Reads no data; sources that replay do so when they are next drawn.

        Raises:
            StateMismatch: The state is of other sources, lengths or another configuration; nothing has changed.
        """
        self._check_usable()
        if state.get("version") != _STATE_VERSION:
            raise StateMismatch(
                f"a MultiLoader's state of version {state.get('version')!r} can't be loaded here, where it is "
                f"{_STATE_VERSION}"
            )
        try:
            snapshots = {name: from_dict(entry) for name, entry in state["sources"].items()}
            additions = {str(name): int(number) for name, number in state.get("additions", {}).items()}
            added = self._others(state["schedule"], list(snapshots), additions)
            sources = {**{name: reader.source for name, reader in self._readers.items()}, **added}
            self._check_global_batches(state["global_batch_sizes"], sources)
            _check_orders(state.get("orders", {}), sources)
            last_batches = dict(state["last_batches"])
            self._leave_draws()
            self._schedule.load_state_dict(state["schedule"])
        except MtfError:
            raise
        except Exception as error:  # whatever a look into something of another kind raises
            raise StateMismatch(f"the loaders' state is malformed: {type(error).__name__}: {error}") from error
        for name, source in added.items():
            self._keep_replaced(name, 0 if name in self._initial else 1)
            self._add_reader(name, source)
        self._additions = additions
        began_with = {source["name"] for source in state["schedule"]["setups"][0]["sources"]}
        self._initial = {name: source for name, source in self._initial.items() if name in began_with}
        for name, reader in self._readers.items():
            reader.discard()
            if isinstance(reader, SourceReader):
                reader.source.close()
                reader.snapshot = snapshots.get(name)
        self._committed, self._committed_schedule = None, None
        self._ended_passes.clear()
        if self._recent_batches is not None:
            self._recent_batches.load_state_dict(last_batches)
        self._follow_schedule()
        self._show_config()

    def verify_recent_batches(self) -> None:
        """Fetches the last batches of every source again and compares; the position stays. Needs ``remember_batches``.

        Raises:
            SourceError: Sources aren't deterministic; the message names each.
        """
        if self._recent_batches is None:
            raise ConfigError("verify_recent_batches needs a MultiLoader with remember_batches=True")
        state, is_committed = self.state_dict(), self._committed is not None
        try:
            self._recent_batches.check(self._readers)
        finally:
            self.load_state_dict(state)
            if is_committed:
                self.commit()

    def _check_global_batches(self, saved: Mapping[str, int | None], sources: Mapping[str, Source]) -> None:
        """Raises if a source would cut its samples into other global batches than those of the state."""
        for name, source in sources.items():
            here, there = source.global_batch_size_on(self._world_size), saved.get(name)
            if here is None or there is None or here == there:
                continue
            size, rest = divmod(there, self._world_size)
            way_out = (
                f"batch_size={size}" if rest == 0 else f"an ArrayLoader with global_batch_size={there}"
            ) + f" goes on with it on {self._world_size} rank{'s' if self._world_size > 1 else ''}"
            raise StateMismatch(
                f"source {name!r} has global batches of {here} samples here ({self._world_size} ranks), but {there} in "
                f"the state, so the batches would be others: {way_out}"
            )

    def _others(
        self, schedule: Mapping[str, Any], names: Sequence[str], additions: Mapping[str, int]
    ) -> dict[str, Source]:
        """Sources of a state that aren't those here: they were added, or added again, before it or since."""
        initial = {source["name"]: source["length"] for source in schedule["setups"][0]["sources"]}
        lengths = {s["name"]: s["length"] for s in schedule["setups"][schedule["tail"]["setup"]]["sources"]}
        others: dict[str, Source] = {}
        for name in names:
            usual = 0 if name in initial else 1
            wanted, here = additions.get(name, usual), self._additions.get(name, usual)
            if name in self._readers and wanted == here:
                continue
            if (name, wanted) in self._replaced:
                others[name] = self._replaced[name, wanted]
            elif wanted == 0 and name in self._initial:
                others[name] = self._initial[name]
            elif name in self._factories or name not in self._readers:
                others[name] = self._made(name, name in initial)
            elif here or lengths[name] != initial[name]:
                raise StateMismatch(
                    f"the state goes on with the loader that was added as {name!r} during training (addition {wanted} "
                    f"of this name), and here is another: give it as loader_factories={{{name!r}: ...}}"
                )
        return others

    def _keep_replaced(self, name: str, usual: int) -> None:
        """Before a name gets another source: what isn't committed may be taken back."""
        if name in self._readers:  # after a resume a source that had been removed has none
            self._replaced[name, self._additions.get(name, usual)] = self._readers[name].source
            self._replaced_at = self._num_steps

    def _made(self, name: str, is_initial: bool) -> Source:
        """A source that was added during training, made again for a state that has it."""
        factory = self._factories.get(name)
        if factory is None:
            added = "" if is_initial else ", which was added during training"
            way_out = " under this name" if is_initial else f", or a function as loader_factories={{{name!r}: ...}}"
            raise StateMismatch(
                f"the state has a source {name!r}{added}, but here are only {list(self._readers)}: "
                f"pass its loader{way_out}"
            )
        return self._adapt(factory(), name)

    # Edits -----------------------------------------------------------------------------------------------------------

    def update_weights(self, weights: Sequence[float] | Mapping[str, float]) -> None:
        """New weights from the next step on, one per source in their order, or by name."""
        self._edit(lambda: self._schedule.update_weights(weights))

    def set_weight(self, name: str, weight: float) -> None:
        """A new weight of one source from the next step on."""
        self._edit(lambda: self._schedule.set_weight(name, weight))

    def set_strategy(self, strategy: Any, **options: Any) -> None:
        """Another way of mixing from the next step on; options are those of the configuration."""
        self._edit(lambda: self._schedule.set_strategy(strategy, **options))

    def rebuild_schedule(self) -> None:
        """Reads ``config`` again, which the user has changed; takes effect from the next step on.

        Raises:
            ConfigError: It can't be; ``config`` shows what is in force again, or a later edit would bring it back.
        """
        try:
            self._edit(lambda: self._schedule.set_config(self.config))
        except ConfigError:
            self._show_config()
            raise

    def add_source(self, name: str, loader: Any, weight: float | None = None) -> None:
        """Adds a loader from the next step on. A resume needs it again: by ``loaders`` or ``loader_factories``."""
        if not isinstance(name, str):
            raise ConfigError(f"the name of a loader must be a string, got {name!r}")
        if name in self.names:
            raise ConfigError(f"there is already a source {name!r}; the sources are {self.names}")
        source = self._adapt(loader, name)
        length = self._agreed_lengths({name: source})[name]
        self._begin_edit()
        was_known = name in self._names
        usual = 0 if name in self._initial else 1
        additions = {**self._additions, name: self._additions.get(name, usual) + 1} if was_known else self._additions
        before = self._schedule.state_dict()
        try:
            self._schedule.add_source(name, length=length, weight=weight)
            if was_known:
                self._keep_replaced(name, usual)
            self._add_reader(name, source)
        except BaseException:
            if name in self.names:  # Ctrl-C: the schedule mustn't draw what nobody reads
                self._schedule.load_state_dict(before)
                self._is_stale = True
            raise
        is_committed = self._committed == self._schedule.position
        self._additions = additions
        if is_committed:
            self._committed_additions = additions
            # Or it would have the state of a loader that had its name.
            saved = self._with_state[name].saved() if name in self._with_state else None
            self._committed_snapshots = {**self._committed_snapshots, name: saved}
        self._follow_schedule()
        self._show_config()

    def remove_source(self, name: str) -> None:
        """Takes a source out from the next step on."""
        self._edit(lambda: self._schedule.remove_source(name))
        self._readers[name].close()
        if self._recent_batches is not None:
            self._recent_batches.forget(name, is_committed=self._committed == self._schedule.position)

    def _edit(self, edit: Callable[[], Any]) -> None:
        self._check_usable()
        self._begin_edit()
        edit()
        self._follow_schedule()
        self._show_config()

    def _begin_edit(self) -> None:
        self._leave_draws()
        if self._committed == self._schedule.position:
            self._committed_schedule = None  # the edit is part of the state, and so is the end of a pass before it

    def _show_config(self) -> None:
        """Lets ``config`` show what the schedule's log made of it."""
        current = self._schedule.config
        for field in fields(current):
            setattr(self.config, field.name, getattr(current, field.name))

    # Everything else -------------------------------------------------------------------------------------------------

    def plan(self, epochs: int = 1) -> Any:
        """What will be drawn; see ``Schedule.plan``."""
        self._sync()
        return self._schedule.plan(epochs)

    def stats(self) -> dict[str, Any]:
        """Where time goes.

        Returns:
            ``num_steps``; ``wait_s``, seconds spent waiting for batches; by name ``source_wait_s``, the part of each
            source in it, ``in_flight``, batches requested from workers, and ``notes``, what doesn't hold for the
            source, in words; ``engine``, see ``Engine.stats``.
        """
        return {
            "num_steps": self._num_steps,
            "wait_s": sum(self._wait_s),
            "source_wait_s": dict(zip(self._names, self._wait_s, strict=False)),
            "in_flight": {name: reader.in_flight for name, reader in self._readers.items()},
            "notes": {name: notes for name, reader in self._readers.items() if (notes := reader.source.notes())},
            "engine": self._ahead.engine_stats(),
        }

    def close(self) -> None:
        """Ends worker processes and threads. May be called several times; the state can still be read."""
        if self._closed or os.getpid() != self._pid:
            return
        self._sync()
        self._closed = True
        self._num_drawn = self._refill_at = 0  # so that an iterator that was left asks whether it may go on
        for reader in self._readers.values():
            reader.close()
        if self._shared_workers is not None:
            self._shared_workers.close()
        self._ahead.close()
        if self._guard is not None:
            self._guard.close()

    def __enter__(self) -> MultiLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._closed:
            raise Closed("this MultiLoader is closed")
        if os.getpid() != self._pid:
            raise Closed("this MultiLoader belongs to the parent process: make one after the fork")

    def _adapt(self, loader: Any, name: str) -> Source:
        source = as_source(loader, name, seed_each_batch=self._seed_each_batch)
        if self.config.drop_last:
            source = source.drop_last()
        return source if self._world_size == 1 else source.shard(self._rank, self._world_size)

    def _share_workers(self, sources: Sequence[Source]) -> SharedWorkers | None:
        if self.config.shared_workers is None:
            return None
        from mtf.data.workers.shared import SharedWorkers

        return SharedWorkers(sources, self.config.shared_workers, fold_in(self._seed, "workers"))

    def _agreed_lengths(self, sources: Mapping[str, Source]) -> dict[str, int | None]:
        lengths = [source.num_batches() for source in sources.values()]
        sizes = [source.size_to_divide() for source in sources.values()]
        agreed = agree_on_lengths(
            list(sources), lengths, self.config.cycle_short_loaders, self._rank, self._world_size, sizes
        )
        return dict(zip(sources, agreed, strict=True))

    def _add_reader(self, name: str, source: Source) -> None:
        reader = self._ahead.reader(source, fold_in(fold_in(self._seed, "source"), name))
        self._readers[name] = reader
        self._with_state.pop(name, None)  # of a source removed before
        if isinstance(reader, SourceReader) and source.resume_mode is ResumeMode.STATEFUL:
            self._with_state[name] = reader


class _Batches(Iterator[Batch]):
    """The rest of an epoch; it ends where the epoch ends, and stays ended."""

    def __init__(self, loader: MultiLoader) -> None:
        self._loader: MultiLoader | None = loader
        self._epoch = loader._epoch

    def __next__(self) -> Batch:
        loader = self._loader
        if loader is None:
            raise StopIteration
        if loader._epoch != self._epoch:
            self._loader = None
            raise StopIteration
        try:
            return loader._next()
        except StopIteration:
            self._loader = None
            raise


def _check_orders(saved: Mapping[str, str | None], sources: Mapping[str, Source]) -> None:
    """Raises if a source would give its samples in another kind of order than that of the state."""
    for name, source in sources.items():
        here, there = source.order(), saved.get(name)
        if here is not None and there is not None and here != there:
            raise StateMismatch(
                f"source {name!r} gives its samples {here} here, but {there} in the state, so the batches would be "
                "others: give it the sampler and shuffling that the run began with"
            )


def _named_loaders(loaders: Any, names: Sequence[str]) -> dict[str, Any]:
    """The loaders by name, in the order of the configured names."""
    if isinstance(loaders, Mapping):
        if names and set(names) != set(loaders):
            raise ConfigError(
                f"the keys of the loaders, {list(loaders)}, must be exactly dataloader_names, {list(names)}"
            )
        return {name: loaders[name] for name in (names or loaders)}
    several = list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]
    if not several:
        raise ConfigError("loaders is empty: give at least one")
    names = list(names) or [f"dl{index}" for index in range(len(several))]
    if len(names) != len(several):
        raise ConfigError(f"dataloader_names has {len(names)} names for {len(several)} loaders: {names}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"dataloader_names must differ, but {twice!r} is there {names.count(twice)} times")
    return dict(zip(names, several, strict=True))


def _mover(
    device: torch.device | str | None, pin_memory: bool | None, device_prefetch: bool
) -> Callable[[Any], Any] | None:
    """What puts a batch on the device."""
    if device is None:
        return None
    from mtf.data.transfer import DeviceMover, move_to

    mover = DeviceMover(device, pin_memory=pin_memory)
    if mover.device.type == "cpu" or not device_prefetch:
        return lambda data: move_to(data, mover.device)
    return lambda data: mover.send(data).wait()
