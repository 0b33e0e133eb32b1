"""What a MultiLoader knows of the rows in its batches."""

from __future__ import annotations

from typing import Any

from mtf.config.checks import nearest
from mtf.data.batch import Batch
from mtf.data.loader_view import LoaderView
from mtf.data.sources.base import Source
from mtf.data.tracing.samples import BatchTrace, DrawnSample, Sought
from mtf.data.tracing.steps import find_steps
from mtf.errors import ConfigError
from mtf.random import fold_in


class TracedLoader(LoaderView):
    """The part of a MultiLoader that names the rows of a step, and the steps of a row."""

    _seed: int

    def trace(self, batch: Batch | None = None, *, epoch: int | None = None, step: int | None = None) -> BatchTrace:
        """Which rows a batch has, on all ranks together: of a blend, an array loader or token rows. Reads no data.

        Args:
            batch: A batch that was handed out.
            epoch: Instead of ``batch``, an epoch; None: the one under way.
            step: And a step of it.

        Raises:
            ConfigError: Neither or both are given, there is no such step, or the source can't say which rows it gives;
                a step before the source's data were replaced under its name, or before an edit of which the state
                doesn't say how batches were cut.
        """
        if (batch is None) == (step is None):
            raise ConfigError("give either a batch that was handed out, or step (and epoch)")
        if batch is not None:
            name, pass_, number, at = batch.name, batch.pass_, batch.batch, (batch.epoch, batch.step)
        else:
            assert step is not None
            at = (self.epoch if epoch is None else epoch), step
            draw = self._cursor.schedule.at(step, at[0])
            name, pass_, number = self._cursor.names[draw.source], draw.pass_, draw.batch
        source = self._sources.past_cuts.source_at(name, self.source(name), *at)
        return source.trace_batch(pass_, number, self._key_of(name))

    def find(
        self, source: str, *, row: int | None = None, document: int | None = None, epoch: int | None = None
    ) -> list[DrawnSample]:
        """The steps of an epoch that train on a row of a source, or on a document: the inverse of ``trace``.

        Args:
            source: Name of the source; for a blend ``"blend/source"``.
            row: A row of the source, as ``trace`` gives it.
            document: A document of its corpus; give this or ``row``.
            epoch: The epoch; None: the one under way.

        Raises:
            ConfigError: There is no such source, row or document, or the source can't say which rows it gives; an epoch
                before the last edit or loaded state, or whose end isn't known; steps that ``trace`` refuses.
        """
        if (row is None) == (document is None):
            raise ConfigError(f"give either row or document, but they are {row!r} and {document!r}")
        name, _, within = source.partition("/")
        number = self.epoch if epoch is None else epoch
        schedule = self._cursor.schedule
        end = schedule.num_steps(number)
        if end is None:
            raise ConfigError(f"epoch {number} can't be searched: how many steps it has isn't known yet")
        found, sought = self.source(name), Sought(row, document, within or None)
        past = self._sources.past_cuts
        return find_steps(found, past, name, sought, self._key_of(name), schedule, number, end)

    def record(self) -> dict[str, Any]:
        """How the rows of its sources are numbered, by name, for a checkpoint's manifest; None for those that can't
        say."""
        return {name: reader.source.record() for name, reader in self._sources.readers.items()}

    def source(self, name: str) -> Source:
        """What reads a loader: the loader itself, where that is a source, or this rank's part of it.

        Raises:
            ConfigError: There is no loader of this name.
        """
        if name not in self._sources.readers:
            known = list(self._sources.readers)
            raise ConfigError(f"there is no source {name!r}{nearest(name, known)} (sources: {known})")
        return self._sources.readers[name].source

    def _key_of(self, name: str) -> int:
        return fold_in(fold_in(self._seed, "source"), name)
