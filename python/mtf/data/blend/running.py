"""The run that a blend is in: its key, the edits made so far, and the state that a loop keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.blend.resume_edit import edited_run
from mtf.data.blend.rows import Rows, as_rows, columns_of
from mtf.data.blend.run import BlendRun
from mtf.data.blend.sizes import BatchSizes
from mtf.data.blend.weights_count import RowWeights
from mtf.data.sources.base import Snapshot, Source
from mtf.errors import ConfigError
from mtf.random import fold_in
from mtf.schedule.caps import PassCaps


class RunningBlend(Source):
    """The part of a Blend that holds its run. The parts of ranks share it."""

    _rows: dict[str, Rows]
    _factories: dict[str, Callable[[], Any]]
    _own_sizes: BatchSizes
    _own_batches_per_pass: int
    _curve_counts_batches: bool
    _config: MultiDataLoaderConfig
    _caps: PassCaps | None
    _row_weights: RowWeights
    _by_source: bool
    _key: int | None
    _rank: int
    _world_size: int
    _current: list[BlendRun]

    @property
    def _run(self) -> BlendRun:
        """The run of the loop that the blend is in."""
        return self._current[0]

    @property
    def _sizes(self) -> BatchSizes:
        """Samples of each batch of the run, which a resume with another blend may have changed on the way."""
        return self._run.sizes

    @property
    def _batches_per_pass(self) -> int:
        return self._run.batches_per_pass

    @property
    def names(self) -> list[str]:
        """Names of the sources in force, in the order of their indices."""
        schedule = self._run.schedule
        return [name for name, here in zip(schedule.names, schedule.present, strict=True) if here]

    def _number(self, pass_: int, batch: int) -> int:
        return pass_ * self._batches_per_pass + batch

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
        return key_of(0)

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


def key_of(seed: Any) -> int:
    """The key of a blend with a seed of its own, or iterated alone.

    Raises:
        ConfigError: ``seed`` isn't an integer in [0, 2**64).
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be an integer in [0, 2**64), but is {seed!r}")
    return fold_in(fold_in(int(seed), "source"), "")
