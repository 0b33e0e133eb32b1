"""Rows of a token corpus as loaders: windows of its stream, and its documents packed."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any

from mtf import _core
from mtf.config.checks import whole_number
from mtf.data.blend.rows import NativeRows, columns_of
from mtf.data.sources.row_loader import RowLoader
from mtf.data.tokens.stream import TokenStream
from mtf.data.tracing.samples import TokenOrigin
from mtf.errors import ConfigError


class TokenRows(RowLoader):
    """Rows of a corpus, as ``TokenCorpus.windows`` and ``TokenCorpus.packed`` make them.

    A loader by itself and in a ``MultiLoader`` or ``Trainer``, and rows for a ``Blend``.

    Attributes:
        corpus: The corpus.
        length: Tokens of a row, padding included.
    """

    def __init__(
        self,
        corpus: TokenStream,
        length: int,
        *,
        shuffle: bool,
        batch_size: int | None,
        global_batch_size: int | None,
        **options: Any,
    ) -> None:
        """Describes the rows; ``TokenCorpus`` makes them."""
        self.corpus = corpus
        self.length = whole_number("length", length, 1)
        self._shuffle = shuffle
        self._core_rows = os.getpid(), self.make_core_rows()
        self._prepare_rows(
            self.core_rows.num_rows,
            shuffle=shuffle,
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            **options,
        )

    @abstractmethod
    def make_core_rows(self) -> _core.TokenRows:
        """Makes the rows of the core."""

    @property
    def core_rows(self) -> _core.TokenRows:
        """The rows of the core, made once per process: in a fork's copy a thread that it hasn't may hold a lock."""
        if self._core_rows is None or self._core_rows[0] != os.getpid():
            self._core_rows = os.getpid(), self.make_core_rows()
        return self._core_rows[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_core_rows": None}

    @property
    @abstractmethod
    def num_row_tokens(self) -> int:
        """Tokens of the corpus that a pass gives as inputs; padding isn't counted."""

    @property
    @abstractmethod
    def num_supervised_tokens(self) -> int:
        """Labels of a pass that a loss counts."""

    @property
    def fill(self) -> float:
        """The share of a pass's places that hold a token of the corpus; the rest is padding."""
        return self.num_row_tokens / (self.num_rows * self.length)

    @property
    def tokens_per_row(self) -> float:
        """Tokens of the corpus in a row, on average."""
        return self.num_row_tokens / self.num_rows

    @property
    def supervised_tokens_per_row(self) -> float:
        """Labels of a row that a loss counts, on average."""
        return self.num_supervised_tokens / self.num_rows

    def native_rows(self) -> NativeRows:
        """The rows as a ``Blend`` gathers them."""
        fields = self.core_rows.fields
        names = [name for name, *_ in fields] + ["cu_seqlens"] * any(counts for *_, counts in fields)
        return NativeRows(
            self.make_core_rows,
            tuple(names),
            tokens_per_row=self.tokens_per_row,
            supervised_tokens_per_row=self._supervised_per_row,
            provenance=self,
        )

    def native(self, key: int) -> _core.NativeSource:
        return _core.RowBatches(
            self.core_rows,
            columns_of(self.core_rows.fields),
            batch_size=self.global_batch_size,
            key=key,
            drop_last=self._drop_last,
            rank=self._rank,
            world_size=self._world_size,
            rest=None if self._rest is None else self._rest.to_list(),
        )

    def tokens_at(self, pass_: int, place: int, key: int) -> list[TokenOrigin]:
        return self.trace(pass_, place, key=key)

    def places_of_document(self, document: int, pass_: int, key: int) -> list[int]:
        try:
            return self.find(document, pass_, key=key)
        except IndexError as error:
            raise ConfigError(f"source {self.name!r}: {error}") from None

    @abstractmethod
    def how(self) -> dict[str, Any]:
        """The method of ``TokenCorpus`` that makes these rows, and its arguments."""

    def record(self) -> dict[str, Any]:
        tokens = {**self.how(), "length": self.length, "shuffle": self._shuffle, "corpus": self.corpus.recipe()}
        return {**super().record(), "tokens": tokens}

    def _supervised_per_row(self) -> float:
        return self.supervised_tokens_per_row

    def trace(self, pass_: int, place: int, *, key: int | None = None) -> list[TokenOrigin]:
        """Where the inputs of a row come from, in the row's order. Reads no tokens.

        Args:
            pass_: The pass.
            place: The row's place in the pass: row ``r`` of global batch ``b`` has the place ``b * global_batch_size +
                r``.
            key: The source's key; None: that of iteration without a mixture.

        Raises:
            IndexError: There is no such place.
        """
        if not 0 <= place < self.num_rows:
            raise IndexError(f"place must be in [0, {self.num_rows}), but is {place}")
        spans = self.core_rows.trace(self._key(key), pass_, place)
        return [origin for begin, count in spans for origin in self.corpus.origins(begin, begin + count)]

    def find(self, document: int, pass_: int, *, key: int | None = None) -> list[int]:
        """The places of a pass whose rows have a token of a document as input, sorted: the inverse of ``trace``.

        A document may have none: it is empty, longer than rows that drop such ones, or lies beyond the first or last
        window of the pass. Reads no tokens, but for the first use of ``documents``.

        Args:
            document: The document, counted in the corpus.
            pass_: The pass.
            key: As for ``trace``.

        Raises:
            IndexError: There is no such document.
            ConfigError: The corpus doesn't know its documents; ``find_tokens`` takes tokens.
        """
        documents = self.corpus.documents
        if not 0 <= document < len(documents) - 1:
            raise IndexError(f"document must be in [0, {len(documents) - 1}), but is {document}")
        return self.core_rows.find(self._key(key), pass_, int(documents[document]), int(documents[document + 1]))

    def _key(self, key: int | None) -> int:
        return _core.fold_in(_core.fold_in(self._seed, "source"), self.name) if key is None else key

    def _shape(self) -> dict[str, int | None]:
        return {**super()._shape(), "length": self.length, "num_tokens": self.corpus.num_tokens}

    def _batches(self) -> str:
        """The batches of a pass in words; nothing where the rows are for a blend."""
        if not self._has_batches:
            return ""
        return f", {self.num_batches():,} batches of {self.global_batch_size:,}"


class WindowRows(TokenRows):
    """Windows of a corpus. See ``TokenCorpus.windows``."""

    def __init__(
        self, corpus: TokenStream, length: int, *, moving: bool, boundaries: bool, shuffle: bool, **options: Any
    ) -> None:
        """Describes the rows; reads no tokens."""
        self._moving, self._boundaries = moving, boundaries
        super().__init__(corpus, length, shuffle=shuffle, **options)

    def make_core_rows(self) -> _core.WindowRows:
        return _core.WindowRows(
            self.corpus.core,
            self.corpus.document_index if self._boundaries else None,
            length=self.length,
            moving=self._moving,
            boundaries=self._boundaries,
            shuffle=self._shuffle,
            end_token=self.corpus.eos,
        )

    def how(self) -> dict[str, Any]:
        return {"rows": "windows", "moving": self._moving, "boundaries": self._boundaries}

    @property
    def num_row_tokens(self) -> int:
        return self.num_rows * self.length

    @property
    def num_supervised_tokens(self) -> int:
        """Labels of a pass that a loss counts; with ``boundaries`` and ``moving``, what a pass has on average.

        With ``boundaries`` it depends on the documents, which the first use reads if they end with ``eos``.
        """
        if not self._boundaries:
            return self.num_row_tokens
        # Every document but the first ends a label's document; a pass sees its share of them.
        ends = self.corpus.num_nonempty_documents - 1
        return self.num_row_tokens - round(ends * self.num_row_tokens / max(1, self.corpus.num_tokens - 1))

    def offset(self, pass_: int, *, key: int | None = None) -> int:
        """The token of the stream that a pass begins with."""
        rows = self.core_rows
        assert isinstance(rows, _core.WindowRows)
        return rows.offset(self._key(key), pass_)

    def order(self) -> str:
        moving = ", moving" if self._moving else ""
        return f"{super().order()}, windows of {self.length} tokens{moving}"

    def __repr__(self) -> str:
        """Rows, batches, and how they are made."""
        name = f"{self.name!r}, " if self.name else ""
        how = [what for what, on in (("moving", self._moving), ("shuffled", self._shuffle)) if on]
        how += ["with document boundaries"] if self._boundaries else []
        words = ", ".join(["", *how])
        return f"WindowRows({name}{self.num_rows:,} rows of {self.length:,} tokens{self._batches()}{words})"


class PackedRows(TokenRows):
    """Documents of a corpus, packed into rows. See ``TokenCorpus.packed``."""

    def __init__(
        self, corpus: TokenStream, length: int, *, long: str, pad: int | None, shuffle: bool, **options: Any
    ) -> None:
        """Makes the table of the packing: some 10 ns a document."""
        if not corpus.has_documents:
            raise ConfigError("packing needs to know where documents end; give the corpus eos= or documents=")
        self._long = long
        self._pad = pad if pad is not None else 0 if corpus.eos is None else corpus.eos
        super().__init__(corpus, length, shuffle=shuffle, **options)
        rows = self.core_rows
        assert isinstance(rows, _core.PackedRows)
        self._stats = rows.stats

    def make_core_rows(self) -> _core.PackedRows:
        self.corpus.load_documents()
        index = self.corpus.document_index
        assert index is not None
        return _core.PackedRows(
            self.corpus.core,
            index,
            length=self.length,
            long=self._long,
            pad_token=self._pad,
            shuffle=self._shuffle,
        )

    def how(self) -> dict[str, Any]:
        return {"rows": "packed", "long": self._long, "pad": self._pad}

    @property
    def num_row_tokens(self) -> int:
        return self._stats["num_tokens"]

    @property
    def num_supervised_tokens(self) -> int:
        return self._stats["num_supervised"]

    @property
    def num_documents(self) -> int:
        """Documents of a pass."""
        return self._stats["num_documents"]

    @property
    def num_patterns(self) -> int:
        """Ways to fill a row that the table of the packing has."""
        return self._stats["num_patterns"]

    @property
    def num_dropped_documents(self) -> int:
        """Documents that are left out, because they are longer than a row."""
        return self._stats["num_dropped_documents"]

    @property
    def num_dropped_tokens(self) -> int:
        """Tokens that no pass gives, because documents are cut or left out."""
        return self._stats["num_dropped_tokens"]

    def order(self) -> str:
        return f"{super().order()}, documents packed into {self.length} tokens, long ones {self._long}"

    def __repr__(self) -> str:
        """What packing does: rows, fill, and what is dropped."""
        name = f"{self.name!r}, " if self.name else ""
        num_long = self._stats["num_long_documents"]
        long = {
            "split": f"{num_long:,} longer ones split",
            "truncate": f"{num_long:,} longer ones cut by {self.num_dropped_tokens:,} tokens",
            "drop": f"{num_long:,} longer ones with {self.num_dropped_tokens:,} tokens left out",
        }[self._long]
        return (
            f"PackedRows({name}{self.num_documents:,} documents in {self.num_rows:,} rows of {self.length:,} tokens"
            f"{self._batches()}, fill {self.fill:.5f}, {long}{', shuffled' if self._shuffle else ''})"
        )
