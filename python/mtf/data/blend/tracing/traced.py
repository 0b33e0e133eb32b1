"""What a blend knows of the rows in its batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mtf.config.checks import whole_number
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.blend.running import RunningBlend
from mtf.data.blend.tracing.trace import Layout, find_samples, record_of, trace_batch
from mtf.data.tracing.samples import BatchTrace, SamplePlace, Sought
from mtf.errors import ConfigError
from mtf.schedule.caps import PassCaps


class TracedBlend(RunningBlend):
    """The part of a Blend that names the rows of a batch, and the batches of a row."""

    def trace(self, step: int, *, world_size: int | None = None) -> BatchTrace:
        """Where each sample of batch ``step`` comes from: rank and row in its batch, source, pass and row; for token
        rows ``trace(step).tokens(place)`` names files, documents and tokens. Reads no data.

        It means the run that ``samples`` means, with the edits made so far.

        Args:
            step: Number of the batch, counted over all passes.
            world_size: Ranks that share the batch; None: as many as this blend is divided among.

        Raises:
            ConfigError: A negative number, or a batch before the edits that a loaded state keeps.
        """
        step = whole_number("step", step, 0)
        return trace_batch(
            self._run, step, Layout(self._world_size if world_size is None else world_size, self._by_source)
        )

    def find(
        self,
        source: str,
        *,
        row: int | None = None,
        document: int | None = None,
        start: int = 0,
        stop: int | None = None,
        world_size: int | None = None,
    ) -> list[SamplePlace]:
        """The samples that are a row of a source, or hold a token of a document of a corpus, in their order.

        The inverse of ``trace``: permutation and schedule are inverted, so that a pass costs microseconds however far
        it is; with order RANDOM all batches from the first on are drawn again. Reads no tokens, but for the first use
        of ``TokenCorpus.documents`` in a corpus with ``eos``.

        Args:
            source: Name of the source.
            row: A row of the source, as ``trace`` gives it.
            document: A document, counted in the corpus; give this or ``row``.
            start: The first batch to look in.
            stop: The batch to stop before; None: the end of the blend's pass that the run is in.
            world_size: As for ``trace``.

        Raises:
            ConfigError: There is no such source, row or document; batches before the edits that a loaded state keeps.
        """
        run = self._run
        self._mark_taken(run)
        if stop is None:
            stop = (run.next_batch // self._batches_per_pass + 1) * self._batches_per_pass
        start, stop = whole_number("start", start, 0), whole_number("stop", stop, 0)
        layout = Layout(self._world_size if world_size is None else world_size, self._by_source)
        return find_samples(run, source, row, document, (start, stop), layout)

    def trace_batch(self, pass_: int, batch: int, key: int) -> BatchTrace:
        self._run_of(key)
        return self.trace(self._number(pass_, batch))

    def find_batches(self, sought: Sought, passes: range, key: int) -> list[SamplePlace]:
        self._run_of(key)
        if sought.within is None:
            raise ConfigError(f"source {self.name!r} is a blend: name the source in it, one of {list(self.names)}")
        first, last = self._number(passes.start, 0), self._number(passes.stop, 0)
        return self.find(sought.within, row=sought.row, document=sought.document, start=first, stop=last)

    def follow_record(self, record: Mapping[str, Any]) -> None:
        """Becomes the run that ``record`` described, at its first batch."""
        self._config = MultiDataLoaderConfig.from_dict(record["config"])
        if record["caps"] is not None:
            self._caps = PassCaps(**record["caps"])
            self._row_weights.hold(self._caps.per_draw)
        self.begin_run(int(record["key"]))

    def record(self) -> dict[str, Any]:
        return {
            "kind": "blend",
            "key": str(self._run.key),
            "config": self._config.to_dict(),
            "caps": None if self._caps is None else asdict(self._with_counts(self._caps)),
            "sizes": self._own_sizes.stages,
            "batches_per_pass": self._batches_per_pass,
            "by_source": self._by_source,
            "sources": {name: record_of(rows) for name, rows in self._run.rows.items()},
        }
