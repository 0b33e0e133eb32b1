"""The mtf command: results, JSON, one-line errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mtf
from mtf import cli

MIXTURE = """\
sampling_strategy: weighted
dataloader_weights: [0.7, 0.2, 0.1]
dataloader_names: [web, code, books]
weighted_order: even
epoch_length_policy: fixed_num_steps
steps_per_epoch: 100
"""


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    path = tmp_path / "mixture.yaml"
    path.write_text(MIXTURE + "lengths: [50, 40, 30]\n", encoding="utf-8")
    return path


def failure(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error; it has to be one line."""
    said = capsys.readouterr().err
    assert said.startswith("mtf: ")
    assert said.count("\n") == 1, said
    return said


def test_plan_prints_a_table(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(mixture)]) == cli.OK
    printed = capsys.readouterr().out
    for name in ("web", "code", "books"):
        assert name in printed


def test_plan_as_json(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(mixture), "--json", "--epochs", "2"]) == cli.OK
    assert "web" in json.dumps(json.loads(capsys.readouterr().out))


def test_plan_reads_a_whole_run_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"multi": {"dataloader_names": ["a", "b"]}, "seed": 3}), encoding="utf-8")
    assert cli.main(["plan", str(path), "--lengths", "a=3,b=5"]) == cli.OK
    assert "a" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plan_draws_a_plot(mixture: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / f"plan.{suffix}"
    assert cli.main(["plan", str(mixture), "--plot", str(plot)]) == cli.OK
    assert plot.stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (MIXTURE, [], "lengths are missing"),
        (MIXTURE, ["--lengths", "5,six,7"], "'six'"),
        (MIXTURE, ["--lengths", "5,6"], "3"),
        (MIXTURE.replace("weighted_order", "weigthed_order"), ["--lengths", "5,6,7"], "weighted_order"),
        (MIXTURE.replace("0.2", "-0.2"), ["--lengths", "5,6,7"], "dataloader_weights"),
        ("- a\n- b\n", [], "mapping"),
        ("a: [\n", [], "isn't YAML"),
        ("multi: 3\nlengths: [1]\n", [], "'multi'"),
    ],
)
def test_plan_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], said: str
) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(text, encoding="utf-8")
    assert cli.main(["plan", str(path), *arguments]) == cli.USAGE
    assert said in failure(capsys)


def test_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(tmp_path / "none.yaml")]) == cli.USAGE
    assert "none.yaml" in failure(capsys)


def test_env_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == cli.OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["mtf"] == facts["mtf._core"] == mtf.__version__
    assert facts["numpy"][0].isdigit()
    assert cli.main(["env"]) == cli.OK
    assert f"mtf            {mtf.__version__}" in capsys.readouterr().out


def test_bench_measures_and_compares(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mtf import speed

    measure = speed.measure
    monkeypatch.setattr(speed, "measure", lambda sizes: measure(sizes, num_steps=2000))
    assert cli.main(["bench", "--sources", "3", "--json"]) == cli.OK
    rows = json.loads(capsys.readouterr().out)
    assert {row["tool"] for row in rows} == {"mtf", "numpy", "random.choices"}
    assert all(row["ns_per_step"] > 0 and row["num_sources"] == 3 for row in rows)
    assert cli.main(["bench", "--sources", "3"]) == cli.OK
    assert "ns per step" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--sources", "0"], ["--sources", "x"]])
def test_bench_refuses_sizes(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == cli.USAGE


def test_damaged_checkpoint_has_its_own_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("safetensors")
    (tmp_path / "run").mkdir()
    assert cli.main(["inspect", str(tmp_path / "run")]) == cli.DAMAGED
    assert "run" in failure(capsys)


@pytest.mark.parametrize("command", [["mtf"], [sys.executable, "-m", "mtf"]], ids=["script", "module"])
def test_version_of_both_entry_points(command: list[str]) -> None:
    if command == ["mtf"]:
        command = [str(Path(sys.executable).with_name("mtf"))]
        if not Path(command[0]).exists():
            pytest.skip("the package isn't installed, only on the path")
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mtf {mtf.__version__}\n"


def test_no_command_is_a_mistake() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == cli.USAGE


LOADERS = """\
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

exact = DataLoader(TensorDataset(torch.arange(32.0)), batch_size=4, shuffle=True)


class Counting(Dataset):
    reads = 0

    def __len__(self):
        return 32

    def __getitem__(self, index):
        Counting.reads += 1
        return Counting.reads


def make_counting():
    return DataLoader(Counting(), batch_size=4)
"""


def test_check_source_tells_exact_from_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("cli_loaders.py").write_text(LOADERS, encoding="utf-8")
    assert cli.main(["check-source", "cli_loaders:exact"]) == cli.OK
    assert capsys.readouterr().out
    assert cli.main(["check-source", "cli_loaders:make_counting", "--json"]) == cli.DIFFERENT
    assert json.loads(capsys.readouterr().out)["ok"] is False
    for place, said in [("cli_loaders", "module:name"), ("cli_loaders:none", "no 'none'"), ("no_such:x", "no_such")]:
        assert cli.main(["check-source", place]) == cli.USAGE
        assert said in failure(capsys)
