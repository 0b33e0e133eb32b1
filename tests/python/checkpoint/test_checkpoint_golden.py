"""A checkpoint of every released format must load for ever, with exactly the content it was written with."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch

import mtf
from mtf.checkpoint.compare import first_differences
from mtf.checkpoint.format import layout
from mtf.checkpoint.format.manifest import FORMAT
from mtf.checkpoint.inspect import inspect_checkpoint

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def recipe(version: int) -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / f"make_checkpoint_v{version}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_format_has_its_golden_checkpoint() -> None:
    assert sorted(path.name for path in GOLDEN.glob("checkpoint_v*")) == [
        f"checkpoint_v{version}" for version in range(1, FORMAT + 1)
    ]


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_it_loads_with_its_content(version: int) -> None:
    made = recipe(version)
    found = layout.read(GOLDEN / f"checkpoint_v{version}")
    assert first_differences(made.state(), found.state) == []
    assert first_differences(made.model(), found.model) == []
    assert {name: found.manifest[name] for name in ("step", "epoch", "sequence", "config")} == {
        name: made.manifest()[name] for name in ("step", "epoch", "sequence", "config")
    }
    assert first_differences(made.manifest()["metrics"], found.manifest["metrics"]) == []
    views = found.state["views"]
    assert views["same"] is views["base"]
    assert views["tail"].data_ptr() == views["base"][2:].data_ptr()
    assert found.state["tensors"][4].is_contiguous(memory_format=torch.channels_last)
    assert found.model["head.weight"] is found.model["embedding.weight"]


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_its_schedule_goes_on_where_it_was(version: int) -> None:
    schedule = mtf.Schedule.from_bytes(layout.read(GOLDEN / f"checkpoint_v{version}").schedule)
    expected = recipe(version).schedule()
    assert schedule.position == expected.position == (1, 17)
    assert schedule.fingerprint() == expected.fingerprint()
    assert (schedule.sources(1) == expected.sources(1)).all()


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_its_weights_open_without_mtf(version: int) -> None:
    weights = safetensors.torch.load_file(GOLDEN / f"checkpoint_v{version}" / "model.safetensors")
    assert torch.equal(weights["embedding.weight"], recipe(version).model()["embedding.weight"])


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_it_can_be_inspected(version: int) -> None:
    found = inspect_checkpoint(GOLDEN / f"checkpoint_v{version}")
    assert found.verified
    assert found.schedule is not None
    assert (found.schedule["epoch"], found.schedule["step"]) == (1, 17)
    assert found.schedule["sources"] == {"a": 30, "b": 50}


def test_writing_it_again_gives_the_same_files(tmp_path: Path) -> None:
    """Not required of later formats, but while this one is written its bytes are a function of the content."""
    script = str(GOLDEN / f"make_checkpoint_v{FORMAT}.py")
    subprocess.run([sys.executable, script, str(tmp_path / "c")], check=True)
    for name in ("model.safetensors", "state.safetensors", "state.json", "schedule.mtf"):
        assert (tmp_path / "c" / name).read_bytes() == (GOLDEN / f"checkpoint_v{FORMAT}" / name).read_bytes(), name
