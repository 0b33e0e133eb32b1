"""Loaders that read streams: each has a state of its own, or what came before a position is read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

SIZE, BATCH = 14, 3  # samples: the last batch of a pass is short


def _table(start: int = 0, size: int = SIZE) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"x": list(range(start, start + size))})


def hf_stream(num_workers: int, folder: Path) -> Any:
    return DataLoader(_table().to_iterable_dataset(num_shards=4), BATCH, num_workers=num_workers)


def hf_stream_in_stateful(num_workers: int, folder: Path) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(_table().to_iterable_dataset(num_shards=4), BATCH, num_workers=num_workers)


def write_hf_parquet(folder: Path) -> None:
    for part in range(4):
        _table(part * 4, 4).to_parquet(str(folder / f"part{part}.parquet"))


def hf_parquet(num_workers: int, folder: Path) -> Any:
    from datasets import load_dataset

    files = sorted(map(str, folder.glob("*.parquet")))
    data = load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=str(folder / "cache"))
    return DataLoader(data, BATCH, num_workers=num_workers)


def hf_shuffle_buffer(num_workers: int, folder: Path) -> Any:
    data = _table().to_iterable_dataset(num_shards=4).shuffle(seed=3, buffer_size=5)
    return DataLoader(data, BATCH, num_workers=num_workers)


def hf_interleaved(num_workers: int, folder: Path) -> Any:
    from datasets import interleave_datasets

    streams = [_table(start).to_iterable_dataset(num_shards=2) for start in (0, 100)]
    return DataLoader(interleave_datasets(streams, [0.5, 0.5], seed=1), BATCH, num_workers=num_workers)


def hf_interleaved_buffers(num_workers: int, folder: Path) -> Any:
    from datasets import interleave_datasets

    streams = [_table(start).to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=4) for start in (0, 100)]
    return DataLoader(interleave_datasets(streams), BATCH, num_workers=num_workers)


class Counting(IterableDataset[Any]):
    """Has no state; its workers share the numbers."""

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, SIZE, step):
            yield torch.tensor(number) + torch.rand(())


class Remembering(Counting):
    """Has a state, as torchdata means it."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        while first + self.place * step < SIZE:
            number, self.place = first + self.place * step, self.place + 1
            yield torch.tensor(number)
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def torch_iterable(num_workers: int, folder: Path) -> Any:
    return DataLoader(Counting(), BATCH, num_workers=num_workers)


class Logged(DataLoader[Any]):
    def __iter__(self) -> Any:
        yield from super().__iter__()


def torch_own_iter(num_workers: int, folder: Path) -> Any:
    from map_style import Texts

    return Logged(Texts(), BATCH, shuffle=True, num_workers=num_workers, collate_fn=list)


def torchdata_stream(num_workers: int, folder: Path) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Remembering(), BATCH, num_workers=num_workers)


def torchdata_plain_stream(num_workers: int, folder: Path) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Counting(), BATCH, num_workers=num_workers)


def torchdata_nodes(num_workers: int, folder: Path) -> Any:
    from torchdata import nodes

    numbers: Any = nodes.IterableWrapper(range(SIZE))
    if num_workers:
        numbers = nodes.ParallelMapper(numbers, abs, num_workers, method="thread")
    return nodes.Loader(nodes.Batcher(numbers, BATCH, drop_last=False))


def write_webdataset(folder: Path) -> None:
    import webdataset as library

    for shard in range(4):
        with library.TarWriter(str(folder / f"{shard}.tar")) as tar:
            for number in range(4):
                tar.write({"__key__": f"{shard}-{number}", "json": json.dumps(shard * 4 + number).encode()})


write_webdataset_shuffled = write_webdataset_seeded = write_webdataset


def _web(folder: Path, **options: Any) -> Any:
    import webdataset as library

    return library.WebDataset(sorted(map(str, folder.glob("*.tar"))), empty_check=False, **options)


def webdataset(num_workers: int, folder: Path) -> Any:
    data = _web(folder, shardshuffle=False).decode().to_tuple("json")
    return DataLoader(data, BATCH, num_workers=num_workers)


def webdataset_shuffled(num_workers: int, folder: Path) -> Any:
    data = _web(folder, shardshuffle=4).shuffle(8).decode().to_tuple("json")
    return DataLoader(data, BATCH, num_workers=num_workers)


def webdataset_seeded(num_workers: int, folder: Path) -> Any:
    data = _web(folder, detshuffle=True, shardshuffle=4, seed=7).decode().to_tuple("json")
    return DataLoader(data, BATCH, num_workers=num_workers)


def write_mosaicml(folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"x": "int"}) as writer:
        for number in range(SIZE + 2):
            writer.write({"x": number})


write_mosaicml_in_torch = write_mosaicml


def _mosaic(folder: Path) -> Any:
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    return StreamingDataset(
        local=str(folder / "mds"), shuffle=True, shuffle_seed=3, batch_size=BATCH, num_canonical_nodes=1
    )


def mosaicml(num_workers: int, folder: Path) -> Any:
    from streaming import StreamingDataLoader

    return StreamingDataLoader(_mosaic(folder), batch_size=BATCH, num_workers=num_workers)


def mosaicml_in_torch(num_workers: int, folder: Path) -> Any:
    return DataLoader(_mosaic(folder), batch_size=BATCH, num_workers=num_workers)


def _number(index: int) -> dict[str, int]:
    return {"x": index}


def write_litdata(folder: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    (folder / "lit").mkdir()
    writer = BinaryWriter(str(folder / "lit"), chunk_size=4)
    for number in range(SIZE + 2):
        writer.add_item(number, _number(number))
    writer.done()
    writer.merge()


write_litdata_in_torch = write_litdata


def litdata(num_workers: int, folder: Path) -> Any:
    from litdata import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(str(folder / "lit"), shuffle=True, seed=3)
    return StreamingDataLoader(data, batch_size=BATCH, num_workers=num_workers)


def litdata_in_torch(num_workers: int, folder: Path) -> Any:
    from litdata import StreamingDataset

    return DataLoader(StreamingDataset(str(folder / "lit"), shuffle=True, seed=3), BATCH, num_workers=num_workers)


def grain_stream(num_workers: int, folder: Path) -> Any:
    import grain

    return grain.MapDataset.range(SIZE).seed(1).shuffle().to_iter_dataset().batch(BATCH)


def grain_loader(num_workers: int, folder: Path) -> Any:
    import grain

    sampler = grain.samplers.IndexSampler(SIZE, grain.sharding.NoSharding(), shuffle=True, num_epochs=1, seed=3)
    return grain.DataLoader(
        data_source=grain.sources.RangeDataSource(0, SIZE, 1),
        sampler=sampler,
        operations=[grain.transforms.Batch(BATCH)],
        worker_count=num_workers,
    )


def _pipeline(num_workers: int, order: str) -> Any:
    from spdl.pipeline import PipelineBuilder

    class Passes:
        """SPDL's pipelines give one pass."""

        def __iter__(self) -> Iterator[Any]:
            builder = PipelineBuilder().add_source(range(SIZE)).pipe(_late, concurrency=3, output_order=order)
            pipeline = builder.aggregate(BATCH).add_sink(2).build(num_threads=3)
            with pipeline.auto_stop():
                yield from pipeline.get_iterator()

    return Passes()


def _late(number: int) -> int:
    import random
    import time

    time.sleep(random.SystemRandom().random() / 50)
    return number


def spdl(num_workers: int, folder: Path) -> Any:
    return _pipeline(num_workers, "input")


def spdl_completion(num_workers: int, folder: Path) -> Any:
    return _pipeline(num_workers, "completion")
