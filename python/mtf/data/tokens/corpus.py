"""A corpus of tokens: many files as one stream, read without copying, with its documents."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from mtf.data.tokens.formats import (
    TokenPart,
    from_array,
    open_arrow,
    open_megatron,
    open_npy,
    open_parquet,
    open_raw,
)
from mtf.data.tokens.rows import PackedRows, WindowRows
from mtf.data.tokens.stream import TokenStream
from mtf.errors import ConfigError

PathLike = str | os.PathLike[str]

_MOST_NAMES = 64  # in a checkpoint's manifest; a pattern is one name
_ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")


class TokenCorpus(TokenStream):
    """Files of tokens as one stream, in the order given. Files are mapped, not read; only rows of a batch are copied.

    ``windows`` and ``packed`` make rows of it, which are loaders by themselves, in a ``MultiLoader`` or ``Trainer``,
    and in a ``Blend``.
    """

    def __init__(
        self,
        data: PathLike | NDArray[Any] | torch.Tensor | Sequence[PathLike | NDArray[Any] | torch.Tensor],
        *,
        dtype: DTypeLike | None = None,
        eos: int | None = None,
        documents: Any = None,
        column: str = "input_ids",
        max_open_files: int = 512,
    ) -> None:
        """Opens the files: looks at sizes and headers, and reads no tokens.

        Args:
            data: A path, a pattern (``"web/*.bin"``, sorted by name; ``**`` for all folders below), one array or memory
                map, or a list of these. By its suffix a file is numpy's or a raw ``.npy``; an Arrow file or stream
                (``.arrow``, ``.feather``, ``.ipc``), which is mapped; Parquet (``.parquet``), which is decoded into
                memory; and raw tokens otherwise. Megatron's pairs: ``TokenCorpus.megatron``.
            dtype: The integers of raw files: ``"uint16"``, ``"uint32"``, ``"int32"`` ...
            eos: The token that ends a document. Documents end there and where a file ends.
            documents: Where documents begin, if not by ``eos``: offsets in tokens, one more than documents, from 0 to
                the number of tokens; for several files a list with the offsets of each. Arrow and Parquet files say it
                themselves: a row is a document.
            column: The column of Arrow and Parquet files.
            max_open_files: Files that are mapped at once; of more, those used last.

        Raises:
            ConfigError: No file matches, there is no token, files have unlike dtypes, or a parameter breaks its rule.
            SourceError: A file is missing, cut or damaged; the message begins with its path.
        """
        named = list(_items(data))
        parts = [part for number, item in enumerate(named) for part in _open_item(item, number, dtype, column)]
        super().__init__(parts, eos, documents, max_open_files)
        self._given = {
            "files": _names_of(data) if documents is None else None,
            "dtype": None if dtype is None else np.dtype(dtype).name,
            "eos": eos,
            "column": column,
        }

    def recipe(self) -> dict[str, Any]:
        return {**super().recipe(), **self._given}

    @classmethod
    def megatron(
        cls, prefixes: PathLike | Sequence[PathLike], *, eos: int | None = None, max_open_files: int = 512
    ) -> TokenCorpus:
        """Megatron-LM's indexed datasets: for each prefix ``prefix.bin`` and ``prefix.idx``, which names the documents.

        Args:
            prefixes: One prefix, with or without ``.bin``, a pattern (``"web/*.idx"``), or a list of these.
            eos: The token that ends a document, if documents are to end there instead of where the index says.
            max_open_files: As for the constructor.

        Raises:
            ConfigError: No file matches, or files have unlike dtypes.
            SourceError: A file is missing, cut or damaged, or index and tokens don't belong together.
        """
        found: list[Path] = []
        for item in [prefixes] if isinstance(prefixes, (str, os.PathLike)) else prefixes:
            text = os.fspath(item)
            text = text[:-4] if text.endswith((".bin", ".idx")) else text
            matches = [name[:-4] for name in _matching(f"{text}.idx")] if glob.has_magic(text) else [text]
            found += [Path(name) for name in matches]
        corpus = cls.__new__(cls)
        parts = [part for prefix in found for part in open_megatron(prefix)]
        TokenStream.__init__(corpus, parts, eos, None, max_open_files)
        corpus._given = {"files": _names_of(prefixes), "megatron": True, "eos": eos}
        return corpus

    def windows(
        self,
        length: int,
        *,
        moving: bool = True,
        boundaries: bool | None = None,
        shuffle: bool = True,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        **options: Any,
    ) -> WindowRows:
        """Rows cut from the stream, whatever documents they hold.

        Row ``i`` of a pass has the inputs ``[o + i * length, o + (i + 1) * length)`` of the stream and as labels the
        tokens one further on. Without ``moving`` ``o`` is 0 and there are ``(num_tokens - 1) // length`` rows. With it
        there are ``(num_tokens - length) // length`` (usually one less), and each pass draws ``o`` from
        ``[0, num_tokens - 1 - num_rows * length]``: windows and documents move against each other, and no token is left
        out in every pass.

        A batch is a dict of ``input_ids`` and ``labels`` (int64, ``[rows, length]``) and, with ``boundaries``,
        ``position_ids`` (int32, ``[rows, length]``, from 0 in each document of the row), ``loss_mask`` (bool, ``[rows,
        length]``: False where the label belongs to another document than the input; ``labels`` has -100 there, which
        ``cross_entropy`` ignores) and ``cu_seqlens`` (int32, the beginnings of the documents in the batch laid flat and
        its number of tokens at the end, for attention over variable lengths).

        Args:
            length: Tokens of a row.
            moving: Begin each pass at another token.
            boundaries: Give ``position_ids``, ``loss_mask`` and ``cu_seqlens``. None: where the corpus knows its
                documents. An ``eos`` is looked for in each row while it is copied; nothing is read ahead for it.
            shuffle: Each pass in an order of its own.
            batch_size: Rows per batch on each rank; needed unless the rows are only used in a ``Blend``.
            global_batch_size: Rows per batch on all ranks together; give this or ``batch_size``.
            **options: ``drop_last``, ``seed``, ``num_threads``, ``prefetch_batches`` and ``prefetch_bytes``, as for
                ``ArrayLoader``.

        Raises:
            ConfigError: The corpus is shorter than a row, or ``boundaries=True`` and it doesn't know its documents.
        """
        return WindowRows(
            self,
            length,
            moving=moving,
            boundaries=self.has_documents if boundaries is None else boundaries,
            shuffle=shuffle,
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            **options,
        )

    def packed(
        self,
        length: int,
        *,
        long: Literal["split", "truncate", "drop"] = "split",
        pad: int | None = None,
        shuffle: bool = True,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        **options: Any,
    ) -> PackedRows:
        """Rows of whole documents, packed so that hardly any room is left, each document once in every pass.

        Which lengths share a row is found by first-fit decreasing on the counts of lengths, and is the same in every
        pass; which document of a length stands where is drawn for each pass. So a pass can be entered anywhere, nothing
        is kept per row, and documents get other company in every pass. The longest document of a row comes first.

        Batches are as those of ``windows`` with ``boundaries``. A label is the document's next token, also where a
        split document continues in another row; the last token of a document has none. Room that is left is filled with
        ``pad``, has no labels, and counts its positions as a document of its own.

        Args:
            length: Tokens of a row.
            long: A document longer than ``length`` is split into rows and a rest, cut to its first ``length`` tokens,
                or left out. What is dropped stands in the rows' ``repr``.
            pad: The token that fills a row; None: ``eos``, or 0.
            shuffle: Each pass in an order of its own. Documents get other company either way.
            batch_size: Rows per batch on each rank; needed unless the rows are only used in a ``Blend``.
            global_batch_size: Rows per batch on all ranks together; give this or ``batch_size``.
            **options: As for ``windows``.

        Raises:
            ConfigError: The corpus doesn't know its documents, or none is left to pack.
        """
        return PackedRows(
            self,
            length,
            long=long,
            pad=pad,
            shuffle=shuffle,
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            **options,
        )


def _names_of(data: Any) -> list[str] | None:
    """Absolute names or patterns of files; None if there are arrays among them, or more than ``_MOST_NAMES``."""
    items: list[Any] = [data] if isinstance(data, (str, os.PathLike)) else [None]
    if isinstance(data, Sequence) and not isinstance(data, str):
        items = list(data)
    if len(items) > _MOST_NAMES or not all(isinstance(item, (str, os.PathLike)) for item in items):
        return None
    return [os.path.abspath(item) for item in items]


def _items(data: Any) -> Iterable[Path | NDArray[Any]]:
    if isinstance(data, (str, os.PathLike)):
        text = os.fspath(data)
        names = _matching(text) if glob.has_magic(text) else [text]
        yield from (Path(name) for name in names)
    elif isinstance(data, (np.ndarray, torch.Tensor)):
        yield _as_array(data)
    elif isinstance(data, Sequence):
        for item in data:
            yield from _items(item)
    else:
        raise ConfigError(
            f"data must be a path, a pattern, an array or a list of these, but is a {type(data).__name__}"
        )


def _matching(pattern: str) -> list[str]:
    names = sorted(name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name))
    if not names:
        raise ConfigError(f"no file matches {pattern!r}")
    return names


def _as_array(data: NDArray[Any] | torch.Tensor) -> NDArray[Any]:
    if isinstance(data, torch.Tensor):
        if data.device.type != "cpu":
            raise ConfigError(f"tokens must be on the CPU, but are on {data.device}")
        return data.detach().numpy()
    return data


def _open_item(item: Path | NDArray[Any], number: int, dtype: DTypeLike | None, column: str) -> list[TokenPart]:
    if isinstance(item, np.ndarray):
        return [from_array(item, f"array {number}")]
    suffix = item.suffix.lower()
    if suffix in _ARROW_SUFFIXES:
        return open_arrow(item, column)
    if suffix == ".parquet":
        return open_parquet(item, column)
    opener: Callable[[Path, DTypeLike | None], list[TokenPart]] = open_npy if suffix == ".npy" else open_raw
    return opener(item, dtype)
