"""Where samples come from: the place of each in a run, and the files, documents and tokens behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, overload

from mtf.formatting import text_table

_MOST_SHOWN = 32


class TokenOrigin(NamedTuple):
    """Tokens that lie together in one file and one document.

    Attributes:
        file: The file, or which array of the corpus.
        begin: The first token, counted in the file.
        end: One after the last token.
        document: The document, counted in the corpus; None if the corpus doesn't know its documents (with ``eos`` the
            first use of ``TokenCorpus.documents`` finds them).
        offset: Which token of the document ``begin`` is; None as ``document``.
    """

    file: str
    begin: int
    end: int
    document: int | None
    offset: int | None


class Provenance(Protocol):
    """What rows know of the documents behind them."""

    def trace(self, pass_: int, place: int, *, key: int | None = None) -> list[TokenOrigin]:
        """Where the tokens of the row at a place of a pass come from, in the row's order."""

    def find(self, document: int, pass_: int, *, key: int | None = None) -> list[int]:
        """The places of a pass whose rows have a token of a document, sorted."""

    def record(self) -> dict[str, Any]:
        """How the rows are numbered, as plain data, so that another process can trace them."""


class SamplePlace(NamedTuple):
    """One sample of a run: the batch that it is in, and the row that it is.

    Attributes:
        step: Number of the batch, counted over all passes of what gives it.
        place: The sample's place in the global batch.
        rank: The rank that has it.
        rank_row: Its row in that rank's batch; with ``by_source`` in the source's part of it.
        source: Name of its source.
        pass_: The source's pass.
        row: Its row in the source: index in the array or dataset, number of the window or packed row.
    """

    step: int
    place: int
    rank: int
    rank_row: int
    source: str
    pass_: int
    row: int


class DrawnSample(NamedTuple):
    """A sample of a mixture of loaders: the step that trains on it, and its place in that step's batch.

    Attributes:
        epoch: The epoch.
        step: The step within the epoch.
        sample: Its place in the batch.
    """

    epoch: int
    step: int
    sample: SamplePlace


class Sought(NamedTuple):
    """What is looked for: a row of a source, or a document of its corpus; one of them is None.

    Attributes:
        row: A row's number in the source.
        document: A document, counted in the corpus.
        within: In a blend, the name of its source; None elsewhere.
    """

    row: int | None
    document: int | None
    within: str | None = None


def rank_of(place: int, size: int, world_size: int) -> tuple[int, int]:
    """The rank that has a place of a global batch of ``size`` samples, and the first place that this rank has."""
    share, num_greater = divmod(size, world_size)
    in_greater = num_greater * (share + 1)
    if place < in_greater:
        rank = place // (share + 1)
        return rank, rank * (share + 1)
    rank = num_greater + (place - in_greater) // share
    return rank, in_greater + (rank - num_greater) * share


class BatchTrace(Sequence[SamplePlace]):
    """The samples of one global batch, in its order. ``print(trace)`` shows a table.

    Args:
        step: Number of the batch.
        world_size: Ranks that share the batch.
        samples: Its samples.
        tokens_of: Gives the origins of the tokens of sample ``place``; empty where its source knows none.
    """

    def __init__(
        self, step: int, world_size: int, samples: list[SamplePlace], tokens_of: Callable[[int], list[TokenOrigin]]
    ) -> None:
        self.step = step
        self.world_size = world_size
        self._samples = samples
        self._tokens_of = tokens_of

    def __len__(self) -> int:
        """Samples of the global batch."""
        return len(self._samples)

    @overload
    def __getitem__(self, place: int) -> SamplePlace: ...
    @overload
    def __getitem__(self, place: slice) -> list[SamplePlace]: ...
    def __getitem__(self, place: int | slice) -> SamplePlace | list[SamplePlace]:
        return self._samples[place]

    def __iter__(self) -> Iterator[SamplePlace]:
        return iter(self._samples)

    def tokens(self, place: int) -> list[TokenOrigin]:
        """Files, documents and token ranges of a sample, in the row's order; empty where its source has no tokens.

        Args:
            place: The sample's place in the global batch.

        Raises:
            IndexError: There is no such place.
        """
        if not 0 <= place < len(self):
            raise IndexError(f"place must be in [0, {len(self)}), but is {place}")
        return self._tokens_of(place)

    def of_rank(self, rank: int, row: int | None = None) -> list[SamplePlace]:
        """The samples of one rank, or the one at a row of its batch."""
        return [s for s in self._samples if s.rank == rank and row in (None, s.rank_row)]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        samples = [
            {**sample._asdict(), "tokens": [origin._asdict() for origin in self.tokens(sample.place)]}
            for sample in self._samples
        ]
        return {"step": self.step, "world_size": self.world_size, "samples": samples}

    def __str__(self) -> str:
        """A table of the samples; of a large batch, of the first ones."""
        shown = self._samples[:_MOST_SHOWN]
        rows = [(s.place, s.rank, s.rank_row, s.source, s.pass_, s.row, described(self.tokens(s.place))) for s in shown]
        columns = ("place", "rank", "row", "source", "pass", "row of the source", "tokens")
        table = text_table(f"batch {self.step}: {len(self)} samples", columns, rows)
        left = len(self) - len(shown)
        return f"{table}\n  ... and {left} more" if left else table

    def __repr__(self) -> str:
        """Batch and number of samples."""
        return f"BatchTrace(step={self.step}, {len(self)} samples, world_size={self.world_size})"


def described(origins: Sequence[TokenOrigin], most: int = 3) -> str:
    """Origins in a line: ``web.bin[0:128) document 3``, and how many more there are."""
    parts = [
        f"{origin.file}[{origin.begin}:{origin.end})"
        + ("" if origin.document is None else f" document {origin.document}")
        for origin in origins[:most]
    ]
    return ", ".join([*parts, *([f"{len(origins) - most} more"] if len(origins) > most else [])])
