"""The changes of CONTRIBUTING's table: those that are one file of the user's, and in a copy a strategy and a policy."""

from __future__ import annotations

import importlib
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


STRATEGY = {
    "hpp": """
#pragma once
#include "mtf/schedule/patterns/round_robin.hpp"
namespace mtf {
class Reversed : public WithBursts<Rotation> {
 public:
  explicit Reversed(const PatternInput& input);
};
static_assert(Pattern<Reversed>);
}
""",
    "cpp": """
#include "mtf/schedule/patterns/reversed.hpp"
#include <vector>
namespace mtf {
Reversed::Reversed(const PatternInput& input)
    : WithBursts(Rotation(
                     [&] {
                       std::vector<std::int32_t> order;
                       for (std::uint32_t slot = input.num_slots; slot > 0; --slot) {
                         order.push_back(static_cast<std::int32_t>(slot - 1));
                       }
                       return order;
                     }(),
                     input.num_slots, turn_limits(input.limits, input.burst, input.num_slots)),
                 input.burst, input.limits) {}
}
""",
}

PROGRAM = """
#include <iostream>
#include <memory>
#include "mtf/schedule/segment.hpp"
int main() {
  mtf::MixtureSpec spec;
  spec.config.strategy = mtf::find_member<mtf::Strategy>("REVERSED").value();
  spec.config.policy = mtf::find_member<mtf::EpochPolicy>("ONE_EACH").value();
  for (const char* name : {"a", "b", "c"}) {
    spec.sources.push_back(mtf::SourceSpec{.name = name, .length = 5});
  }
  mtf::Breakpoint start;
  start.spec = std::make_shared<const mtf::MixtureSpec>(spec);
  start.sources.resize(3);
  const mtf::Segment segment(start, mtf::Key{0}, 0);
  std::cout << mtf::list_names<mtf::Strategy>() << ';';
  for (std::uint64_t step = 0; step < segment.end(); ++step) {
    std::cout << segment.at(step).source;
  }
}
"""


def build(root: Path, program: str) -> Path:
    """The program with what of the core a segment of a schedule needs, compiled without optimisation."""
    core = root / "src" / "mtf"
    (root / "program.cpp").write_text(program, encoding="utf-8")
    schedule = "any_pattern epoch_length integer_weights mixture_spec segment segment_deficits weight_curve"
    files = [*core.glob("random/*.cpp"), *core.glob("schedule/patterns/*.cpp"), root / "program.cpp"]
    files += [core / "schedule" / f"{name}.cpp" for name in schedule.split()]

    def compile_one(file: Path) -> str:
        made = str(root / f"{file.stem}.o")
        subprocess.run(["c++", "-std=c++20", "-O0", "-I", str(root / "src"), "-c", str(file), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, files))
    subprocess.run(["c++", *objects, "-o", str(root / "program")], check=True)
    return root / "program"


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_strategy_is_a_pair_of_files_and_a_row_and_a_policy_a_file_and_a_row(tmp_path: Path) -> None:
    """In a copy of the tree; nothing else is edited by hand, and names and Python's enums know both."""
    shutil.copytree(ROOT / "src", tmp_path / "src")
    (tmp_path / "python" / "mtf").mkdir(parents=True)
    shutil.copy(ROOT / "python" / "mtf" / "enums.py", tmp_path / "python" / "mtf")
    core = tmp_path / "src" / "mtf" / "schedule"
    for suffix, text in STRATEGY.items():
        (core / "patterns" / f"reversed.{suffix}").write_text(text, encoding="utf-8")
    table = (core / "options.def").read_text(encoding="utf-8")
    table = table.replace("\n\n// WeightedOrder", "\nMTF_STRATEGY(reversed, REVERSED, Reversed)\n\n// WeightedOrder")
    table = table.replace("\n\n// Interpolation", "\nMTF_EPOCH_POLICY(one_each, ONE_EACH)\n\n// Interpolation")
    (core / "options.def").write_text(table, encoding="utf-8")
    policies = (core / "epoch_length.cpp").read_text(encoding="utf-8")
    policies = policies.replace(
        "  switch (config.policy) {\n",
        "  switch (config.policy) {\n    case EpochPolicy::one_each:\n      end = active.size();\n      break;\n",
    )
    (core / "epoch_length.cpp").write_text(policies, encoding="utf-8")
    tables = [sys.executable, str(ROOT / "scripts" / "make_tables.py"), "--root", str(tmp_path)]
    assert subprocess.run([*tables, "--check"], check=False, capture_output=True).returncode == 1
    subprocess.run(tables, check=True)
    enums = runpy.run_path(str(tmp_path / "python" / "mtf" / "enums.py"))
    assert enums["SamplingStrategy"].REVERSED.value == "reversed"
    assert enums["EpochLengthPolicy"].ONE_EACH.value == "one_each"
    assert enums["EpochLengthPolicy"].MIN_OF_LENGTHS is enums["EpochLengthPolicy"].MIN_LENGTH

    shown = subprocess.run([str(build(tmp_path, PROGRAM))], check=True, capture_output=True, text=True).stdout
    assert shown == "ROUND_ROBIN, WEIGHTED, ALTERNATING, SEQUENTIAL, REVERSED;210"


def test_the_files_that_follow_from_the_rows_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "make_tables.py"), "--check"], check=False)
    assert done.returncode == 0


def test_the_table_of_changes_names_files_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.split("## Ten changes")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10
    files = re.findall(r"`([\w/.]+\.(?:py|hpp|cpp|def))`", table)
    assert len(files) > 8
    assert [file for file in files if not (ROOT / file).is_file()] == []
    for kind in FILES:
        assert re.search(rf"^\| an? {kind} .*\| none; one file of yours", table, re.MULTILINE), kind
