"""Runs of tokens as one stream, with the documents in it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtf import _core
from mtf.call_site import user_level
from mtf.config.checks import whole_number
from mtf.data.tokens.formats import TokenPart
from mtf.data.tracing.samples import TokenOrigin
from mtf.errors import ConfigError


class TokenStream:
    """What a ``TokenCorpus`` knows of its tokens."""

    def __init__(self, parts: list[TokenPart], eos: int | None, documents: Any, max_open_files: int) -> None:
        """Joins ``parts``; see ``TokenCorpus`` for the rest and what is raised."""
        self._parts = _of_one_dtype([part for part in parts if part.num_tokens > 0])
        self._begins = np.concatenate([[0], np.cumsum([part.num_tokens for part in self._parts])]).astype(np.int64)
        self._eos = None if eos is None else _checked_eos(eos, self._parts[0].dtype)
        if eos is not None and documents is not None:
            raise ConfigError("give either eos or documents, because each says where documents end, but both are given")
        self._offsets = None
        if documents is not None:
            self._offsets = _given_offsets(documents, parts)
        elif eos is None:
            self._offsets = _stored_offsets(self._parts, self._begins)
        self._max_open_files = whole_number("max_open_files", max_open_files, 1)
        self._made: tuple[int, _core.TokenCorpus, _core.DocumentIndex | None] | None = None
        self._native()

    def _native(self) -> tuple[int, _core.TokenCorpus, _core.DocumentIndex | None]:
        """The core's side, made once per process: in a fork's copy a thread that it hasn't may hold a lock."""
        if self._made is None or self._made[0] != os.getpid():
            core = _core.TokenCorpus(
                [(part.path, part.first_byte, part.tokens, part.num_tokens) for part in self._parts],
                self._parts[0].dtype.name,
                self._max_open_files,
            )
            index = None if self._offsets is None else _core.DocumentIndex(self._offsets, core)
            self._made = os.getpid(), core, index
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def recipe(self) -> dict[str, Any]:
        """How the corpus is opened again, as plain data: ``files`` is None where it isn't of files alone, or of more
        than a manifest should name."""
        return {"files": None, "num_tokens": self.num_tokens}

    @property
    def core(self) -> _core.TokenCorpus:
        """The stream as rows of the core read it."""
        return self._native()[1]

    @property
    def document_index(self) -> _core.DocumentIndex | None:
        """Where documents begin, as rows of the core look it up; None as long as that isn't known."""
        return self._native()[2]

    @property
    def num_tokens(self) -> int:
        """Tokens of all files."""
        return int(self._begins[-1])

    @property
    def num_files(self) -> int:
        """Files (or arrays) that hold a token."""
        return len({part.name for part in self._parts})

    @property
    def dtype(self) -> np.dtype[Any]:
        """The integers that the files hold. Rows are int64 whatever it is."""
        return self._parts[0].dtype

    @property
    def eos(self) -> int | None:
        """The token that ends a document, if one was given."""
        return self._eos

    @property
    def has_documents(self) -> bool:
        """Whether the corpus can say where documents end."""
        return self._eos is not None or self._offsets is not None

    @property
    def documents(self) -> NDArray[np.int64]:
        """Where documents begin, and the number of tokens at the end: int64, shape ``(num_documents + 1,)``.

        With ``eos`` the first use reads every token once, at the speed of memory or disk.

        Raises:
            ConfigError: The corpus has no ``eos`` and no ``documents``.
        """
        return self.load_documents()

    @property
    def num_documents(self) -> int:
        """Documents; see ``documents``."""
        return len(self.documents) - 1

    @property
    def num_nonempty_documents(self) -> int:
        """Documents that hold a token; see ``documents``."""
        self.load_documents()
        index = self.document_index
        assert index is not None
        return index.num_nonempty

    def load_documents(self) -> NDArray[np.int64]:
        """Reads the corpus for its documents, if that has to be and wasn't done; gives ``documents``."""
        if self._offsets is None:
            if self._eos is None:
                raise ConfigError("the corpus doesn't say where documents end; give it eos= or documents=")
            core = self.core
            offsets = core.scan_documents(self._eos)
            self._warn_without_ends(len(offsets) - 1)
            self._made, self._offsets = (os.getpid(), core, _core.DocumentIndex(offsets, core)), offsets
        return self._offsets

    def _warn_without_ends(self, num_documents: int) -> None:
        """Warns where no document ends but with its file, most likely because ``eos`` is another tokenizer's."""
        first = int(self._begins[1])
        if num_documents == len(self._parts) and first > 1 and self.core.read(first - 1, 1)[0] != self._eos:
            warnings.warn(
                f"eos={self._eos} ends no document of {self._parts[0].name}: each file is one document; check that it "
                "is the end token of the tokenizer that wrote the file",
                stacklevel=user_level(),
            )

    def tokens(self, begin: int, end: int) -> NDArray[np.int64]:
        """Tokens ``[begin, end)`` of the stream, a copy: int64, shape ``(end - begin,)``.

        Raises:
            IndexError: They don't lie within the corpus.
        """
        if not 0 <= begin <= end <= self.num_tokens:
            raise IndexError(f"[{begin}, {end}) must lie within the corpus's {self.num_tokens} tokens")
        return self.core.read(begin, end - begin)

    def origins(self, begin: int, end: int) -> list[TokenOrigin]:
        """Where tokens ``[begin, end)`` of the stream come from, cut where files and, if they are known, documents end.

        Raises:
            IndexError: They don't lie within the corpus.
        """
        if not 0 <= begin <= end <= self.num_tokens:
            raise IndexError(f"[{begin}, {end}) must lie within the corpus's {self.num_tokens} tokens")
        origins = []
        while begin < end:
            number = int(np.searchsorted(self._begins, begin, "right")) - 1
            stop, document, offset = min(end, int(self._begins[number + 1])), None, None
            index = self.document_index
            if index is not None and self._offsets is not None:
                document = index.document_of(begin)
                stop, offset = min(stop, int(self._offsets[document + 1])), begin - int(self._offsets[document])
            part = self._parts[number]
            first = int(self._begins[number]) - part.first_token
            origins.append(TokenOrigin(part.name, begin - first, stop - first, document, offset))
            begin = stop
        return origins

    def __len__(self) -> int:
        return self.num_tokens

    def __repr__(self) -> str:
        """Tokens, files and documents."""
        documents = "" if self._offsets is None else f", {len(self._offsets) - 1:,} documents"
        ends = "" if self._eos is None else f", eos={self._eos}"
        return f"TokenCorpus({self.num_tokens:,} {self.dtype.name} tokens in {self.num_files:,} files{documents}{ends})"


def _checked_eos(eos: Any, dtype: np.dtype[Any]) -> int:
    """``eos``, which files of ``dtype`` can hold: another would end no document, silently."""
    limits = np.iinfo(dtype)
    if isinstance(eos, bool) or not hasattr(eos, "__index__") or not limits.min <= eos <= limits.max:
        raise ConfigError(
            f"eos must be a token that the corpus can hold, {dtype.name} from {limits.min} to {limits.max}, but is "
            f"{eos!r}"
        )
    return int(eos)


def _of_one_dtype(parts: list[TokenPart]) -> list[TokenPart]:
    if not parts:
        raise ConfigError("data must hold at least one token, but there is none")
    for part in parts:
        if part.dtype != parts[0].dtype:
            raise ConfigError(
                f"all files of a corpus must have one dtype, but {parts[0].name} has {parts[0].dtype.name} and "
                f"{part.name} has {part.dtype.name}; make a corpus of each and blend them"
            )
    return parts


def _given_offsets(documents: Any, parts: list[TokenPart]) -> NDArray[np.int64]:
    """The offsets of the corpus, from those of the whole or of each file."""
    several = isinstance(documents, (list, tuple)) and len(documents) > 0 and np.ndim(documents[0]) > 0
    given = [np.asarray(part) for part in documents] if several else [np.asarray(documents)]
    for number, offsets in enumerate(given):
        if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) == 0:
            raise ConfigError(
                f"documents must be offsets, one dimension of integers, but entry {number} has shape {offsets.shape} "
                f"and dtype {offsets.dtype.name}"
            )
    if not several:
        return np.ascontiguousarray(given[0], np.int64)
    if len(given) != len(parts):
        raise ConfigError(f"documents must have offsets for each of the {len(parts)} files, but has {len(given)}")
    return _joined(given, [part.num_tokens for part in parts], [part.name for part in parts])


def _stored_offsets(parts: list[TokenPart], begins: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The offsets that the files themselves give; None if one doesn't."""
    stored = [part.documents for part in parts]
    given = [offsets for offsets in stored if offsets is not None]
    if len(given) < len(stored):
        return None
    return _joined(given, np.diff(begins).tolist(), [part.name for part in parts])


def _joined(offsets: Sequence[NDArray[Any]], sizes: Sequence[int], names: Sequence[str]) -> NDArray[np.int64]:
    out, begin = [np.zeros(1, np.int64)], 0
    for own, size, name in zip(offsets, sizes, names, strict=True):
        if own[0] != 0 or own[-1] != size:
            raise ConfigError(
                f"documents of {name} must be offsets from 0 to its {size} tokens, but are from {own[0]} to {own[-1]}"
            )
        out.append(own[1:].astype(np.int64) + begin)
        begin += size
    return np.concatenate(out)
