"""A checkpoint of every released format must load for ever, with exactly the content it was written with."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

import mtf
from mtf.checkpoint.compare import first_differences
from mtf.checkpoint.diff import diff_checkpoints
from mtf.checkpoint.format import layout
from mtf.checkpoint.format.manifest import FORMAT
from mtf.checkpoint.inspect import inspect_checkpoint

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def recipe(kind: str = "checkpoint") -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / f"make_{kind}.py")
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
    made = recipe()
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
    expected = recipe().schedule()
    assert schedule.position == expected.position == (1, 17)
    # A schedule of an earlier format keeps writing it, and so does its log.
    log = {"log"} if version == 1 else set()
    assert {name for name in expected.fingerprints if schedule.fingerprints[name] != expected.fingerprints[name]} == log
    assert schedule.to_bytes() == layout.read(GOLDEN / f"checkpoint_v{version}").schedule
    assert (schedule.sources(1) == expected.sources(1)).all()


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_its_weights_open_without_mtf(version: int) -> None:
    weights = safetensors.torch.load_file(GOLDEN / f"checkpoint_v{version}" / "model.safetensors")
    assert torch.equal(weights["embedding.weight"], recipe().model()["embedding.weight"])


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_it_can_be_inspected(version: int) -> None:
    found = inspect_checkpoint(GOLDEN / f"checkpoint_v{version}")
    assert found.verified
    assert found.schedule is not None
    assert (found.schedule["epoch"], found.schedule["step"]) == (1, 17)
    assert found.schedule["sources"] == {"a": 30, "b": 50}


def test_writing_it_again_gives_the_same_files(tmp_path: Path) -> None:
    """Not required of later formats, but while this one is written its bytes are a function of the content."""
    script = str(GOLDEN / "make_checkpoint.py")
    subprocess.run([sys.executable, script, str(tmp_path / "c")], check=True)
    for name in ("model.safetensors", "state.safetensors", "state.json", "schedule.mtf"):
        assert (tmp_path / "c" / name).read_bytes() == (GOLDEN / f"checkpoint_v{FORMAT}" / name).read_bytes(), name


def _fields(config: dict[str, Any]) -> set[tuple[str, str]]:
    """Part and name of every setting."""
    return {(part, name) for part, fields in config.items() if isinstance(fields, dict) for name in fields}


@pytest.mark.filterwarnings("ignore:.*was saved with num_threads")
def test_a_trainers_checkpoint_of_the_first_format_is_resumed(tmp_path: Path) -> None:
    """It had the schedule twice, and another word for work that follows an update."""
    made = recipe("trainer_checkpoint")
    path = GOLDEN / "trainer_checkpoint_v1"
    assert layout.read(path).manifest["format"] == 1
    expected: list[tuple[str, list[float]]] = []
    whole = made.trainer(expected)
    whole.fit(made.loaders(), max_steps=30)
    seen: list[tuple[str, list[float]]] = []
    resumed = made.trainer(seen)
    resumed.fit(made.loaders(), max_steps=30, resume_from=str(path))
    assert seen == expected[made.UPDATES :]
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict())
    whole = made.trainer([])
    whole.fit(made.loaders(), max_steps=made.UPDATES)
    whole.save_checkpoint(str(tmp_path / "now"))
    places = [entry.place for entry in diff_checkpoints(path, tmp_path / "now").entries]
    # What later versions have more, and the format in which new schedules write their states.
    before, now = (layout.read(place).manifest["config"] for place in (path, tmp_path / "now"))
    parts = ("requires_grad", "hyperparameters", "item_counts", "scheduler_settings", "skips", "eval_modules")
    added = [
        *(f"manifest['config']['{part}']['{name}']" for part, name in _fields(now) - _fields(before)),
        *(f"state['trainer']['{name}']" for name in parts),
        "state['trainer']['multi']['cuts']",
        "schedule",
    ]
    assert set(places) <= {"manifest['format']", "manifest['num_threads']", "manifest['data']", *added}, places


def test_the_schedule_stands_in_a_checkpoint_once(tmp_path: Path) -> None:
    made = recipe("trainer_checkpoint")
    run = made.trainer([])
    run.fit(made.loaders(), max_steps=3)
    run.save_checkpoint(str(tmp_path / "c"))
    found = layout.read(tmp_path / "c")
    assert mtf.Schedule.from_bytes(found.schedule).position == (0, 3)
    assert "setups" not in (tmp_path / "c" / "state.json").read_text()
    assert "schedule" not in found.state["trainer"]["multi"]
    assert mtf.Schedule.from_bytes(found.schedule).state_dict() == run.get_state()["multi"]["schedule"]
