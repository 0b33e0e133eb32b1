"""Loaders over map-style data: any position can be computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

SIZE, BATCH = 14, 3  # samples: the last batch of a pass is short


class Images(Dataset[Any]):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return self.transform(np.full((8, 8, 3), index * 10, dtype=np.float32))


def _loader(data: Any, num_workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, BATCH, shuffle=True, num_workers=num_workers, **options)


def albumentations(num_workers: int, folder: Path) -> Any:
    import albumentations as library

    compose = library.Compose([library.HorizontalFlip(p=0.5), library.RandomBrightnessContrast(p=1.0)])
    data = Images(lambda image: torch.from_numpy(compose(image=image / 255)["image"].copy()))
    return _loader(data, num_workers)


def monai(num_workers: int, folder: Path) -> Any:
    from monai.transforms import RandGaussianNoise

    noise = RandGaussianNoise(prob=1.0)
    return _loader(Images(lambda image: torch.as_tensor(noise(image))), num_workers)


def pyg_graphs(num_workers: int, folder: Path) -> Any:
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader

    graphs = [Data(x=torch.full((n, 2), float(n)), edge_index=torch.zeros(2, n).long()) for n in range(1, SIZE + 1)]
    return GraphLoader(graphs, batch_size=BATCH, shuffle=True, num_workers=num_workers)


def _ring() -> Any:
    from torch_geometric.data import Data

    nodes = torch.arange(SIZE)
    return Data(x=nodes.float()[:, None], edge_index=torch.stack([nodes, (nodes + 1) % SIZE]))


def _jitter(data: Any) -> Any:
    data.x = data.x + torch.rand_like(data.x)
    return data


def pyg_nodes(num_workers: int, folder: Path) -> Any:
    """NeighborLoader is a NodeLoader whose sampler needs pyg-lib; this sampler takes random next nodes of a ring."""
    from torch_geometric.loader import NodeLoader
    from torch_geometric.sampler import BaseSampler, SamplerOutput

    class Neighbours(BaseSampler):
        edge_permutation = None

        def sample_from_nodes(self, inputs: Any) -> Any:
            nodes = torch.cat([inputs.node, (inputs.node + torch.randint(1, 4, inputs.node.shape)) % SIZE]).unique()
            index = torch.arange(len(nodes))
            return SamplerOutput(
                nodes, index, index.roll(1), torch.zeros_like(index), metadata=(inputs.input_id, inputs.time)
            )

        def sample_from_edges(self, inputs: Any, neg_sampling: Any = None) -> Any:
            raise NotImplementedError

    return NodeLoader(_ring(), Neighbours(), transform=_jitter, batch_size=BATCH, shuffle=True, num_workers=num_workers)


def write_h5py(folder: Path) -> None:
    import h5py as library

    with library.File(folder / "rows.h5", "w") as file:
        file["x"] = np.arange(2 * SIZE).reshape(SIZE, 2)


def h5py(num_workers: int, folder: Path) -> Any:
    import h5py as library

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return SIZE

        def __getitem__(self, index: int) -> Any:
            with library.File(folder / "rows.h5") as file:
                return torch.from_numpy(file["x"][index])

    return _loader(Rows(), num_workers)


def tensordict(num_workers: int, folder: Path) -> Any:
    from tensordict import TensorDict

    data = TensorDict({"x": torch.arange(SIZE), "y": {"z": torch.arange(2 * SIZE).reshape(SIZE, 2)}}, batch_size=[SIZE])
    return _loader(data, num_workers, collate_fn=_same)


def _same(samples: Any) -> Any:
    return samples


def forecasting(num_workers: int, folder: Path) -> Any:
    import pandas
    from pytorch_forecasting import TimeSeriesDataSet

    frame = pandas.DataFrame(
        {"time": list(range(12)) * 2, "series": ["a"] * 12 + ["b"] * 12, "y": np.arange(24, dtype=float)}
    )
    data = TimeSeriesDataSet(
        frame,
        "time",
        "y",
        ["series"],
        max_encoder_length=4,
        max_prediction_length=2,
        time_varying_unknown_reals=["y"],
        target_normalizer=None,
    )
    return data.to_dataloader(train=True, batch_size=BATCH, num_workers=num_workers)


class Texts(Dataset[Any]):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        return {"input_ids": [3 + (index * 7 + place) % 20 for place in range(4 + index % 3)]}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[PAD]", "[MASK]", "[UNK]", *map(str, range(24))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="[UNK]")),
        pad_token="[PAD]",
        mask_token="[MASK]",
        unk_token="[UNK]",
    )


def transformers_masks(num_workers: int, folder: Path) -> Any:
    from transformers import DataCollatorForLanguageModeling

    return _loader(Texts(), num_workers, collate_fn=DataCollatorForLanguageModeling(_tokenizer()))


def transformers_masks_with_seed(num_workers: int, folder: Path) -> Any:
    from transformers import DataCollatorForLanguageModeling

    return _loader(Texts(), num_workers, collate_fn=DataCollatorForLanguageModeling(_tokenizer(), seed=3))


def hf_map(num_workers: int, folder: Path) -> Any:
    from datasets import Dataset as Table

    return _loader(Table.from_dict({"x": list(range(SIZE))}).with_format("torch"), num_workers)


def torchdata_map(num_workers: int, folder: Path) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    data = Images(lambda image: torch.as_tensor(image) + torch.rand(8, 8, 3))
    return StatefulDataLoader(data, BATCH, shuffle=True, num_workers=num_workers)


def grain_map(num_workers: int, folder: Path) -> Any:
    import grain

    return grain.MapDataset.range(SIZE).seed(1).shuffle().random_map(_noisy).batch(BATCH)


def grain_map_repeated(num_workers: int, folder: Path) -> Any:
    import grain

    return grain.MapDataset.range(SIZE).seed(1).shuffle().batch(BATCH).repeat()


def grain_map_in_torch(num_workers: int, folder: Path) -> Any:
    import grain

    return _loader(grain.MapDataset.range(SIZE).seed(1).random_map(_noisy), num_workers)


def _noisy(value: Any, rng: np.random.Generator) -> Any:
    return value + rng.random()


def lhotse(num_workers: int, folder: Path) -> Any:
    return _lhotse(num_workers, "SimpleCutSampler")


def lhotse_buckets(num_workers: int, folder: Path) -> Any:
    return _lhotse(num_workers, "DynamicBucketingSampler")


def _lhotse(num_workers: int, name: str) -> Any:
    import lhotse.dataset as library
    from lhotse import CutSet
    from lhotse.testing.dummies import dummy_cut

    class Durations(Dataset[Any]):
        def __getitem__(self, cuts: Any) -> Any:
            return torch.tensor([cut.duration for cut in cuts]), [cut.id for cut in cuts]

    cuts = CutSet.from_cuts(dummy_cut(n, duration=1.0 + n % 5) for n in range(24))
    options = {"num_buckets": 2, "buffer_size": 12} if name == "DynamicBucketingSampler" else {}
    sampler = getattr(library, name)(cuts, max_duration=12.0, shuffle=True, **options)
    return DataLoader(Durations(), sampler=sampler, batch_size=None, num_workers=num_workers)
