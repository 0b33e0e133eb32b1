"""Sources as a checkpoint's manifest describes them: they say which rows a batch has, and have no data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mtf.data.blend.blend import Blend
from mtf.data.blend.rows import RowSource
from mtf.data.sources.base import Source
from mtf.data.sources.row_loader import RowLoader
from mtf.data.tokens.corpus import TokenCorpus
from mtf.data.tokens.rows import TokenRows
from mtf.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from mtf._core import NativeSource


class RecordedRows(RowLoader):
    """Rows whose number and order are known, for ``trace_batch`` and ``find_batches``."""

    def __init__(self, name: str, record: Mapping[str, Any]) -> None:
        """Takes what ``Source.record`` gave."""
        self.name = name
        self._prepare_rows(record["rows"], **_batching(record), shuffle=record["shuffle"])

    def native(self, key: int) -> NativeSource:
        raise ConfigError(f"source {self.name!r} is known from a checkpoint alone, which holds no data")


class _InOrder(RowSource):
    """Rows that are numbered by their places, and have no data."""

    def __init__(self, num: int) -> None:
        self._num = num

    def num_rows(self) -> int:
        return self._num

    def row(self, pass_: int, place: int, key: int) -> Any:
        raise ConfigError("this source is known from a checkpoint alone, which holds no data")


def source_from(name: str, record: Mapping[str, Any], corpora: Mapping[str, str], notes: dict[str, str]) -> Source:
    """The source that ``record`` describes, undivided.

    Args:
        name: Its name in the mixture.
        record: What ``Source.record`` gave.
        corpora: Name of a source, in a blend too -> files of its corpus, where they aren't where they were.
        notes: Gets, by the source's name, why files and documents can't be named: the corpus isn't found.

    Raises:
        ConfigError: The files given are of another corpus.
        SourceError: They are missing or damaged.
    """
    if record["kind"] == "rows":
        tokens = _token_rows(name, record, corpora, notes)
        if tokens is not None:
            tokens.name = name
            return tokens
        return RecordedRows(name, record)
    rows = {inner: _rows_in_blend(inner, entry, corpora, notes) for inner, entry in record["sources"].items()}
    began_with = record["config"]["dataloader_names"]
    blend = Blend(
        {inner: rows[inner] for inner in began_with},
        global_batch_size=[(first, size) for first, size in record["sizes"]],
        batches_per_pass=record["batches_per_pass"],
        by_source=record["by_source"],
        source_factories={inner: partial(rows.get, inner) for inner in rows if inner not in began_with},
    )
    blend.name = name
    blend.follow_record(record)
    return blend


def _batching(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("global_batch_size", "drop_last")}


def _rows_in_blend(name: str, record: Mapping[str, Any], corpora: Mapping[str, str], notes: dict[str, str]) -> Any:
    tokens = _token_rows(name, record, corpora, notes)
    if tokens is not None:
        return tokens
    return range(record["rows"]) if record["shuffle"] else _InOrder(record["rows"])


def _token_rows(
    name: str, record: Mapping[str, Any], corpora: Mapping[str, str], notes: dict[str, str]
) -> TokenRows | None:
    """The rows of the corpus; None where there is none, or its files aren't found."""
    tokens = record.get("tokens")
    if tokens is None:
        if name in corpora:
            raise ConfigError(f"source {name!r} has no corpus in the checkpoint, but one is given")
        return None
    corpus = _open(name, tokens["corpus"], corpora.get(name), notes)
    if corpus is None:
        return None
    options = {key: value for key, value in tokens.items() if key not in ("rows", "length", "corpus")}
    if tokens["rows"] == "packed" and not corpus.has_documents:
        notes[name] = f"{name}: its documents were given as an array (documents=), so rows can't be traced to tokens"
        return None
    make = corpus.windows if tokens["rows"] == "windows" else corpus.packed
    rows: TokenRows = make(tokens["length"], **_batching(record), **options)
    return rows


def _open(name: str, recipe: Mapping[str, Any], given: str | None, notes: dict[str, str]) -> TokenCorpus | None:
    files = given or recipe["files"]
    if files is None:
        notes[name] = f"{name}: the checkpoint doesn't name the files of its corpus; --corpus {name}=FILES does"
        return None
    try:
        if recipe.get("megatron"):
            corpus = TokenCorpus.megatron(files, eos=recipe["eos"])
        else:
            corpus = TokenCorpus(files, dtype=recipe.get("dtype"), eos=recipe.get("eos"), column=recipe["column"])
    except (ConfigError, SourceError, OSError) as error:
        if given is not None:
            raise
        notes[name] = f"{name}: {error}; --corpus {name}=FILES says where its files are"
        return None
    if corpus.num_tokens != recipe["num_tokens"]:
        raise ConfigError(
            f"source {name!r}: {files} hold {corpus.num_tokens} tokens, but the corpus that was trained on had "
            f"{recipe['num_tokens']}: give its files as --corpus {name}=FILES"
        )
    return corpus
