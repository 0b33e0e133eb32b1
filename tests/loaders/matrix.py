"""The matrix of loaders: one row for each, what it promises, and the table of it in docs/loaders.md."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HEADER = "| library | loader | read by | exact resume | a resume reads | to know |"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "loaders.md"
IS_SHORT = os.environ.get("LOADERS_FORM") == "short"


@dataclass(frozen=True)
class Row:
    """One loader.

    Attributes:
        name: Function of ``module`` that makes it: ``(num_workers, folder)``.
        module: Where that is.
        library: The library, as its users call it.
        loader: What is made of it, in words.
        needs: Modules to import.
        read_by: ``position``, ``state`` or ``replay``.
        exact: Whether every resume is exact.
        advice: What to do where it isn't exact, and what else to know.
        workers: Numbers of worker processes to read it with; only 0 where the library has none.
        ends: Whether a pass ends.
        is_slow: Left out of the short form.
    """

    name: str
    module: str
    library: str
    loader: str
    needs: tuple[str, ...]
    read_by: str = "position"
    exact: bool = True
    advice: str = ""
    workers: tuple[int, ...] = (0, 2)
    ends: bool = True
    is_slow: bool = False


def _map(name: str, library: str, loader: str, *needs: str, **more: object) -> Row:
    return Row(name, "map_style", library, loader, needs, **more)  # type: ignore[arg-type]


def _stream(name: str, library: str, loader: str, *needs: str, **more: object) -> Row:
    return Row(name, "streams", library, loader, needs, **more)  # type: ignore[arg-type]


_PASSES = "each pass is shuffled differently, as after `repeat()`"
_BUFFER = "its buffer isn't in its state; shuffle map-style data where reading again takes too long"

ROWS = (
    _map("hf_map", "HF datasets", "map-style, in a `DataLoader`", "datasets"),
    _stream("hf_stream", "HF datasets", "stream, in a `DataLoader`", "datasets", read_by="state"),
    _stream("hf_stream_in_stateful", "HF datasets", "stream, in a `StatefulDataLoader`", "datasets", read_by="state"),
    _stream("hf_parquet", "HF datasets", "parquet files, streamed", "datasets", "pyarrow.parquet", read_by="state"),
    _stream("hf_interleaved", "HF datasets", "interleaved streams", "datasets", read_by="state"),
    _stream(
        "hf_shuffle_buffer", "HF datasets", "stream with a shuffle buffer", "datasets", read_by="replay", advice=_BUFFER
    ),
    _stream(
        "hf_interleaved_buffers",
        "HF datasets",
        "interleaved streams with shuffle buffers",
        "datasets",
        read_by="replay",
        advice=_BUFFER,
    ),
    _stream(
        "torch_iterable",
        "torch",
        "`IterableDataset` without a state",
        read_by="replay",
        advice="give it `state_dict` and `load_state_dict`",
    ),
    _stream(
        "torch_own_iter",
        "torch",
        "`DataLoader` subclass with an `__iter__` of its own",
        read_by="replay",
        advice="without it, it is read by position",
    ),
    _map("torchdata_map", "torchdata", "`StatefulDataLoader`, map-style", "torchdata.stateful_dataloader"),
    _stream(
        "torchdata_stream",
        "torchdata",
        "`StatefulDataLoader`, dataset with a state",
        "torchdata.stateful_dataloader",
        read_by="state",
    ),
    _stream(
        "torchdata_plain_stream",
        "torchdata",
        "`StatefulDataLoader`, dataset without a state",
        "torchdata.stateful_dataloader",
        read_by="replay",
        advice="give the dataset `state_dict` and `load_state_dict`",
    ),
    _stream("torchdata_nodes", "torchdata", "`nodes.Loader`", "torchdata.nodes", read_by="state"),
    _stream("webdataset", "webdataset", "in order", "webdataset", read_by="replay"),
    _stream("webdataset_seeded", "webdataset", "`detshuffle=True, seed=...`", "webdataset", read_by="replay"),
    _stream(
        "webdataset_shuffled",
        "webdataset",
        "its default shuffles",
        "webdataset",
        read_by="replay",
        exact=False,
        advice="they are seeded from time and process: use `detshuffle=True, seed=...`",
    ),
    _stream(
        "mosaicml",
        "MosaicML Streaming",
        "`StreamingDataLoader`",
        "streaming",
        read_by="state",
        advice="it imports torchvision, which the tests replace by an empty module",
    ),
    _stream("mosaicml_in_torch", "MosaicML Streaming", "dataset in a `DataLoader`", "streaming", read_by="state"),
    _stream("litdata", "litdata", "`StreamingDataLoader`", "litdata", read_by="state"),
    _stream("litdata_in_torch", "litdata", "dataset in a `DataLoader`", "litdata", read_by="state"),
    _map("pyg_graphs", "PyG", "`DataLoader` of graphs", "torch_geometric.loader"),
    _map(
        "pyg_nodes",
        "PyG",
        "`NodeLoader` with a sampler in Python",
        "torch_geometric.loader",
        advice="`NeighborLoader` is one; its sampler needs pyg-lib, which has no build for this torch",
    ),
    _map("monai", "MONAI", "random transforms", "monai.transforms"),
    _map("albumentations", "albumentations", "`Compose`", "albumentations"),
    _map("lhotse", "lhotse", "`SimpleCutSampler`", "lhotse.dataset"),
    _map("lhotse_buckets", "lhotse", "`DynamicBucketingSampler`", "lhotse.dataset"),
    _map("grain_map", "grain", "`MapDataset`", "grain", workers=(0,), advice=_PASSES),
    _map("grain_map_repeated", "grain", "`MapDataset.repeat()`", "grain", workers=(0,), ends=False),
    _map("grain_map_in_torch", "grain", "`MapDataset` in a `DataLoader`", "grain"),
    _stream("grain_stream", "grain", "`IterDataset`", "grain", workers=(0,), read_by="state"),
    _stream("grain_loader", "grain", "`grain.DataLoader`", "grain", read_by="state", is_slow=True),
    _stream("spdl", "SPDL", "pipeline in input order", "spdl.pipeline", workers=(0,), read_by="replay"),
    _stream(
        "spdl_completion",
        "SPDL",
        "pipeline in order of completion",
        "spdl.pipeline",
        workers=(0,),
        read_by="replay",
        exact=False,
        advice='use `output_order="input"`',
    ),
    _map("tensordict", "tensordict", "`TensorDict` as dataset", "tensordict"),
    _map("forecasting", "pytorch-forecasting", "`TimeSeriesDataSet.to_dataloader`", "pytorch_forecasting"),
    _map("transformers_masks", "transformers", "masking collator", "transformers"),
    _map("transformers_masks_with_seed", "transformers", "masking collator with `seed=`", "transformers"),
    _map("h5py", "h5py", "rows of a file", "h5py"),
)
BY_NAME = {row.name: row for row in ROWS}
_READS = {"position": "nothing", "state": "1 batch", "replay": "all batches of the pass before it"}


def cells(module: str) -> list[tuple[Row, int]]:
    """The rows of a module with each number of workers, those of this form of the tests."""
    rows = [row for row in ROWS if row.module == module and not (IS_SHORT and row.is_slow)]
    return [(row, workers) for row in rows for workers in row.workers]


def table() -> str:
    """The table of docs/loaders.md."""
    lines = [HEADER, "| --- | --- | --- | --- | --- | --- |"]
    for row in ROWS:
        parts = (
            row.library,
            row.loader,
            row.read_by,
            "yes" if row.exact else "**no**",
            _READS[row.read_by],
            row.advice,
        )
        lines.append(f"| {' | '.join(parts)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def page_with_table() -> str:
    """docs/loaders.md with the table as it should be."""
    before, rest = PAGE.read_text(encoding="utf-8").split(HEADER)
    return before + table() + rest[rest.index("\n\n") :]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(), encoding="utf-8")
