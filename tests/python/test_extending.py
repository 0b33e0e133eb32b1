"""The changes of CONTRIBUTING's table that need no change of the package: each is one file of the user's."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mtf

ROOT = Path(__file__).resolve().parents[2]

FILES = {
    "logger": """
import mtf


class Rows(mtf.Logger):
    rows = []

    def log_metrics(self, row, step):
        self.rows.append((step, row["train/loss"]))


mtf.register_logger("rows", lambda config, info: Rows())
""",
    "storage": """
import contextlib
import io

from mtf import checkpoint


class DictStorage:
    files = {}

    def __init__(self, url):
        self.url = url

    @contextlib.contextmanager
    def read(self, name):
        if f"{self.url}/{name}" not in self.files:
            raise FileNotFoundError(name)
        yield io.BytesIO(self.files[f"{self.url}/{name}"])

    def write_atomic(self, name, chunks):
        self.files[f"{self.url}/{name}"] = b"".join(chunks)

    def list(self, folder=""):
        start = f"{self.url}/{folder}/" if folder else f"{self.url}/"
        inside = [name[len(start) :].partition("/") for name in self.files if name.startswith(start)]
        return sorted({first + slash for first, slash, _ in inside})

    def delete(self, name):
        self.files.pop(f"{self.url}/{name}", None)

    def lock(self):
        return checkpoint.ObjectLock(self)


checkpoint.register_storage("toy", DictStorage)
""",
    "source": """
import mtf
import torch


class _Stream(mtf.Stream):
    def __init__(self, batch):
        self.batch = batch

    def __next__(self):
        if self.batch == 8:
            raise StopIteration
        self.batch += 1
        return torch.full((2, 1), float(self.batch - 1))


class Numbers(mtf.Source):
    resume_mode = mtf.ResumeMode.SEEK

    def num_batches(self):
        return 8

    def open(self, pass_, batch, key, snapshot=None):
        return _Stream(batch)
""",
    "component": """
class Counter:
    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def check(self, state):
        return [] if set(state) == {"value"} else [f"counter: {state} has other fields"]

    def load_state_dict(self, state):
        self.value = state["value"]
""",
    "hook": """
import mtf


class Count(mtf.TrainerHooks):
    def __init__(self, counter):
        self.counter = counter

    def on_train_batch_end(self, trainer, *place):
        self.counter.value += 1
""",
}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Each file as a module that lies outside of the package."""
    for name, text in FILES.items():
        (tmp_path / f"outside_{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {name: importlib.import_module(f"outside_{name}") for name in FILES}
    for name in FILES:
        sys.modules.pop(f"outside_{name}")


def make_trainer(made: dict[str, ModuleType]) -> tuple[mtf.Trainer, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    counter = made["component"].Counter()
    config = mtf.TrainerConfig(
        logging=mtf.LoggingConfig(logger_type="rows", progress_bar=False, log_scalars_every_n_steps=2),
        checkpoint=mtf.CheckpointConfig(root_dir="toy://run", save_every_n_steps=3),
    )
    trainer = mtf.Trainer(
        config,
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        training_step=lambda t, batch, *_: t.model(batch).square().mean(),
        hooks=made["hook"].Count(counter),
    )
    trainer.register("counter", counter)
    return trainer, counter


def test_a_logger_a_storage_a_source_a_component_and_a_hook_are_one_file_each(made: dict[str, ModuleType]) -> None:
    trainer, counter = make_trainer(made)
    trainer.fit({"numbers": made["source"].Numbers()}, max_steps=6)
    assert counter.value == 6, "the hook has counted in the component"
    assert [step for step, _ in made["logger"].Rows.rows] == [2, 4, 6]
    assert "toy://run/step-00000006/manifest.json" in made["storage"].DictStorage.files
    whole = trainer.get_state()

    resumed, again = make_trainer(made)
    resumed.fit({"numbers": made["source"].Numbers()}, max_steps=6, resume_from="toy://run/step-00000003")
    assert again.value == 6
    assert resumed.get_state() == whole

    strange, other = make_trainer(made)
    broken = resumed.get_state()
    broken.tree["counter"] = {"number": 1}
    with pytest.raises(mtf.StateMismatch, match=r"counter: .* has other fields"):
        strange.load_state(broken)
    assert other.value == 0
    assert mtf.check_source(made["source"].Numbers()).ok


def test_the_table_of_changes_names_files_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.split("## Ten changes")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10
    files = re.findall(r"`([\w/.]+\.(?:py|hpp|cpp))`", table)
    assert len(files) > 8
    assert [file for file in files if not (ROOT / file).is_file()] == []
    for kind in FILES:
        assert re.search(rf"^\| an? {kind} .*\| none; one file of yours", table, re.MULTILINE), kind
