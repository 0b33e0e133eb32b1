"""Row G: rows of token corpora: windows, packing, opening, and from a row to its document and back."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import on_disk
import pytest
import torch
from conftest import HandOn, Measure
from numpy.typing import NDArray
from tables import Measurement
from torch.utils.data import DataLoader, Dataset

import mtf

LENGTH, BATCH = 2048, 8


class Corpus:
    """Tokens of documents whose lengths are log-normal, each ending with 0, in a file and in memory."""

    def __init__(self, path: Path, num_tokens: int) -> None:
        rng = np.random.default_rng(0)
        lengths = np.maximum(2, rng.lognormal(6.5, 1.2, num_tokens // 500).astype(np.int64))
        ends = np.cumsum(lengths)
        ends = np.append(ends[ends < num_tokens], num_tokens)
        self.tokens = rng.integers(1, 50_000, num_tokens, dtype=np.uint16)
        self.tokens[ends - 1] = 0
        self.offsets = np.insert(ends, 0, 0)
        self.path = path
        self.tokens.tofile(path)


@pytest.fixture(scope="module")
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    small = request.config.getoption("--smoke")
    return Corpus(tmp_path_factory.mktemp("tokens") / "corpus.bin", 2_000_000 if small else 100_000_000)


class Windows(Dataset[torch.Tensor]):
    """A map-style dataset over a memory map, as training scripts have it."""

    def __init__(self, path: Path) -> None:
        self.tokens = np.memmap(path, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.tokens[index * LENGTH : (index + 1) * LENGTH + 1].astype(np.int64))


def by_hand(corpus: Corpus) -> Iterator[Any]:
    windows = torch.from_numpy(corpus.tokens).unfold(0, LENGTH + 1, LENGTH)
    while True:
        order = torch.randperm(len(windows))
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            yield windows.index_select(0, order[begin : begin + BATCH]).long()


def numpy_slices(corpus: Corpus) -> Iterator[Any]:
    data = Windows(corpus.path)
    while True:
        order = np.random.default_rng(0).permutation(len(data)).tolist()
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            yield torch.stack([data[index] for index in order[begin : begin + BATCH]])


def data_loader(corpus: Corpus) -> Iterator[Any]:
    while True:
        yield from DataLoader(Windows(corpus.path), BATCH, shuffle=True, drop_last=True)


def hf_datasets(corpus: Corpus) -> Iterator[Any]:
    datasets = pytest.importorskip("datasets")
    rows = np.lib.stride_tricks.sliding_window_view(corpus.tokens, LENGTH + 1)[::LENGTH][:4000]
    data = datasets.Dataset.from_dict({"input_ids": list(rows.astype(np.int32))}).with_format("torch")
    while True:
        order = np.random.default_rng(0).permutation(len(data)).tolist()
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            yield data[order[begin : begin + BATCH]]["input_ids"].long()


def of_grain(corpus: Corpus) -> Iterator[Any]:
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.source(Windows(corpus.path)).seed(0).shuffle().repeat()
    return iter(data.map(lambda row: row.numpy()).batch(BATCH).to_iter_dataset(grain.ReadOptions(num_threads=1)))


def of_litdata(corpus: Corpus) -> Iterator[Any]:
    litdata = pytest.importorskip("litdata")
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder = corpus.path.with_suffix(".litdata")
    if not folder.exists():
        folder.mkdir()
        writer = BinaryWriter(str(folder), chunk_size=(LENGTH + 1) * 1000, item_loader=TokensLoader(LENGTH + 1))
        for number, part in enumerate(np.array_split(corpus.tokens[: 4000 * (LENGTH + 1)], 40)):
            writer.add_item(number, torch.from_numpy(part.astype(np.int32)))
        writer.done()
        writer.merge()
    data = litdata.StreamingDataset(str(folder), item_loader=TokensLoader(LENGTH + 1), shuffle=True, drop_last=True)
    while True:
        for batch in litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=0):
            yield batch.long()


def of_streaming(corpus: Corpus) -> Iterator[Any]:
    rows = np.lib.stride_tricks.sliding_window_view(corpus.tokens, LENGTH + 1)[::LENGTH][:4000]
    parts = [torch.from_numpy(rows.astype(np.int32))]
    return (batch["x"].long() for batch in on_disk.of_streaming(corpus.path.with_suffix(".mds"), parts, [1.0], BATCH))


def of_mtf(kind: str, **options: Any) -> Callable[[Corpus], Iterator[Any]]:
    def make(corpus: Corpus) -> Iterator[Any]:
        known = {"documents": corpus.offsets} if options.get("offsets") or kind == "packed" else {"eos": 0}
        tokens = mtf.TokenCorpus(corpus.path, dtype="uint16", **known)
        threads = options.get("num_threads", 1)
        rows = (
            tokens.packed(LENGTH, batch_size=BATCH, num_threads=threads)
            if kind == "packed"
            else tokens.windows(
                LENGTH, boundaries=options.get("boundaries", False), batch_size=BATCH, num_threads=threads
            )
        )
        while True:
            yield from rows

    return make


BY_HAND, BASE = "by hand, unfold + index_select + long", "mtf windows, no threads"
TOOLS: dict[str, Callable[[Corpus], Iterator[Any]]] = {
    BY_HAND: by_hand,
    "mtf windows, 1 thread": of_mtf("windows"),
    BASE: of_mtf("windows", num_threads=0),
    "mtf windows with boundaries by eos, 1 thread": of_mtf("windows", boundaries=True),
    "mtf windows with boundaries by eos, no threads": of_mtf("windows", boundaries=True, num_threads=0),
    "mtf windows with boundaries by offsets, no threads": of_mtf(
        "windows", boundaries=True, offsets=True, num_threads=0
    ),
    "mtf packed, 1 thread": of_mtf("packed"),
    "mtf packed, no threads": of_mtf("packed", num_threads=0),
    "numpy slices": numpy_slices,
    "torch DataLoader": data_loader,
}
LIBRARIES: dict[str, Callable[[Corpus], Iterator[Any]]] = {
    "datasets": hf_datasets,
    "grain": of_grain,
    "litdata": of_litdata,
    "mosaicml-streaming": of_streaming,
}


def time_in_turn(
    tools: dict[str, Callable[[Corpus], Iterator[Any]]], corpus: Corpus, rounds: int, batches: int
) -> dict[str, list[float]]:
    """Nanoseconds a token of each tool that is installed, round by round: what else the machine does meets all."""
    streams: dict[str, Iterator[Any]] = {}
    for name, make in tools.items():
        stream = make(corpus)
        try:
            next(stream)
        except (pytest.skip.Exception, ImportError):
            continue
        streams[name] = stream
    times: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds):
        for name, stream in streams.items():
            count = batches if name.startswith(("mtf", "by hand")) else max(1, batches // 8)
            begin = time.perf_counter()
            for _ in range(count):
                next(stream)
            times[name].append((time.perf_counter() - begin) * 1e9 / (count * BATCH * LENGTH))
    return times


def test_rows_of_tokens(corpus: Corpus, form: str, pick: Any, hand_on: HandOn) -> None:
    """Libraries come last: one of them sets the allocator so that the loop by hand takes ten times as long after it."""
    rounds, batches = pick(15, 7, 1), pick(400, 200, 4)
    reference, scale = BY_HAND, 0.0
    for tools in (TOOLS,) if form == "smoke" else (TOOLS, {BASE: TOOLS[BASE], **LIBRARIES}):
        times = time_in_turn(tools, corpus, rounds, batches)
        for name, found in times.items():
            if scale and name == reference:
                continue
            ratios = [own / other for own, other in zip(found, times[reference], strict=True)]
            hand_on(
                Measurement(
                    "G",
                    "int64 tokens of rows of 2,048, batches of 8",
                    "",
                    name,
                    statistics.median(ratios) * (scale or statistics.median(times[reference])),
                    per_second=True,
                    spread=None if rounds < 4 else np.subtract(*np.percentile(ratios, [75, 25])) / np.median(ratios),
                )
            )
        reference, scale = BASE, statistics.median(times[BASE])


def documents_of(num: int, longest: float = 6.5) -> NDArray[np.int64]:
    lengths = np.maximum(1, np.random.default_rng(1).lognormal(longest, 1.2, num)).astype(np.int64)
    return np.insert(np.cumsum(lengths), 0, 0)


@pytest.mark.parametrize("exponent", [5, 6, 7])
def test_packing_tables(measure: Measure, form: str, tmp_path: Path, exponent: int) -> None:
    if form != "full" and exponent > (3 if form == "smoke" else 6):
        exponent = 4
    offsets = documents_of(10**exponent)
    path = tmp_path / "holes.bin"
    with open(path, "wb") as file:
        file.truncate(int(offsets[-1]))
    corpus = mtf.TokenCorpus(path, dtype="uint8", documents=offsets)
    rows = corpus.packed(8192)
    what = f"10^{exponent} documents in rows of 8,192"
    measure(lambda: corpus.packed(8192), row="G", work="table of a packing", size=what, tool="mtf", rounds=5, warmup=1)
    assert rows.fill > 0.99


def test_packed_rows_open_anywhere(measure: Measure, pick: Any, tmp_path: Path) -> None:
    offsets = documents_of(pick(10**6, 10**5, 10**3))
    path = tmp_path / "holes.bin"
    with open(path, "wb") as file:
        file.truncate(int(offsets[-1]))
    rows = mtf.TokenCorpus(path, dtype="uint8", documents=offsets).packed(8192)
    core, num = rows.core_rows, pick(1000, 1000, 10)
    places = np.random.default_rng(0).integers(0, rows.num_rows, num).tolist()

    def look() -> None:
        for place in places:
            core.trace(place, 10**9, place)  # another key each time: nothing is kept from the one before

    measure(look, row="G", work="documents of a packed row in a pass never seen", tool="mtf", items=num)


def test_ten_thousand_files_open(measure: Measure, pick: Any, tmp_path: Path) -> None:
    num = pick(10_000, 2_000, 20)
    for number in range(num):
        (tmp_path / f"{number:05}.bin").write_bytes(bytes(8192))
    measure(
        lambda: next(iter(mtf.TokenCorpus(f"{tmp_path}/*.bin", dtype="uint16").windows(1024, batch_size=8))),
        row="G",
        work="first batch of a corpus in files",
        size=f"{num:,} files",
        tool="mtf",
    )


@pytest.mark.parametrize("what", ["trace", "find"])
def test_provenance_of_a_blend_at_step_ten_to_the_nine(measure: Measure, pick: Any, tmp_path: Path, what: str) -> None:
    path, num_tokens = tmp_path / "holes.bin", 16 * (10**9 + 1)
    with open(path, "wb") as file:
        file.truncate(num_tokens)
    offsets = np.linspace(0, num_tokens, 10**6 + 1).astype(np.int64)
    rows = mtf.TokenCorpus(path, dtype="uint8", documents=offsets).windows(16)
    weights = {"web": 0.7, "code": 0.3}
    blend = mtf.Blend(dict.fromkeys(weights, rows), weights=weights, global_batch_size=1024)
    first, num = 10**9, pick(8, 4, 1)
    samples = [sample for step in range(first, first + num) for sample in blend.trace(step)]
    assert all(
        s in blend.find(s.source, row=s.row, start=s.step, stop=s.step + 1) for s in samples[:: len(samples) // 10]
    )

    def look() -> None:
        if what == "trace":
            for step in range(first, first + num):
                blend.trace(step)
        else:
            for s in samples:
                blend.find(s.source, row=s.row, start=s.step, stop=s.step + 1)

    measure(look, row="G", work=f"{what} in a blend at step 10^9", tool="mtf", items=len(samples))


@pytest.mark.parametrize("what", ["trace", "find"])
def test_provenance_at_ten_to_the_nine_rows(measure: Measure, pick: Any, tmp_path: Path, what: str) -> None:
    path, num_tokens = tmp_path / "holes.bin", 16 * (10**9 + 1)
    with open(path, "wb") as file:
        file.truncate(num_tokens)
    offsets = np.linspace(0, num_tokens, 10**6 + 1).astype(np.int64)
    rows = mtf.TokenCorpus(path, dtype="uint8", documents=offsets).windows(16)
    num, core = pick(2000, 500, 10), rows.core_rows
    rng = np.random.default_rng(0)
    places = rng.integers(0, rows.num_rows, num).tolist()
    spans = [core.trace(1, 7, place)[0] for place in places]
    assert all(
        core.find(1, 7, begin, begin + count) == [place] for place, (begin, count) in zip(places, spans, strict=True)
    )

    def look() -> None:
        if what == "trace":
            for place in places:
                rows.trace(7, place)
        else:
            for begin, count in spans:
                core.find(1, 7, begin, begin + count)

    measure(look, row="G", work=f"{what} among 10^9 rows", tool="mtf", items=num)
