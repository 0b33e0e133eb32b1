"""Whatever happened to a checkpoint's bytes since it was written is found before anything in it is used."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from mtf.checkpoint.format import layout
from mtf.checkpoint.format.manifest import verify
from mtf.errors import CheckpointError

FILES = ("manifest.json", "model.safetensors", "state.safetensors", "state.json", "schedule.mtf")


def make(path: Path, step: int = 3) -> Path:
    torch.manual_seed(step)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()[:64], "step": step, "loss": 0.1 * step}
    manifest = {"step": step, "epoch": 0, "metrics": {"loss": 0.1 * step}}
    return layout.write(path, model=model.state_dict(), state_tree=state, schedule=b"s" * 40, manifest=manifest)


def refused(path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        layout.read(path)
    assert str(path) in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_found(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "c")
    content = (path / name).read_bytes()
    chance = random.Random(0)
    with open(path / name, "r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            file.seek(position)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))
            with pytest.raises(CheckpointError) as caught:
                verify(path)
            # In the manifest a flip may also change what file is named, or of what kind it says it is.
            assert name == "manifest.json" or str(path / name) in str(caught.value)
            file.seek(position)
            file.write(bytes([byte]))
    verify(path)


@pytest.mark.parametrize("name", FILES)
def test_truncated_emptied_and_grown_files(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "c")
    content = (path / name).read_bytes()
    for changed in (b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\x00", content * 2):
        (path / name).write_bytes(changed)
        refused(path, name)
    (path / name).write_bytes(content[:-1] + bytes(64) if len(content) > 64 else bytes(len(content)))
    refused(path, name)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_of_another_step(tmp_path: Path, name: str) -> None:
    older, newer = make(tmp_path / "a", 3), make(tmp_path / "b", 4)
    (older / "schedule.mtf").write_bytes(b"t" * 40)
    shutil.copy(older / name, newer / name)
    refused(newer, name)


def test_a_manifest_of_another_step(tmp_path: Path) -> None:
    older, newer = make(tmp_path / "a", 3), make(tmp_path / "b", 4)
    shutil.copy(older / "manifest.json", newer / "manifest.json")
    with pytest.raises(CheckpointError, match="is damaged"):
        layout.read(newer)


@pytest.mark.parametrize("name", FILES)
def test_exchanged_zeroed_and_missing_files(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "c")
    size = (path / name).stat().st_size
    (path / name).write_bytes(bytes(size))
    refused(path, name)
    os.unlink(path / name)
    refused(path, name)
    (path / name).mkdir()
    refused(path, name)


def test_two_files_exchanged(tmp_path: Path) -> None:
    path = make(tmp_path / "c")
    os.rename(path / "model.safetensors", path / "x")
    os.rename(path / "state.safetensors", path / "model.safetensors")
    os.rename(path / "x", path / "state.safetensors")
    refused(path, "model.safetensors")
