"""The layouts that tokenised corpora are stored in: each file is checked by its size and header when it is opened."""

from __future__ import annotations

import os
import struct
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mtf.errors import ConfigError, SourceError

_NPY_MAGIC = b"\x93NUMPY"
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow stream
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_HEADER = struct.Struct("<9sQBQQ")
# Codes of a Megatron index; 6 and 7 are floats, which are no tokens.
_MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}


@dataclass(frozen=True)
class TokenPart:
    """A run of tokens: in a file from ``first_byte`` on, or the array ``tokens`` in memory.

    Attributes:
        name: Shown in messages and given by ``trace``: the file's path, or which array it is.
        path: The file; empty if the tokens are in memory.
        first_byte: Where the tokens begin in the file.
        num_tokens: How many there are.
        dtype: Their integer type.
        tokens: The array, if they are in memory.
        first_token: Which token of its file it begins with, where a file has several runs.
        documents: Where documents begin, and the number of tokens at the end: int64; None if the file doesn't say.
    """

    name: str
    path: str
    first_byte: int
    num_tokens: int
    dtype: np.dtype[Any]
    tokens: NDArray[Any] | None = None
    first_token: int = 0
    documents: NDArray[np.int64] | None = None


def token_dtype(dtype: DTypeLike, where: str) -> np.dtype[Any]:
    """``dtype`` as numpy's.

    Raises:
        ConfigError: It isn't an integer type in this machine's byte order.
    """
    try:
        made = np.dtype(dtype)
    except TypeError as error:
        raise ConfigError(f"{where}: dtype must be an integer type such as 'uint16', but is {dtype!r}") from error
    if made.kind not in "iu":
        raise ConfigError(f"{where}: dtype must be an integer type such as 'uint16', but is {made.name!r}")
    if not made.isnative:
        raise ConfigError(
            f"{where}: tokens must be in this machine's byte order, but are {made.str!r}; convert the files"
        )
    return made


def open_raw(path: Path, dtype: DTypeLike | None) -> list[TokenPart]:
    """A file of nothing but tokens.

    Raises:
        ConfigError: ``dtype`` is None.
        SourceError: The file is missing, or isn't a whole number of tokens.
    """
    if dtype is None:
        raise ConfigError(
            f"{path}: give dtype=, because a raw file doesn't say which integers it holds (vocabularies below 65,536: "
            "usually 'uint16')"
            + (
                "; its index lies beside it, so TokenCorpus.megatron reads both"
                if path.with_suffix(".idx").exists()
                else ""
            )
        )
    made = token_dtype(dtype, str(path))
    return [TokenPart(str(path), str(path), 0, _whole_tokens(path, 0, made), made)]


def open_npy(path: Path, dtype: DTypeLike | None) -> list[TokenPart]:
    """A ``.npy`` file: numpy's, or tokens without a header, as OLMo and nanotron name theirs.

    Raises:
        SourceError: The file is missing, cut, or holds something else than one dimension of integers.
    """
    with _open(path) as file:
        if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
            return open_raw(path, dtype)
        file.seek(0)
        try:
            shape, found = _npy_header(file)
        except (ValueError, EOFError, SyntaxError, struct.error, tokenize.TokenError) as error:
            raise SourceError(f"{path}: has a damaged .npy header: {_in_a_line(error)}") from error
        first_byte = file.tell()
    if len(shape) != 1 or found.kind not in "iu":
        raise SourceError(f"{path}: must hold one dimension of integer tokens, but has {found.name} of shape {shape}")
    made = token_dtype(found, str(path))
    if dtype is not None and token_dtype(dtype, str(path)) != made:
        raise ConfigError(f"{path}: holds {made.name}, but dtype is {np.dtype(dtype).name!r}; leave dtype out")
    num_tokens = _whole_tokens(path, first_byte, made)
    if num_tokens != shape[0]:
        raise SourceError(
            f"{path}: should have {shape[0]} tokens by its header, but has {num_tokens}; the file is damaged"
        )
    return [TokenPart(str(path), str(path), first_byte, num_tokens, made)]


def open_megatron(prefix: Path) -> list[TokenPart]:
    """``prefix.bin`` with ``prefix.idx``: Megatron-LM's indexed dataset, version 1.

    The index holds, after a header of 34 bytes (magic, version, dtype code, numbers of sequences and of document
    entries), the length of each sequence (int32), its first byte (int64), and per document its first sequence (int64,
    with the number of sequences at the end); a multimodal one also a mode per sequence (int8).

    Raises:
        SourceError: A file is missing, cut or damaged, or the two don't belong together.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    with _open(index) as file:
        content = file.read()
    if len(content) < _MEGATRON_HEADER.size or content[: len(_MEGATRON_MAGIC)] != _MEGATRON_MAGIC:
        raise SourceError(f"{index}: isn't a Megatron index; it must begin with MMIDIDX")
    _, version, code, num_sequences, num_entries = _MEGATRON_HEADER.unpack_from(content)
    if version != 1 or code not in _MEGATRON_DTYPES:
        raise SourceError(
            f"{index}: must have version 1 and an integer dtype (codes {sorted(_MEGATRON_DTYPES)}), but has version "
            f"{version} and code {code}"
        )
    size = _MEGATRON_HEADER.size + 12 * num_sequences + 8 * num_entries
    if len(content) not in (size, size + num_sequences):
        raise SourceError(
            f"{index}: should have {size} bytes by its header, but has {len(content)}; the file is damaged"
        )
    at = _MEGATRON_HEADER.size
    lengths = np.frombuffer(content, "<i4", num_sequences, at)
    pointers = np.frombuffer(content, "<i8", num_sequences, at + 4 * num_sequences)
    entries = np.frombuffer(content, "<i8", num_entries, at + 12 * num_sequences)
    dtype = np.dtype(_MEGATRON_DTYPES[code])
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    if (lengths < 0).any() or not np.array_equal(pointers, begins[:-1] * dtype.itemsize):
        raise SourceError(f"{index}: its sequences must lie one after the other, but don't; the file is damaged")
    if num_entries and (entries[0] != 0 or entries[-1] != num_sequences or (np.diff(entries) < 0).any()):
        raise SourceError(
            f"{index}: its documents must be ranges of its {num_sequences} sequences; the file is damaged"
        )
    num_tokens = _whole_tokens(data, 0, dtype)
    if num_tokens != begins[-1]:
        raise SourceError(
            f"{data}: should have {begins[-1]} tokens by its index, but has {num_tokens}; the file is damaged"
        )
    # An index without document entries has one document per sequence.
    documents = begins[entries] if num_entries else begins
    return [TokenPart(str(data), str(data), 0, num_tokens, dtype, documents=documents)]


def open_arrow(path: Path, column: str) -> list[TokenPart]:
    """A column of lists of tokens in an Arrow file or stream (as ``datasets`` writes it), mapped: nothing is copied.

    Raises:
        SourceError: The file is missing or damaged, or has no such column.
    """
    pyarrow = _pyarrow(path)

    def chunks() -> Iterable[Any]:
        source = pyarrow.memory_map(str(path))
        try:
            reader = pyarrow.ipc.open_file(source)
            batches: Iterable[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            batches = pyarrow.ipc.open_stream(source)
            _require_stream_end(path)
        return (batch.column(_field(batch.schema, column, path)) for batch in batches)

    return _list_parts(path, column, chunks, pyarrow)


def _require_stream_end(path: Path) -> None:
    """A stream that is cut between two batches reads as a shorter one; only the marker at its end tells."""
    with _open(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(_STREAM_END)))
        if file.read() != _STREAM_END:
            raise SourceError(f"{path}: has no marker at its end; the file is cut, or its writer wasn't closed")


def open_parquet(path: Path, column: str) -> list[TokenPart]:
    """A column of lists of tokens in a Parquet file. Parquet is compressed, so the column is decoded into memory.

    Raises:
        SourceError: The file is missing or damaged, or has no such column.
    """
    pyarrow = _pyarrow(path)

    def chunks() -> Iterable[Any]:
        import pyarrow.parquet as parquet

        file = parquet.ParquetFile(str(path))
        _field(file.schema_arrow, column, path)
        found = [batch.column(0) for batch in file.iter_batches(columns=[column])]
        num_rows = sum(map(len, found))
        if num_rows != file.metadata.num_rows:
            raise SourceError(
                f"{path}: should have {file.metadata.num_rows} rows, but has {num_rows}; the file is damaged"
            )
        return found

    return _list_parts(path, column, chunks, pyarrow)


def from_array(tokens: NDArray[Any], name: str) -> TokenPart:
    """Tokens in memory, or an array that maps a file.

    Raises:
        ConfigError: It isn't one dimension of integers.
    """
    dtype = token_dtype(tokens.dtype, name)
    if tokens.ndim != 1:
        raise ConfigError(f"{name}: tokens must have one dimension, but have shape {tokens.shape}")
    return TokenPart(name, "", 0, len(tokens), dtype, np.ascontiguousarray(tokens))


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise SourceError(f"{path}: can't be opened: {error.strerror}") from error


def _whole_tokens(path: Path, first_byte: int, dtype: np.dtype[Any]) -> int:
    try:
        size = os.stat(path).st_size - first_byte
    except OSError as error:
        raise SourceError(f"{path}: can't be read: {error.strerror}") from error
    if size % dtype.itemsize:
        raise SourceError(
            f"{path}: has {size} bytes of tokens, which isn't a multiple of the {dtype.itemsize} bytes of a "
            f"{dtype.name}; the file is cut, or dtype is another"
        )
    return size // dtype.itemsize


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    major, _ = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs pyarrow: pip install 'mtf-torch[arrow]'") from error
    return pyarrow


def _field(schema: Any, column: str, path: Path) -> str:
    if column not in schema.names:
        raise SourceError(f"{path}: has no column {column!r}, but {schema.names}; give column=")
    return column


def _list_parts(path: Path, column: str, chunks: Callable[[], Iterable[Any]], pyarrow: Any) -> list[TokenPart]:
    parts: list[TokenPart] = []
    try:
        for chunk in chunks():
            if not (pyarrow.types.is_list(chunk.type) or pyarrow.types.is_large_list(chunk.type)):
                raise SourceError(f"{path}: column {column!r} must hold lists of integers, but holds {chunk.type}")
            chunk.validate(full=True)  # Arrow ends the process where it follows offsets out of an array
            if chunk.null_count or chunk.flatten().null_count:
                raise SourceError(f"{path}: column {column!r} must hold a value in each row, but has nulls")
            tokens = chunk.flatten().to_numpy(zero_copy_only=False)
            offsets = np.asarray(chunk.offsets, dtype=np.int64)
            first = parts[-1].first_token + parts[-1].num_tokens if parts else 0
            parts.append(replace(from_array(tokens, str(path)), first_token=first, documents=offsets - offsets[0]))
    except (pyarrow.ArrowException, OSError) as error:
        raise SourceError(f"{path}: can't be read: {_in_a_line(error)}") from error
    return parts


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())
