"""Real loaders of other libraries, cut before every batch of two passes, their ends included, with 0 and 2 workers.

Run by ``make loaders``; a library that isn't installed is skipped by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mtf.testing import assert_resumes_exactly

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


class Images(Dataset[Any]):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return self.transform(np.full((8, 8, 3), index * 10, dtype=np.float32))


def test_albumentations() -> None:
    library = pytest.importorskip("albumentations")

    def make(num_workers: int) -> DataLoader[Any]:
        compose = library.Compose([library.HorizontalFlip(p=0.5), library.RandomBrightnessContrast(p=1.0)])
        data = Images(lambda image: torch.from_numpy(compose(image=image / 255)["image"].copy()))
        return DataLoader(data, 3, shuffle=True, num_workers=num_workers)

    assert_resumes_exactly(make, workers=(0, 2), every=3)


def test_monai() -> None:
    library = pytest.importorskip("monai.transforms")

    def make(num_workers: int) -> DataLoader[Any]:
        noise = library.RandGaussianNoise(prob=1.0)
        return DataLoader(Images(lambda image: torch.as_tensor(noise(image))), 3, shuffle=True, num_workers=num_workers)

    assert_resumes_exactly(make, workers=(0, 2), every=3)


def test_pyg() -> None:
    data = pytest.importorskip("torch_geometric.data")
    loader = pytest.importorskip("torch_geometric.loader")
    graphs = [data.Data(x=torch.full((n, 2), float(n)), edge_index=torch.zeros(2, n).long()) for n in range(1, 13)]
    assert_resumes_exactly(
        lambda num_workers: loader.DataLoader(graphs, batch_size=3, shuffle=True, num_workers=num_workers),
        workers=(0, 2),
        every=3,
    )


def test_h5py(tmp_path: Path) -> None:
    library = pytest.importorskip("h5py")
    with library.File(tmp_path / "rows.h5", "w") as file:
        file["x"] = np.arange(24).reshape(12, 2)

    class Rows(Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> Any:
            with library.File(tmp_path / "rows.h5") as file:
                return torch.from_numpy(file["x"][index])

    assert_resumes_exactly(
        lambda num_workers: DataLoader(Rows(), 3, shuffle=True, num_workers=num_workers), workers=(0, 2), every=3
    )


def test_hugging_face_interleaved_streams_with_buffers() -> None:
    library = pytest.importorskip("datasets")

    def make() -> DataLoader[Any]:
        streams = [
            library.Dataset.from_dict({"x": list(range(start, start + 12))})
            .to_iterable_dataset()
            .shuffle(seed=3, buffer_size=4)
            for start in (0, 100)
        ]
        return DataLoader(library.interleave_datasets(streams), 3)

    assert_resumes_exactly(make, every=2)
