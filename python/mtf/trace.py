"""What a run trained on, from one of its checkpoints: the rows of an update, and the updates of a row or document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mtf.checkpoint.format.codec import join
from mtf.checkpoint.format.hashing import bounded, read_verified
from mtf.checkpoint.format.json_io import MAX_JSON_BYTES, load_json
from mtf.checkpoint.format.manifest import SCHEDULE_FILE, STATE_FILE, read_manifest
from mtf.checkpoint.storage.registry import open_checkpoint
from mtf.config.checks import nearest
from mtf.data.determinism.recent_batches import from_dict
from mtf.data.sources.base import Source
from mtf.data.sources.rest_of_pass import rest_from
from mtf.data.tracing.past_cuts import PastCuts
from mtf.data.tracing.recorded import source_from
from mtf.data.tracing.samples import DrawnSample, SamplePlace, Sought, TokenOrigin, described
from mtf.data.tracing.steps import find_steps
from mtf.errors import CheckpointError, ConfigError
from mtf.formatting import text_table
from mtf.random import fold_in
from mtf.schedule.schedule import Schedule


class TracedBatch(NamedTuple):
    """One batch of a run.

    Attributes:
        update: The update that trains on it; the first one is 1, as in logs and names of checkpoints.
        epoch: Its epoch.
        step: Its step in the epoch.
        source: Name of its source in the mixture.
        pass_: The source's pass.
        batch: Number of the batch in this pass.
        is_left_out: Whether the run leaves out the data of this update (``fit(skip=...)``, ``SpikeGuard``).
        rows: Its samples, each with the origins of its tokens; None where the source can't say.
    """

    update: int
    epoch: int
    step: int
    source: str
    pass_: int
    batch: int
    is_left_out: bool
    rows: list[tuple[SamplePlace, list[TokenOrigin]]] | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        rows = None
        if self.rows is not None:
            rows = [{**sample._asdict(), "tokens": [o._asdict() for o in origins]} for sample, origins in self.rows]
        return {**self._asdict(), "rows": rows}


class TracedSample(NamedTuple):
    """A sample of a run.

    Attributes:
        update: The update that trains on it, counted from 1.
        drawn: Epoch, step and place.
    """

    update: int
    drawn: DrawnSample

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        drawn = self.drawn
        return {"update": self.update, "epoch": drawn.epoch, "step": drawn.step, "sample": drawn.sample._asdict()}


class RunTrace:
    """The batches of the run that a checkpoint is of. Reads no weights and no data.

    Args:
        path: The checkpoint's folder, or its URL.
        corpora: Name of a source -> files of its corpus, where they aren't where they were.

    Attributes:
        notes: Why files and documents can't be named, by source.
        world_size: Ranks of the run.
        accumulation: Batches of an update.

    Raises:
        CheckpointError: It is damaged, or no checkpoint of a mixture.
        ConfigError: Corpora that the run didn't have.
    """

    def __init__(self, path: str | Path, corpora: Mapping[str, str] | None = None) -> None:
        """See the class."""
        folder = open_checkpoint(path)
        manifest = read_manifest(folder)
        if not manifest["files"].get(SCHEDULE_FILE, {}).get("size"):
            raise CheckpointError(f"{folder.url}: has no schedule: it was saved before a fit had loaders")
        files = manifest["files"]
        self._schedule = Schedule.from_bytes(
            read_verified(folder, SCHEDULE_FILE, files[SCHEDULE_FILE], bounded(MAX_JSON_BYTES))
        )
        label = f"{folder.url}/{STATE_FILE}"
        encoded = load_json(read_verified(folder, STATE_FILE, files[STATE_FILE], bounded(MAX_JSON_BYTES)), label)
        try:
            state = encoded["tree"]["state"]["trainer"]
            self._updates = int(state["global_step"])
            self.world_size = 1 + len(state["other_ranks"])
            snapshots = state["multi"]["sources"]
            self._rests = {name: rest_from(entry) for name, entry in state["multi"].get("rests", {}).items()}
            past_cuts = state["multi"].get("past_cuts", {})
            self._skips = [(int(begin), int(end)) for begin, end in state.get("skips", {}).get("ranges", [])]
            self.accumulation = int(manifest["config"]["performance"]["gradient_accumulation_steps"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{label}: isn't the state of a trainer: {error!r}") from None
        self._past_cuts = PastCuts.from_state(
            {
                "schedule": self._schedule.state_dict(),
                "past_cuts": join({"tree": past_cuts, "tensors": []}, {}, ("past",)),
            }
        )
        self.notes: dict[str, str] = {}
        self._sources: dict[str, Source | None] = {}
        records = join({"tree": manifest.get("data") or {}, "tensors": []}, {}, ("manifest", "data"))
        self._check_corpora(records, corpora or {})
        for name in self._schedule.names:
            record = records.get(name)
            self._sources[name] = None if record is None else source_from(name, record, corpora or {}, self.notes)
            self._divide(name, snapshots.get(name))

    def _check_corpora(self, records: Mapping[str, Any], corpora: Mapping[str, str]) -> None:
        known: set[str] = set()
        for name, record in records.items():
            if record is not None:
                known |= set(record["sources"]) if record["kind"] == "blend" else {name}
        for name in corpora:
            if name not in known:
                raise ConfigError(f"--corpus: the run has no source {name!r}{nearest(name, known)}")

    def _divide(self, name: str, saved: Any) -> None:
        """Puts a source to the state that the checkpoint has of it, and divides it among the run's ranks."""
        source = self._sources[name]
        if source is None:
            return
        if source.has_run_state and saved is not None:
            snapshot = join({"tree": saved, "tensors": []}, {}, ("sources", name))
            source.load_run_state(from_dict(snapshot))
        rest = self._rests.get(name)
        if rest is not None:
            source = source.finish_pass(rest)
        self._sources[name] = source.shard(0, self.world_size) if self.world_size > 1 else source

    # Updates and batches ---------------------------------------------------------------------------------------------

    @property
    def _num_updates_here(self) -> int:
        """Updates of the checkpoint's epoch so far."""
        return -(-int(self._schedule.step) // self.accumulation)

    def batches_of(self, update: int) -> list[tuple[int, int]]:
        """(epoch, step) of the batches that update ``update`` trains on; the first update is 1.

        Raises:
            ConfigError: It lies in an epoch before the checkpoint's, of which it knows nothing, or after a point that
                isn't known yet.
        """
        if update < 1:
            raise ConfigError(f"updates are counted from 1, but update {update} is asked for")
        epoch, first = int(self._schedule.epoch), self._updates - self._num_updates_here + 1
        if update < first:
            raise ConfigError(
                f"update {update} lies before epoch {epoch}, which begins with update {first}: a checkpoint knows its "
                "own epoch and later ones; name one of that epoch"
            )
        while True:
            end = self._end_of(epoch)
            here = -(-end // self.accumulation)
            if update < first + here:
                begin = (update - first) * self.accumulation
                return [(epoch, step) for step in range(begin, min(begin + self.accumulation, end))]
            epoch, first = epoch + 1, first + here

    def batch(self, number: int) -> tuple[int, int]:
        """(epoch, step) of batch ``number`` of the run, counted from 0.

        Raises:
            ConfigError: As for ``batches_of``.
        """
        epoch = int(self._schedule.epoch)
        first = self._schedule.first_step(epoch)
        if number < first:
            raise ConfigError(
                f"batch {number} lies before epoch {epoch}, which begins with batch {first}: a checkpoint knows its "
                "own epoch and later ones; name one of that epoch"
            )
        while number - first >= (end := self._end_of(epoch)):
            epoch, first = epoch + 1, first + end
        return epoch, number - first

    def update_of(self, epoch: int, step: int) -> int:
        """The update that trains on a batch: the inverse of ``batches_of``."""
        first = self._updates - self._num_updates_here + 1
        for before in range(int(self._schedule.epoch), epoch):
            first += -(-self._end_of(before) // self.accumulation)
        return first + step // self.accumulation

    def _end_of(self, epoch: int) -> int:
        end: int | None = self._schedule.num_steps(epoch)
        if end is None:
            raise ConfigError(f"how many batches epoch {epoch} has isn't known yet")
        return end

    # What they hold --------------------------------------------------------------------------------------------------

    def trace(self, epoch: int, step: int, rank: int | None = None, row: int | None = None) -> TracedBatch:
        """The rows of a batch; with ``rank`` those of one rank, with ``row`` that row of a rank's batch."""
        draw = self._schedule.at(step, epoch)
        name = self._schedule.names[draw.source]
        source, rows = self._sources[name], None
        if source is not None:
            source = self._past_cuts.source_at(name, source, epoch, step)
            trace = source.trace_batch(draw.pass_, draw.batch, self._key_of(name))
            chosen = [s for s in trace if rank in (None, s.rank) and row in (None, s.rank_row)]
            rows = [(sample, trace.tokens(sample.place)) for sample in chosen]
            if not rows:
                raise ConfigError(
                    f"batch {draw.batch} of {name!r} has {len(trace)} samples on {self.world_size} rank(s), none of "
                    f"them on rank {rank} at row {row}"
                )
        update = self.update_of(epoch, step)
        is_left_out = any(begin < update <= end for begin, end in self._skips)  # they count updates from 0
        return TracedBatch(update, epoch, step, name, draw.pass_, draw.batch, is_left_out, rows)

    def find(self, source: str, row: int | None, document: int | None) -> list[TracedSample]:
        """The updates of the checkpoint's epoch that train on a row or document.

        Args:
            source: Name of a source; of one in a blend ``"blend/source"``, or its own name where that is unique.
            row: A row of it.
            document: A document of its corpus; give this or ``row``.

        Raises:
            ConfigError: There is no such source, row or document, or its rows aren't recorded.
        """
        if (row is None) == (document is None):
            raise ConfigError(f"give either row or document, but they are {row!r} and {document!r}")
        name, within = self._resolve(source)
        found = self._sources[name]
        if found is None:
            raise ConfigError(f"the checkpoint doesn't say how the rows of {name!r} are numbered")
        if document is not None and (within or name) in self.notes:
            raise ConfigError(self.notes[within or name])
        epoch = int(self._schedule.epoch)
        end = self._end_of(epoch)
        sought, key = Sought(row, document, within), self._key_of(name)
        steps = find_steps(found, self._past_cuts, name, sought, key, self._schedule, epoch, end)
        return [TracedSample(self.update_of(drawn.epoch, drawn.step), drawn) for drawn in steps]

    def _resolve(self, source: str) -> tuple[str, str | None]:
        """Name of the source in the mixture, and of the one in it where it is a blend."""
        name, _, within = source.partition("/")
        if within or (name in self._sources and not _names_in(self._sources[name])):
            inside = _names_in(self._sources.get(name))
            if not within or within in inside:
                return name, within or None
        holding = [outer for outer, found in self._sources.items() if source in _names_in(found)]
        if len(holding) == 1:
            return holding[0], source
        known = [
            f"{outer}/{inner}" if inner else outer
            for outer, found in self._sources.items()
            for inner in _names_in(found) or ("",)
        ]
        raise ConfigError(f"the run has no source {source!r}{nearest(source, known)} (sources: {known})")

    def _key_of(self, name: str) -> int:
        return fold_in(fold_in(self._schedule.seed, "source"), name)


def _names_in(source: Source | None) -> tuple[str, ...]:
    """Names of the sources of a blend; nothing of others."""
    return source.source_names if source is not None and source.names_rows else ()


def text_of(batch: TracedBatch) -> str:
    """A batch in words: where it is, and a table of its samples."""
    head = (
        f"update {batch.update}: epoch {batch.epoch}, step {batch.step}: batch {batch.batch} of pass {batch.pass_} of "
        f"{batch.source!r}{', left out' if batch.is_left_out else ''}"
    )
    if batch.rows is None:
        return f"{head}; the checkpoint doesn't say how its rows are numbered"
    rows = [(s.place, s.rank, s.rank_row, s.source, s.pass_, s.row, described(origins)) for s, origins in batch.rows]
    return text_table(head, ("place", "rank", "row", "source", "pass", "row of the source", "tokens"), rows)


def found_text(found: list[TracedSample]) -> str:
    """Samples that were found, as a table."""
    rows = [
        (one.update, one.drawn.epoch, one.drawn.step, s.place, s.rank, s.rank_row, s.pass_, s.row)
        for one in found
        for s in [one.drawn.sample]
    ]
    columns = ("update", "epoch", "step", "place", "rank", "row", "pass", "row of the source")
    return text_table(f"{len(found)} samples", columns, rows)
