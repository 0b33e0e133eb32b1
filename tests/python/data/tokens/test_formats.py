"""Every layout gives the tokens and documents that were written; every damage is one error that names the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_files import some_documents, write_megatron

import mtf

DOCUMENTS = some_documents(40, 90, seed=1)
STREAM = np.concatenate(DOCUMENTS)
OFFSETS = np.cumsum([0, *map(len, DOCUMENTS)])


def test_raw_files_of_every_dtype(tmp_path: Path) -> None:
    for dtype in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        tokens = (STREAM % 100).astype(dtype)
        tokens.tofile(tmp_path / "a.bin")
        corpus = mtf.TokenCorpus(tmp_path / "a.bin", dtype=dtype)
        assert corpus.dtype == np.dtype(dtype)
        assert np.array_equal(corpus.tokens(0, len(tokens)), tokens.astype(np.int64))
        batch = next(iter(corpus.windows(64, moving=False, shuffle=False, batch_size=2)))
        assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
        assert np.array_equal(batch["input_ids"].reshape(-1), tokens[:128])
        assert np.array_equal(batch["labels"].reshape(-1), tokens[1:129])


def test_files_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, part in enumerate(np.array_split(STREAM, 7)):
        part.astype("uint16").tofile(tmp_path / f"part-{number}.bin")
    (tmp_path / "deep").mkdir()
    (tmp_path / "empty.bin").touch()
    corpus = mtf.TokenCorpus(f"{tmp_path}/*.bin", dtype="uint16")
    assert corpus.num_files == 7
    assert len(corpus) == corpus.num_tokens == len(STREAM)
    assert np.array_equal(corpus.tokens(0, len(STREAM)), STREAM)
    listed = mtf.TokenCorpus([tmp_path / "part-3.bin", str(tmp_path / "part-1.bin")], dtype="uint16")
    parts = np.array_split(STREAM, 7)
    assert np.array_equal(listed.tokens(0, len(listed)), np.concatenate([parts[3], parts[1]]))


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("modes", [False, True])
def test_megatron_pairs(tmp_path: Path, dtype: str, modes: bool) -> None:
    sequences = [np.array_split(document, min(3, len(document))) for document in DOCUMENTS]
    for number, part in enumerate((sequences[:10], sequences[10:])):
        write_megatron(tmp_path / f"web_{number}_text_document", part, dtype, modes)
    for prefixes in (
        [tmp_path / "web_0_text_document", f"{tmp_path}/web_1_text_document.bin"],
        f"{tmp_path}/web_*.idx",
    ):
        corpus = mtf.TokenCorpus.megatron(prefixes)
        assert np.array_equal(corpus.tokens(0, len(corpus)), STREAM)
        assert np.array_equal(corpus.documents, OFFSETS)
        assert corpus.dtype == np.dtype(dtype)


def test_megatron_index_is_laid_out_as_documented(tmp_path: Path) -> None:
    """The bytes of a small index, spelled out."""
    write_megatron(tmp_path / "a", [[[1, 2, 3], [4]], [[5, 6]]])
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<6H", 1, 2, 3, 4, 5, 6)
    assert (tmp_path / "a.idx").read_bytes() == (
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, 8, 3, 3)
        + struct.pack("<3i", 3, 1, 2)
        + struct.pack("<3q", 0, 6, 8)
        + struct.pack("<3q", 0, 2, 3)
    )
    assert mtf.TokenCorpus.megatron(tmp_path / "a").documents.tolist() == [0, 4, 6]


def test_npy_with_and_without_a_header(tmp_path: Path) -> None:
    np.save(tmp_path / "numpy.npy", STREAM.astype("uint16"))
    STREAM.astype("uint16").tofile(tmp_path / "raw.npy")  # as OLMo and nanotron write them
    for corpus in (
        mtf.TokenCorpus(tmp_path / "numpy.npy"),
        mtf.TokenCorpus(tmp_path / "numpy.npy", dtype="uint16"),
        mtf.TokenCorpus(tmp_path / "raw.npy", dtype="uint16"),
    ):
        assert np.array_equal(corpus.tokens(0, len(corpus)), STREAM)


def test_arrays_and_memory_maps(tmp_path: Path) -> None:
    STREAM.astype("int32").tofile(tmp_path / "a.bin")
    mapped = np.memmap(tmp_path / "a.bin", dtype="int32", mode="r")
    for data in (STREAM, mapped, torch.from_numpy(STREAM), np.repeat(STREAM, 2)[::2]):
        corpus = mtf.TokenCorpus(data)
        assert np.array_equal(corpus.tokens(0, len(corpus)), STREAM)
    joined = mtf.TokenCorpus([STREAM[:100], STREAM[100:]])
    assert np.array_equal(joined.tokens(0, len(joined)), STREAM)


@pytest.mark.parametrize("kind", ["file", "stream", "parquet"])
def test_arrow_and_parquet_columns(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lists = pyarrow.array([document.tolist() for document in DOCUMENTS], pyarrow.list_(pyarrow.int32()))
    table = pyarrow.table({"text": ["x"] * len(DOCUMENTS), "input_ids": lists})
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        parquet.write_table(table, path, row_group_size=11)
    else:
        path = tmp_path / "a.arrow"
        new = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    corpus = mtf.TokenCorpus(path)
    assert np.array_equal(corpus.tokens(0, len(corpus)), STREAM)
    assert np.array_equal(corpus.documents, OFFSETS)
    origin = corpus.origins(int(OFFSETS[20]), int(OFFSETS[21]))
    assert origin == [(str(path), OFFSETS[20], OFFSETS[21], 20, 0)]
    with pytest.raises(mtf.SourceError, match="has no column 'tokens'"):
        mtf.TokenCorpus(path, column="tokens")
    with pytest.raises(mtf.SourceError, match="must hold lists of integers"):
        mtf.TokenCorpus(path, column="text")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(mtf.SourceError, match=f"^{path}"):
        mtf.TokenCorpus(path)


def test_documents_from_offsets_equal_those_from_the_end_token(tmp_path: Path) -> None:
    parts = [DOCUMENTS[:7], DOCUMENTS[7:]]
    for number, part in enumerate(parts):
        np.concatenate(part).astype("uint16").tofile(tmp_path / f"{number}.bin")
    pattern = f"{tmp_path}/*.bin"
    by_eos = mtf.TokenCorpus(pattern, dtype="uint16", eos=0)
    whole = mtf.TokenCorpus(pattern, dtype="uint16", documents=OFFSETS)
    each = mtf.TokenCorpus(pattern, dtype="uint16", documents=[np.cumsum([0, *map(len, part)]) for part in parts])
    for corpus in (by_eos, whole, each):
        assert np.array_equal(corpus.documents, OFFSETS)
        assert corpus.num_documents == 40


def damaged_megatron(tmp_path: Path) -> dict[str, tuple[Path, Any]]:
    """Kind of damage -> the file that the error names, and what does the damage."""
    index, data = tmp_path / "a.idx", tmp_path / "a.bin"

    def patched(at: int, value: bytes) -> Any:
        def patch() -> None:
            content = bytearray(index.read_bytes())
            content[at : at + len(value)] = value
            index.write_bytes(content)

        return patch

    return {
        "data missing": (data, data.unlink),
        "index missing": (index, index.unlink),
        "data cut": (data, lambda: os.truncate(data, 10)),
        "data cut inside a token": (data, lambda: os.truncate(data, 11)),
        "data too long": (data, lambda: data.write_bytes(data.read_bytes() + b"\0\0")),
        "index cut": (index, lambda: os.truncate(index, index.stat().st_size - 1)),
        "index cut in its header": (index, lambda: os.truncate(index, 20)),
        "another magic": (index, patched(0, b"X")),
        "another version": (index, patched(9, b"\x02")),
        "a dtype of floats": (index, patched(17, b"\x06")),
        "a length": (index, patched(34, b"\x07")),
        "a pointer": (index, patched(34 + 3 * 4 + 8, b"\x07")),
        "a document": (index, patched(34 + 3 * 12 + 8, b"\x09")),
    }


@pytest.mark.parametrize("damage", damaged_megatron(Path()))
def test_damaged_megatron_pairs_are_named(tmp_path: Path, damage: str) -> None:
    write_megatron(tmp_path / "a", [[[1, 2, 3], [4]], [[5, 6]]])
    path, do = damaged_megatron(tmp_path)[damage]
    do()
    with pytest.raises(mtf.SourceError, match=f"^{path}: "):
        mtf.TokenCorpus.megatron(tmp_path / "a")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    raw, npy = tmp_path / "a.bin", tmp_path / "a.npy"
    STREAM.astype("uint16").tofile(raw)
    os.truncate(raw, 11)
    with pytest.raises(
        mtf.SourceError, match=f"^{raw}: has 11 bytes of tokens, .* 2 bytes of a uint16; the file is cut"
    ):
        mtf.TokenCorpus(raw, dtype="uint16")
    with pytest.raises(mtf.SourceError, match=f"^{tmp_path}/none.bin: can't be read: No such file"):
        mtf.TokenCorpus(tmp_path / "none.bin", dtype="uint16")
    np.save(npy, STREAM.astype("uint16"))
    os.truncate(npy, npy.stat().st_size - 2)
    with pytest.raises(mtf.SourceError, match=f"^{npy}: should have {len(STREAM)} tokens by its header"):
        mtf.TokenCorpus(npy)
    os.truncate(npy, 20)
    with pytest.raises(mtf.SourceError, match=f"^{npy}: has a damaged .npy header"):
        mtf.TokenCorpus(npy)
    np.save(npy, STREAM[:40].reshape(4, 10))
    with pytest.raises(mtf.SourceError, match="one dimension of integer tokens"):
        mtf.TokenCorpus(npy)
    np.save(npy, STREAM[:40].astype("float32"))
    with pytest.raises(mtf.SourceError, match="one dimension of integer tokens"):
        mtf.TokenCorpus(npy)


def test_mistakes_are_one_error_each(tmp_path: Path) -> None:
    STREAM.astype("uint16").tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", STREAM.astype("int32"))
    path = tmp_path / "a.bin"
    cases: list[tuple[str, Any]] = [
        ("give dtype=", lambda: mtf.TokenCorpus(path)),
        ("integer type", lambda: mtf.TokenCorpus(path, dtype="float16")),
        ("integer type", lambda: mtf.TokenCorpus(path, dtype="nothing")),
        ("byte order", lambda: mtf.TokenCorpus(path, dtype=">u2")),
        ("no file matches", lambda: mtf.TokenCorpus(f"{tmp_path}/*.tokens", dtype="uint16")),
        ("at least one token", lambda: mtf.TokenCorpus(np.zeros(0, np.int32))),
        ("at least one token", lambda: mtf.TokenCorpus([])),
        ("one dtype", lambda: mtf.TokenCorpus([path, STREAM], dtype="uint16")),
        ("holds int32, but dtype is 'uint16'", lambda: mtf.TokenCorpus(tmp_path / "b.npy", dtype="uint16")),
        ("one dimension", lambda: mtf.TokenCorpus(np.zeros((3, 3), np.int32))),
        ("must be a path", lambda: mtf.TokenCorpus({"a": 1})),  # type: ignore[arg-type]
        ("either eos or documents", lambda: mtf.TokenCorpus(path, dtype="uint16", eos=0, documents=OFFSETS)),
        ("last offset", lambda: mtf.TokenCorpus(path, dtype="uint16", documents=OFFSETS[:-1])),
        ("first offset", lambda: mtf.TokenCorpus(path, dtype="uint16", documents=OFFSETS[1:])),
        ("must not fall", lambda: mtf.TokenCorpus(path, dtype="uint16", documents=[0, 5, 3, len(STREAM)])),
        ("offsets, one dimension", lambda: mtf.TokenCorpus(path, dtype="uint16", documents=[0.0, 5.0])),
        ("each of the 1 files", lambda: mtf.TokenCorpus(path, dtype="uint16", documents=[OFFSETS, OFFSETS])),
        ("max_open_files", lambda: mtf.TokenCorpus(path, dtype="uint16", max_open_files=0)),
    ]
    for text, make in cases:
        with pytest.raises(mtf.ConfigError, match=text):
            make()
    (tmp_path / "a.idx").touch()
    with pytest.raises(mtf.ConfigError, match=r"TokenCorpus\.megatron"):
        mtf.TokenCorpus(path)


def one_of_each_format(folder: Path) -> dict[str, Any]:
    """Name of a file -> a function that opens its corpus."""
    import pyarrow
    import pyarrow.parquet

    lists = pyarrow.array([document.tolist() for document in DOCUMENTS], pyarrow.list_(pyarrow.int32()))
    table = pyarrow.table({"input_ids": lists})
    for name, writer in (("a.arrow", pyarrow.ipc.new_file), ("b.arrow", pyarrow.ipc.new_stream)):
        with writer(str(folder / name), table.schema) as file:
            for batch in table.to_batches(max_chunksize=15):
                file.write_batch(batch)
    pyarrow.parquet.write_table(table, folder / "c.parquet", row_group_size=15)
    np.save(folder / "d.npy", STREAM.astype("uint16"))
    write_megatron(folder / "e", [[document] for document in DOCUMENTS])
    found: dict[str, Any] = {
        name: lambda name=name: mtf.TokenCorpus(folder / name) for name in ("a.arrow", "b.arrow", "c.parquet", "d.npy")
    }
    return {**found, **dict.fromkeys(("e.idx", "e.bin"), lambda: mtf.TokenCorpus.megatron(folder / "e"))}


@pytest.mark.parametrize("name", ["a.arrow", "b.arrow", "c.parquet", "d.npy", "e.idx", "e.bin"])
def test_a_file_cut_anywhere_is_one_error_that_names_it(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    make, path = one_of_each_format(tmp_path)[name], tmp_path / name
    whole = path.read_bytes()
    assert len(make()) == len(STREAM)
    ends = [*range(0, len(whole), 13), len(whole) - 1]
    if name == "b.arrow":  # where a batch ends: what is left is a stream, too
        ends += [at + 8 for at in range(0, len(whole) - 8, 8)]
    for end in ends:
        path.write_bytes(whole[:end])
        if end == len(whole):
            continue
        with pytest.raises((mtf.SourceError, mtf.ConfigError)) as caught:
            make()
        assert str(caught.value).startswith(f"{path}: "), end
        assert "\n" not in str(caught.value)
        # Without its first bytes a .npy file is one of raw tokens, whose dtype has to be given.
        assert isinstance(caught.value, mtf.SourceError) or (name == "d.npy" and end < 6)


@pytest.mark.parametrize("name", ["a.arrow", "b.arrow", "c.parquet", "d.npy", "e.idx"])
def test_a_flipped_bit_is_one_error_or_another_token(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    make, path = one_of_each_format(tmp_path)[name], tmp_path / name
    whole, rng = path.read_bytes(), np.random.default_rng(4)
    said = []
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            corpus = make()
        except (mtf.SourceError, mtf.ConfigError) as error:
            said.append(str(error))
        else:
            assert len(corpus.tokens(0, len(corpus))) == len(corpus)
            assert not corpus.has_documents or corpus.documents[-1] == len(corpus)
    assert len(said) > 3
    for message in said:
        assert message.startswith(str(path.with_suffix("")))  # of a pair either file
        assert "\n" not in message


def test_an_end_token_that_ends_nothing_is_reported(tmp_path: Path) -> None:
    for number, tokens in enumerate(([5, 6, 7], [8, 9])):
        np.array(tokens, dtype=np.uint16).tofile(tmp_path / f"{number}.bin")
    with pytest.warns(UserWarning, match=r"eos=2 ends no document of .*0\.bin: each file is one document"):
        assert mtf.TokenCorpus(f"{tmp_path}/*.bin", dtype="uint16", eos=2).num_documents == 2
    np.array([5, 6, 2], dtype=np.uint16).tofile(tmp_path / "0.bin")
    assert mtf.TokenCorpus(f"{tmp_path}/*.bin", dtype="uint16", eos=2).num_documents == 2
