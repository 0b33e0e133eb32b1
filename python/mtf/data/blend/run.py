"""What a run makes of a blend: its key, its edits, and how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtf import _core
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.blend.rows import NativeRows, Rows, RowSource, grown_rows, is_permuted, num_rows_of
from mtf.data.blend.sizes import BatchSizes
from mtf.data.sources.rest_of_pass import RestOfPass, rest_from
from mtf.data.tracing.row_counts import RowCount, RowCounts
from mtf.errors import ConfigError, StateMismatch
from mtf.random import Permutation
from mtf.schedule.caps import PassCaps
from mtf.schedule.schedule import Schedule

_STATE_VERSION = 1

WAY_OUT = "on_other_mixture='edit', of fit and load_state_dict, continues with what is given here as an edit"


@dataclass(frozen=True, repr=False)
class SampleTable:
    """Samples of a run, one per entry.

    Attributes:
        source: Index of the sample's source, int32 ``[samples]``.
        pass_: The source's pass, int64 ``[samples]``.
        place: The sample's place in the order of that pass, int64 ``[samples]``.
        row: Its row in the source (index in the array or dataset, number of the window), int64 ``[samples]``.
        names: Name of each source, by index.
    """

    source: NDArray[np.int32]
    pass_: NDArray[np.int64]
    place: NDArray[np.int64]
    row: NDArray[np.int64]
    names: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        """How many samples, and of which sources."""
        return f"SampleTable({len(self)} samples of {', '.join(self.names)})"

    def __iter__(self) -> Any:
        """Unpacks as ``source, pass_, row``."""
        return iter((self.source, self.pass_, self.row))

    def part(self, rank: int, world_size: int) -> SampleTable:
        """The samples that ``rank`` of ``world_size`` has of this batch."""
        share, num_greater = divmod(len(self), world_size)
        begin = rank * share + min(rank, num_greater)
        cut = slice(begin, begin + share + (rank < num_greater))
        return SampleTable(self.source[cut], self.pass_[cut], self.place[cut], self.row[cut], self.names)


class BlendRun:
    """One run of a blend: the schedule of its samples, with edits, and the rows that they are drawn from.

    All loops and ranks' parts that belong to one run share it.

    Args:
        config: The mixture of samples.
        rows: Per source what its rows are taken from.
        sizes: Samples of each batch.
        key: Key of the run's random numbers.
        factories: Make sources that a loaded state has and ``rows`` hasn't.
        native_parts: What the core needs to follow an edit: parts and columns.
        caps: How often sources may be passed through; None: any number.

    Attributes:
        natives: The core's sources that fetch for this run, by (rank, world size).
        version: Grows with each edit.
        next_batch: Number of the batch after the one taken last.
    """

    def __init__(
        self,
        config: MultiDataLoaderConfig,
        rows: Mapping[str, Rows],
        sizes: BatchSizes,
        key: int,
        factories: Mapping[str, Callable[[], Rows]],
        native_parts: Callable[[BlendRun], tuple[list[Any], list[Any]]],
        caps: PassCaps | None = None,
    ) -> None:
        self.key = key
        self.sizes = sizes
        self.rows = dict(rows)
        lengths = {name: num_rows_of(r) for name, r in rows.items()}
        self.schedule = Schedule(config, lengths, seed=schedule_seed(key), caps=caps)
        self.caps = caps
        self._num_known: tuple[int, int, bool] = (-1, 0, False)  # version, batches there are, whether these are all
        self.version = 0
        self.next_batch = 0
        self.batches_per_pass = 1  # of the blend; whoever makes the run sets it
        self.curve_counts_batches = False
        self.rests: dict[str, RestOfPass] = {}
        self.row_counts = RowCounts.at_start(self.schedule.source_table)
        self._declared_stages = sizes.stages
        self._given_rows = dict(rows)
        self._factories = factories
        self._counts_steps = self.schedule.mixture.order == "RANDOM"
        self._fingerprints = {**self.schedule.fingerprints, "sizes": _fingerprint(sizes)}
        self._initial = self.schedule.state_dict()
        self._edits: dict[str, Any] | None = None  # the schedule's state at the last edit
        self.natives: dict[tuple[int, int], _core.BlendSource] = {}
        self._native_parts = native_parts

    def source_key(self, name: str) -> int:
        """Key of a source's random numbers; that of a pass is ``fold_in(key, pass_)``."""
        return _core.fold_in(_core.fold_in(self.key, "source"), name)

    # Samples ---------------------------------------------------------------------------------------------------------

    def draws(self, begin: int, num: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Source, pass and place of the samples ``[begin, begin + num)`` of the run."""
        here = self.schedule.step  # at the last edit or behind it, where the names in force are known
        end = None if self.caps is None else self.schedule.end_by(begin, 0)
        self.schedule.seek(0, begin if end is None else end)
        try:
            return self.schedule.draws(num)
        finally:
            self.schedule.seek(0, here)

    def samples(self, begin: int, num: int) -> SampleTable:
        """The samples ``[begin, begin + num)`` of the run; reads no data."""
        source, passes, places = self.draws(begin, num)
        rows = np.empty(len(source), np.int64)
        names = self.schedule.names
        for count in self.row_counts.within(begin, begin + len(source)):
            part = np.arange(count.begin - begin, count.end - begin)
            for index in np.unique(source[part]).tolist():
                of_source = part[source[part] == index]
                for pass_ in np.unique(passes[of_source]):
                    at = of_source[passes[of_source] == pass_]
                    rows[at] = self.find_rows(index, int(pass_), places[at], count)
        return SampleTable(source, passes, places, rows, tuple(names))

    def num_batches(self, limit: int) -> int:
        """How many of the first ``limit`` batches there are. The run ends with the last whole batch before a sample
        that no source gives, because sources are spent."""
        if self.caps is None or limit == 0:
            return limit
        version, num, is_all = self._num_known
        if version == self.version and (is_all or limit <= num):
            return min(limit, num)
        end = self.schedule.end_by(self.sizes.start(limit) - 1, 0)
        self._num_known = self.version, limit if end is None else self.sizes.batch_of(end), end is not None
        return min(limit, self._num_known[1])

    def is_over(self, batch: int) -> bool:
        """Whether the run ends before batch ``batch``."""
        return self.caps is not None and self.num_batches(batch + 1) <= batch

    def spent(self, batch: int) -> list[str]:
        """Names of the sources that are spent before batch ``batch``."""
        if self.caps is None:
            return []
        places, table = self.schedule.places(self.sizes.start(batch), 0), self.schedule.source_table
        found = []
        for (name, length, _), (pass_, given) in zip(table, places, strict=False):
            most = self.caps.max_passes.get(name)
            if most is not None and length is not None and pass_ * length + given >= most * length:
                found.append(name)
        return found

    def why_over(self, batch: int) -> str:
        """Why the run ends before batch ``batch``, in words."""
        caps = self.caps
        assert caps is not None
        num = self.num_batches(batch + 1)
        if caps.stops:
            wanted = "a source that is spent is wanted in the next one"
        else:
            wanted = "no source with a weight has rows left"
        listed = ", ".join(f"{name!r}: {number}" for name, number in caps.max_passes.items())
        return f"it has {num} batches with max_passes={{{listed}}}, because {wanted}"

    def rows_of(self, name: str) -> Rows:
        """What the rows of a source are taken from.

        Raises:
            ConfigError: It was removed, and the state was loaded without it.
        """
        try:
            return self.rows[name]
        except KeyError:
            raise ConfigError(
                f"source {name!r} was part of the blend and isn't given here: give its data to see which rows it gave"
            ) from None

    def length_of(self, name: str) -> int:
        """Rows of a source in one pass."""
        return num_rows_of(self.rows_of(name))

    def find_rows(self, index: int, pass_: int, places: NDArray[np.int64], count: RowCount) -> NDArray[np.int64]:
        """The rows at successive places of a pass of a source.

        Args:
            index: Of the source.
            pass_: Its pass.
            places: As the draws count them that lie in ``count``.
            count: How many rows it had.
        """
        name = self.schedule.names[index]
        rows, key = self.rows_of(name), self.source_key(name)
        if isinstance(rows, RowSource):
            return places
        num, shift = count.of_pass(index, pass_)
        if is_permuted(rows):
            begin, end = int(places[0]) - shift, int(places[-1]) + 1 - shift  # the draws of a source follow one another
            return Permutation(num, _core.fold_in(key, pass_)).fill(begin, end)
        self.require_rows(index, pass_, count)
        return rows.core.find_rows(key, pass_, places.astype(np.uint64))

    def require_rows(self, index: int, pass_: int, count: RowCount) -> None:
        """Raises ``ConfigError`` where the data given here aren't those of a pass, or may be others, and say nothing
        of it."""
        name, (num, _) = self.schedule.names[index], count.of_pass(index, pass_)
        if self.row_counts.is_replaced_after(count.begin, index):
            raise ConfigError(
                f"pass {pass_} of source {name!r} can't be searched: the source was removed since and came back, "
                "perhaps with other data; ask for batches since then, or trace a checkpoint from before"
            )
        here = self.length_of(name)
        if num != here:
            raise ConfigError(
                f"pass {pass_} of source {name!r} can't be searched: it had {num} rows, and the data given here have "
                f"{here}; give the data it had then, or ask for batches since it was added again"
            )

    def require_readable(self, begin: int, table: SampleTable) -> None:
        """Raises ``ConfigError`` for samples from ``begin`` on that the core can't find by their places any more.

        It finds those of the pass under way when a source grew, and of later ones.
        """
        for count in self.row_counts.within(begin, begin + len(table)):
            part = slice(count.begin - begin, count.end - begin)
            drawn = np.unique(np.stack([table.source[part].astype(np.int64), table.pass_[part]]), axis=1)
            for index, pass_ in drawn.T.tolist():
                rows, now = self.rows_of(table.names[index]), self.row_counts.now
                if isinstance(rows, NativeRows) and count.of_pass(index, pass_) != now.of_pass(index, pass_):
                    raise ConfigError(
                        f"samples before {now.begin} can't be read: source {table.names[index]!r} has other rows "
                        "since; trace says which rows they are, to be read from the data"
                    )

    # Edits -----------------------------------------------------------------------------------------------------------

    def edit(self, change: Callable[[Schedule], Any]) -> None:
        """Applies ``change`` to the schedule from the next batch on."""
        here = self.sizes.start(self.num_batches(self.next_batch))
        self.schedule.seek(0, here)
        change(self.schedule)
        self.row_counts = self.row_counts.edited(here, self.schedule.source_table)
        self._changed()

    def add_source(
        self, name: str, rows: Rows, weight: float | None, max_passes: int | None = None, per_draw: float = 1.0
    ) -> None:
        """One more source, from the next batch on."""
        known = self.rows.get(name)
        self.rows[name] = rows
        try:
            self.edit(
                lambda schedule: schedule.add_source(
                    name, num_rows_of(rows), weight, max_passes=max_passes, per_draw=per_draw
                )
            )
        except BaseException:
            if known is None:
                del self.rows[name]
            else:
                self.rows[name] = known
            raise

    def set_cap(self, name: str, max_passes: int | None) -> None:
        """What ``add_source`` said of a source's passes."""
        if self.caps is not None:
            others = {other: number for other, number in self.caps.max_passes.items() if other != name}
            self.caps = replace(self.caps, max_passes={**others, **({} if max_passes is None else {name: max_passes})})

    def _changed(self) -> None:
        self._edits = self.schedule.state_dict()
        self._let_follow()

    def _let_follow(self) -> None:
        """What was fetched ahead was drawn from another schedule."""
        self.version += 1
        for native in self.natives.values():
            native.follow(self.schedule, *self._native_parts(self))

    # State -----------------------------------------------------------------------------------------------------------

    def state_dict(self, pending: bool = False) -> dict[str, Any]:
        """What a position doesn't say: edits, and counts where the order's counts can't be computed; without the batch
        taken last where that is ``pending``."""
        edits = self._edits
        if self._counts_steps:
            self.schedule.seek(0, self.sizes.start(self.num_batches(self.next_batch - pending)))
            edits = self.schedule.state_dict()
        rests = {name: rest.to_list() for name, rest in self.rests.items()}
        return {
            "version": _STATE_VERSION,
            "fingerprints": self._fingerprints,
            "schedule": edits,
            "initial": self._initial,
            "stages": [list(stage) for stage in self.sizes.stages],
            "declared_stages": [list(stage) for stage in self._declared_stages],
            "batches_per_pass": self.batches_per_pass,
            **({"rests": rests} if rests else {}),
        }

    def check(self, state: Mapping[str, Any]) -> dict[str, Rows]:
        """Sources that the state has and this run hasn't, made by the factories.

        Raises:
            StateMismatch: The state is of another blend, or has a source that nobody here can make.
        """
        if state.get("version") != _STATE_VERSION:
            raise StateMismatch(f"a blend's state of version {state.get('version')!r} can't be loaded here")
        saved = state["fingerprints"]
        mine = self._fingerprints
        differences = [name for name in {**mine, **saved} if saved.get(name) != mine.get(name)]
        if differences:
            differ = "differs" if differences == ["seed"] else "differ"
            seed_stays = "no edit can change the seed, so start a new run for another one"
            raise StateMismatch(
                f"the state belongs to another blend: its {', '.join(differences)} {differ}, so its batches would be "
                "others; give the sources, weights, sizes and seed that the run began with, and edit it then; "
                f"{seed_stays if 'seed' in differences else 'or ' + WAY_OUT}"
            )
        if state["schedule"] is None:
            return {}
        table = state["schedule"]["setups"][state["schedule"]["tail"]["setup"]]["sources"]
        made = {}
        for entry in table:
            name = entry["name"]
            if not entry["present"] or (name in self.rows and num_rows_of(self.rows[name]) == entry["length"]):
                continue
            if name not in self._factories:
                raise StateMismatch(
                    f"the state has a source {name!r} of {entry['length']} rows, which was added during training: give "
                    f"a function that makes it as source_factories={{{name!r}: ...}}"
                )
            made[name] = self._factories[name]()
        return made

    @property
    def initial(self) -> dict[str, Any]:
        """State of the schedule before any edit."""
        return self._initial

    @property
    def fingerprints(self) -> dict[str, int]:
        """What a state is compared with."""
        return self._fingerprints

    @property
    def layout(self) -> Any:
        """What the core's sources are made with, besides the schedule."""
        rests = sorted((name, tuple(rest.to_list())) for name, rest in self.rests.items())
        return self.sizes.stages, self.batches_per_pass, rests

    def _take_layout(self, state: Mapping[str, Any]) -> None:
        """Sizes of batches, and passes that began with fewer rows, of a run that was resumed with another blend."""
        before, rests_before = self.layout, self.rests
        self.sizes = BatchSizes([(begin, size) for begin, size in state.get("stages", self.sizes.stages)])
        self.batches_per_pass = state.get("batches_per_pass", self.batches_per_pass)
        self.rests = {name: rest for name, entry in state.get("rests", {}).items() if (rest := rest_from(entry))}
        for name, whole in self._given_rows.items():
            rest = self.rests.get(name)
            if rest is not None and isinstance(whole, NativeRows):
                self.rows[name] = grown_rows(whole, rest.num_samples, rest.pass_)
            elif name in rests_before:
                self.rows[name] = whole
        if self.layout != before:
            self.natives.clear()

    def _counts_of(self, state: Mapping[str, Any]) -> RowCounts:
        schedule = self.schedule
        rests = {schedule.names.index(name): (rest.pass_, rest.num_samples) for name, rest in self.rests.items()}

        def passes_at(position: int) -> list[int]:
            return [pass_ for pass_, _ in schedule.places(position, 0)]

        return RowCounts.from_state(state["schedule"] or self._initial, rests, passes_at)

    def load(self, state: Mapping[str, Any], next_batch: int) -> None:
        """Goes to a state from ``state_dict`` at batch ``next_batch``.

        Raises:
            StateMismatch: See ``check``; nothing has changed.
        """
        made = self.check(state)
        self.schedule.load_state_dict(self._initial if state["schedule"] is None else state["schedule"])
        self.rows.update(made)
        self._take_layout(state)
        self.row_counts = self._counts_of(state)
        self._edits = state["schedule"]
        self.next_batch = next_batch
        self._let_follow()
        for native in self.natives.values():
            native.num_taken = next_batch


def schedule_seed(key: int) -> int:
    """Seed of the schedule of a run with ``key``."""
    return _core.fold_in(key, "blend")


def _fingerprint(sizes: BatchSizes) -> int:
    key = 0
    for number in (number for stage in sizes.stages for number in stage):
        key = _core.fold_in(key, number)
    return key


def require_names(given: Sequence[str]) -> None:
    """Raises ``ConfigError`` unless there is at least one source and every name is a string."""
    if not given:
        raise ConfigError("sources is empty: give at least one, as {name: data}")
    for name in given:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"names of sources must be strings that aren't empty, but one is {name!r}")
