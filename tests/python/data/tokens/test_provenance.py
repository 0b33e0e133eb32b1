"""``trace`` names the file, the document and the tokens of every input; ``find`` is its inverse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from token_files import some_documents

import mtf


def corpus_in_files(tmp_path: Path) -> tuple[mtf.TokenCorpus, list[np.ndarray]]:
    documents = some_documents(300, 70, seed=11)
    for number in range(5):
        np.concatenate(documents[number * 60 : number * 60 + 60]).astype("uint16").tofile(tmp_path / f"{number}.bin")
    return mtf.TokenCorpus(f"{tmp_path}/*.bin", dtype="uint16", eos=0), documents


@pytest.mark.parametrize("kind", ["windows", "packed"])
def test_trace_names_the_tokens_of_every_row(tmp_path: Path, kind: str) -> None:
    corpus, documents = corpus_in_files(tmp_path)
    assert corpus.num_documents == 300
    rows = corpus.windows(50, batch_size=6, seed=2) if kind == "windows" else corpus.packed(50, batch_size=6, seed=2)
    files = {str(tmp_path / f"{number}.bin"): np.fromfile(tmp_path / f"{number}.bin", "uint16") for number in range(5)}
    for pass_ in range(2):
        for number, batch in enumerate(rows):
            for row in range(len(batch["input_ids"])):
                inputs = batch["input_ids"][row].numpy()
                at = 0
                for file, begin, end, document, offset in rows.trace(pass_, number * 6 + row):
                    got = inputs[at : at + end - begin]
                    assert np.array_equal(files[file][begin:end], got)
                    assert document is not None
                    assert offset is not None
                    assert np.array_equal(documents[document][offset : offset + end - begin], got)
                    at += end - begin
                assert at == 50 or kind == "packed"


@pytest.mark.parametrize("kind", ["windows", "packed"])
def test_find_is_the_inverse_of_trace(tmp_path: Path, kind: str) -> None:
    corpus, _ = corpus_in_files(tmp_path)
    rows = corpus.windows(50) if kind == "windows" else corpus.packed(50)
    _ = corpus.documents
    for pass_ in (0, 3):
        places: dict[int, set[int]] = {document: set() for document in range(300)}
        for place in range(rows.num_rows):
            for origin in rows.trace(pass_, place):
                assert origin.document is not None
                places[origin.document].add(place)
        for document, wanted in places.items():
            assert rows.find(document, pass_) == sorted(wanted)
        assert rows.find(7, pass_, key=99) != rows.find(7, pass_)


def test_documents_are_named_once_they_are_known(tmp_path: Path) -> None:
    corpus, _ = corpus_in_files(tmp_path)
    rows = corpus.windows(50)
    assert all(origin.document is None for origin in rows.trace(0, 0))
    assert rows.find(4, 0)  # reads the corpus for its documents
    assert all(origin.document is not None for origin in rows.trace(0, 0))


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    corpus, _ = corpus_in_files(tmp_path)
    rows = corpus.windows(50)
    with pytest.raises(IndexError, match="place must be in"):
        rows.trace(0, rows.num_rows)
    with pytest.raises(IndexError, match="document must be in"):
        rows.find(300, 0)
    with pytest.raises(IndexError, match="must lie within"):
        corpus.origins(0, len(corpus) + 1)
    with pytest.raises(IndexError, match="must lie within"):
        corpus.tokens(5, 4)
    with pytest.raises(mtf.ConfigError, match="doesn't say where documents end"):
        mtf.TokenCorpus(np.arange(100)).windows(9).find(0, 0)


def test_find_undoes_trace_in_a_corpus_of_ten_to_the_nine_rows(tmp_path: Path) -> None:
    """A file of holes: nothing is read, so its size costs nothing."""
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(16 * (10**9 + 1))
    num_documents = 1_000_000
    corpus = mtf.TokenCorpus(
        path, dtype="uint8", documents=np.linspace(0, 16 * (10**9 + 1), num_documents + 1).astype(np.int64)
    )
    rows = corpus.windows(16)
    assert rows.num_rows == 10**9
    for place in (0, 1, 123_456_789, 10**9 - 1):
        for pass_ in (0, 10**6):
            origin = rows.trace(pass_, place)[0]
            assert origin.document is not None
            assert place in rows.find(origin.document, pass_)
