"""Rows of a corpus hold exactly the tokens that their description says, alone, in a mixture and on several ranks."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from token_files import expected_row, some_documents

import mtf
from mtf import _core
from mtf.testing import assert_resumes_exactly, content_hash

FIELDS = ("input_ids", "labels", "position_ids", "loss_mask")


def key_of(seed: int, name: str = "") -> int:
    return _core.fold_in(_core.fold_in(seed, "source"), name)


def order_of(num_rows: int, key: int, pass_: int) -> list[int]:
    return _core.Permutation(num_rows, _core.fold_in(key, pass_)).fill(0, num_rows).tolist()


def rows_of(batches: list[dict[str, torch.Tensor]]) -> dict[str, NDArray[Any]]:
    return {name: torch.cat([batch[name] for batch in batches]).numpy() for name in batches[0] if name in FIELDS}


def corpus_of(documents: list[NDArray[Any]], tmp_path: Path, num_files: int = 3, **options: Any) -> mtf.TokenCorpus:
    """The documents in files, each file whole documents, and known by their end token."""
    bounds = np.linspace(0, len(documents), num_files + 1).astype(int)
    for number in range(num_files):
        part = documents[bounds[number] : bounds[number + 1]]
        np.concatenate([np.zeros(0), *part]).astype("uint16").tofile(tmp_path / f"{number}.bin")
    return mtf.TokenCorpus(f"{tmp_path}/*.bin", dtype="uint16", **{"eos": 0, **options})


def check_window(row: dict[str, NDArray[Any]], stream: NDArray[Any], begin: int, length: int) -> None:
    """The row against the documentation: cut after each end token; labels of other documents are ignored."""
    inputs, labels = stream[begin : begin + length], stream[begin + 1 : begin + length + 1]
    ends = inputs == 0
    wanted = expected_row(inputs, labels, np.append(True, ends[:-1]), ends)
    for name in FIELDS:
        assert np.array_equal(row[name], wanted[name]), (name, begin)


@pytest.mark.parametrize("known", ["during the copy", "from offsets"])
@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 500])
def test_windows_hold_what_is_documented(tmp_path: Path, known: str, moving: bool, length: int) -> None:
    documents = some_documents(60, 80, seed=2)
    stream = np.concatenate(documents)
    corpus = corpus_of(documents, tmp_path)
    if known == "from offsets":
        assert corpus.num_documents == 60
    windows = corpus.windows(length, moving=moving, batch_size=7, seed=4)
    num_rows = (len(stream) - length) // length if moving else (len(stream) - 1) // length
    assert windows.num_rows == num_rows
    offsets = set()
    for pass_ in range(3):
        batches = list(windows)
        rows = rows_of(batches)
        assert len(rows["input_ids"]) == num_rows
        offset = windows.offset(pass_)
        offsets.add(offset)
        assert 0 <= offset <= (len(stream) - 1 - num_rows * length if moving else 0)
        for place, row in enumerate(order_of(num_rows, key_of(4), pass_)):
            check_window({name: rows[name][place] for name in FIELDS}, stream, offset + row * length, length)
    if moving and length > 60:
        assert len(offsets) == 3


def test_cu_seqlens_are_the_documents_of_the_batch_laid_flat(tmp_path: Path) -> None:
    corpus = corpus_of(some_documents(60, 80, seed=3), tmp_path)
    for rows in (corpus.windows(50, batch_size=4), corpus.packed(50, batch_size=4)):
        for batch in rows:
            flat = batch["position_ids"].reshape(-1)
            wanted = [*np.flatnonzero(flat.numpy() == 0), len(flat)]
            assert batch["cu_seqlens"].dtype == torch.int32
            assert batch["cu_seqlens"].tolist() == wanted
            # No document crosses a row, so that attention over variable lengths sees rows, too.
            assert set(range(0, len(flat), 50)) <= set(wanted)


def test_windows_without_boundaries_are_inputs_and_labels_alone(tmp_path: Path) -> None:
    corpus = corpus_of(some_documents(60, 80, seed=3), tmp_path)
    batch = next(iter(corpus.windows(50, boundaries=False, batch_size=4)))
    assert list(batch) == ["input_ids", "labels"]
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    assert list(next(iter(mtf.TokenCorpus(np.arange(100)).windows(9, batch_size=2)))) == ["input_ids", "labels"]
    with pytest.raises(mtf.ConfigError, match="doesn't say where documents end"):
        mtf.TokenCorpus(np.arange(100)).windows(9, boundaries=True)


def check_packed_pass(documents: list[NDArray[Any]], rows: dict[str, NDArray[Any]], length: int, long: str) -> None:
    """Finds every document in the rows by its tokens, which are its own; checks that nothing else is there."""
    wanted: dict[tuple[int, ...], int] = {}
    for document in documents:
        kept = len(document) if long == "split" or len(document) <= length else (length if long == "truncate" else 0)
        for begin in range(0, kept, length):
            inputs = document[begin : min(begin + length, kept)]
            labels = np.append(document, -100)[begin + 1 : begin + 1 + len(inputs)]
            piece = (*inputs.tolist(), *labels.tolist())
            wanted[piece] = wanted.get(piece, 0) + 1
    for place in range(len(rows["input_ids"])):
        row = {name: rows[name][place] for name in FIELDS}
        begins = [*np.flatnonzero(row["position_ids"] == 0), length]
        for begin, end in itertools.pairwise(begins):
            assert row["position_ids"][begin:end].tolist() == list(range(end - begin))
            assert np.array_equal(row["loss_mask"], row["labels"] != -100)
            if (row["input_ids"][begin:end] == 7).all() and not row["loss_mask"][begin:end].any() and end == length:
                continue  # padding
            piece = (*row["input_ids"][begin:end].tolist(), *row["labels"][begin:end].tolist())
            assert wanted.get(piece, 0) > 0, (place, begin, piece)
            wanted[piece] -= 1
    assert not any(wanted.values())


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    length=st.integers(1, 45),
    long=st.sampled_from(["split", "truncate", "drop"]),
)
def test_packed_rows_hold_each_document_once_a_pass(lengths: list[int], length: int, long: Any) -> None:
    rng = np.random.default_rng(sum(lengths))
    documents = [rng.integers(10, 10_000, size) for size in lengths]
    stream = np.concatenate(documents)
    corpus = mtf.TokenCorpus(stream, documents=np.cumsum([0, *lengths]))
    if long == "drop" and min(lengths) > length:
        with pytest.raises(mtf.ConfigError, match="none to pack"):
            corpus.packed(length, long=long)
        return
    packed = corpus.packed(length, long=long, pad=7, batch_size=5)
    for _ in range(2):
        rows = rows_of(list(packed))
        check_packed_pass(documents, rows, length, long)
        assert packed.num_supervised_tokens == rows["loss_mask"].sum()
    kept = stream.size - packed.num_dropped_tokens
    assert packed.num_row_tokens == kept
    assert packed.fill == pytest.approx(kept / (packed.num_rows * length))


def test_packed_rows_give_documents_other_company_in_each_pass(tmp_path: Path) -> None:
    corpus = corpus_of(some_documents(3000, 60, seed=5), tmp_path)
    packed = corpus.packed(64)
    company = []
    for pass_ in range(2):
        pairs = set()
        for place in range(packed.num_rows):
            names = sorted(origin.document for origin in packed.trace(pass_, place))
            pairs |= {(a, b) for a in names for b in names if a < b}
        company.append(pairs)
    assert len(company[0] & company[1]) < 0.1 * len(company[0])


def test_packing_says_what_it_does(tmp_path: Path) -> None:
    documents = [np.full(size, 9) for size in (10, 4, 3, 3, 2)]
    corpus = mtf.TokenCorpus(np.concatenate(documents), documents=np.cumsum([0, 10, 4, 3, 3, 2]))
    assert repr(corpus.packed(8, batch_size=2)) == (
        "PackedRows(5 documents in 3 rows of 8 tokens, 2 batches of 2, fill 0.91667, 1 longer ones split, shuffled)"
    )
    assert "1 longer ones cut by 2 tokens" in repr(corpus.packed(8, long="truncate"))
    dropped = corpus.packed(8, long="drop")
    assert "4 documents in 2 rows" in repr(dropped)
    assert "1 longer ones with 10 tokens left out" in repr(dropped)
    assert (dropped.num_dropped_documents, dropped.num_dropped_tokens) == (1, 10)
    with pytest.raises(mtf.ConfigError, match="'split', 'truncate' or 'drop', but is 'cut'"):
        corpus.packed(8, long="cut")  # type: ignore[arg-type]
    with pytest.raises(mtf.ConfigError, match="packing needs to know where documents end"):
        mtf.TokenCorpus(np.arange(10)).packed(4)


def test_supervised_tokens_are_counted(tmp_path: Path) -> None:
    corpus = corpus_of(some_documents(300, 80, seed=6), tmp_path)
    windows = corpus.windows(32, batch_size=8)
    counted = [sum(int(batch["loss_mask"].sum()) for batch in windows) for _ in range(6)]
    assert windows.num_supervised_tokens == pytest.approx(np.mean(counted), rel=0.005)
    assert windows.tokens_per_row == 32
    assert windows.fill == 1
    assert windows.supervised_tokens_per_row == windows.num_supervised_tokens / windows.num_rows
    plain = corpus.windows(32, boundaries=False)
    assert plain.num_supervised_tokens == plain.num_row_tokens == plain.num_rows * 32


KINDS = ["windows", "packed"]


def make_rows(kind: str, corpus: mtf.TokenCorpus, **options: Any) -> mtf.TokenRows:
    return corpus.windows(48, **options) if kind == "windows" else corpus.packed(48, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_depend_on_threads_or_open_files(tmp_path: Path, kind: str) -> None:
    documents = some_documents(200, 60, seed=7)
    hashes = set()
    for max_open_files, num_threads in ((1, 0), (2, 2), (100, 1)):
        corpus = corpus_of(documents, tmp_path, num_files=9, max_open_files=max_open_files)
        rows = make_rows(kind, corpus, batch_size=6, num_threads=num_threads)
        hashes.add(tuple(content_hash(batch) for _ in range(2) for batch in rows))
        assert corpus.core.num_open_files <= max_open_files
    assert len(hashes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_share_each_global_batch(tmp_path: Path, kind: str) -> None:
    corpus = corpus_of(some_documents(100, 60, seed=8), tmp_path)
    rows = make_rows(kind, corpus, global_batch_size=7)
    whole = list(rows)
    for world_size in (2, 3):
        parts = [
            list(make_rows(kind, corpus, global_batch_size=7).shard(rank, world_size)) for rank in range(world_size)
        ]
        for number, batch in enumerate(whole[:-1]):
            for name in FIELDS:
                assert torch.equal(torch.cat([part[number][name] for part in parts]), batch[name])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_resume_exactly_alone_and_in_a_mixture(tmp_path: Path, kind: str) -> None:
    corpus = corpus_of(some_documents(80, 60, seed=9), tmp_path)
    alone = make_rows(kind, corpus, batch_size=4, seed=3)
    wanted = [content_hash(batch) for _ in range(2) for batch in alone]
    state: dict[str, Any] = {}
    for step in range(len(wanted)):
        fresh = make_rows(kind, corpus, batch_size=4, seed=3)
        if state:
            fresh.load_state_dict(state)
        # A state after the last batch of a pass opens the next one.
        batch = next(iter(fresh), None) or next(iter(fresh))
        assert content_hash(batch) == wanted[step]
        state = fresh.state_dict()
    other = corpus.windows(24, batch_size=4) if kind == "windows" else corpus.packed(24, batch_size=4)
    with pytest.raises(mtf.StateMismatch, match="length is 24 here, but 48 in the state"):
        other.load_state_dict({**state, "num_rows": other.num_rows})

    def make_loader() -> mtf.MultiLoader:
        config = mtf.MultiDataLoaderConfig(
            sampling_strategy="WEIGHTED", dataloader_weights=[0.7, 0.3], dataloader_names=["a", "b"]
        )
        return mtf.MultiLoader(
            {"a": make_rows(kind, corpus, batch_size=4), "b": corpus.windows(16, batch_size=3)}, config, seed=5
        )

    assert assert_resumes_exactly(make_loader, passes=2, every=5) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_while_training_is_named(tmp_path: Path, kind: str) -> None:
    corpus = corpus_of(some_documents(100, 60, seed=8), tmp_path, num_files=4, max_open_files=1)
    rows = make_rows(kind, corpus, batch_size=4, num_threads=0)
    next(iter(rows))
    path = tmp_path / "2.bin"
    os.truncate(path, 10)
    with pytest.raises(mtf.SourceError, match=f"{path}: has 10 bytes now"):
        list(rows)


def test_rows_for_a_blend_need_no_batch_size(tmp_path: Path) -> None:
    corpus = corpus_of(some_documents(100, 60, seed=8), tmp_path)
    rows = corpus.windows(32)
    assert "batches" not in repr(rows)
    with pytest.raises(mtf.ConfigError, match="give batch_size"):
        next(iter(rows))
    with pytest.raises(mtf.ConfigError, match="either batch_size"):
        corpus.windows(32, batch_size=2, global_batch_size=2)
    with pytest.raises(mtf.ConfigError, match="length must be at least 1"):
        corpus.windows(0)
    with pytest.raises(mtf.ConfigError, match="need a corpus of at least"):
        corpus.windows(1 << 20)
