"""Data in the formats of MosaicML Streaming and litdata, written here and read by their own loaders."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from streams import again


def import_streaming() -> Any:
    """MosaicML Streaming, or a skip. It imports torchvision for its image classes: an empty one does, for that long."""
    stand_ins = {}
    if importlib.util.find_spec("torchvision") is None:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module = types.ModuleType(f"torchvision{name}")
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            module.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
            stand_ins[module.__name__] = module
    sys.modules |= stand_ins
    try:
        return pytest.importorskip("streaming", exc_type=ImportError)
    finally:
        for name in stand_ins:  # other tools ask whether it is there
            del sys.modules[name]


def write_mds(folder: Path, rows: torch.Tensor) -> str:
    """Rows, one a sample, as an MDS folder; kept if it is there."""
    streaming = import_streaming()
    if not folder.exists():
        kind = f"ndarray:{str(rows.dtype).removeprefix('torch.')}:{rows.shape[1]}"
        with streaming.MDSWriter(out=str(folder), columns={"x": kind}) as writer:
            for row in rows.numpy():
                writer.write({"x": row})
    return str(folder)


def write_lit(folder: Path, rows: torch.Tensor) -> str:
    """Rows, one a sample, as a folder of litdata's chunks; kept if it is there."""
    pytest.importorskip("litdata")
    from litdata.streaming.writer import BinaryWriter

    if not folder.exists():
        folder.mkdir(parents=True)
        writer = BinaryWriter(str(folder), chunk_bytes="64MB")
        for number, row in enumerate(rows):
            writer.add_item(number, {"x": row.clone()})
        writer.done()
        writer.merge()
    return str(folder)


def of_streaming(
    folder: Path, parts: Sequence[torch.Tensor], weights: Sequence[float], batch_size: int
) -> Iterator[Any]:
    """Batches of Streaming's dataset and loader, samples of the parts mixed by their weights."""
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    streams = [
        streaming.Stream(local=write_mds(folder / f"mds{number}", part), proportion=weight)
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True))
    ]
    data = streaming.StreamingDataset(streams=streams, shuffle=True, batch_size=batch_size, num_canonical_nodes=1)
    return again(streaming.StreamingDataLoader(data, batch_size=batch_size, num_workers=0, drop_last=True))


def of_litdata(folder: Path, parts: Sequence[torch.Tensor], weights: Sequence[float], batch_size: int) -> Iterator[Any]:
    """Batches of litdata's combined dataset and loader, the source of each sample drawn by the weights."""
    litdata = pytest.importorskip("litdata")
    data = litdata.CombinedStreamingDataset(
        [
            litdata.StreamingDataset(write_lit(folder / f"lit{number}", part), shuffle=True)
            for number, part in enumerate(parts)
        ],
        seed=0,
        weights=list(weights),
        iterate_over_all=False,
    )
    return again(litdata.StreamingDataLoader(data, batch_size=batch_size, num_workers=0, drop_last=True))
