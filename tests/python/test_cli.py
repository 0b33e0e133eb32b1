"""The mtf command: results, JSON, one-line errors and exit codes."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtf
from mtf import cli

ROOT = Path(__file__).resolve().parents[2]
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
    assert f"mtf             {mtf.__version__}" in capsys.readouterr().out


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


MISTAKES = "import nowhere_to_be_found\n", "1 / 0\n", "def make():\n    raise KeyError('q')\n\nthree = 3\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with modules that raise, as the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for number, text in enumerate(MISTAKES):
        Path(f"cli_mistake_{number}.py").write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "cli_mistake_0:x",
            "importing cli_mistake_0 raised ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("cli_mistake_1:x", "importing cli_mistake_1 raised ZeroDivisionError: division by zero; python -c"),
        ("cli_mistake_2:make", "cli_mistake_2:make was called and raised KeyError: 'q'"),
        ("cli_mistake_2:maker", "module 'cli_mistake_2' has no 'maker'; did you mean 'make'?"),
        ("cli_mistake_2:three", "must be a Source, a DataLoader or an iterable of batches"),
        ("nowhere.at_all:x", "there is no module 'nowhere' in this folder or environment"),
        (":x", "must be given as module:name, but is ':x'"),
    ],
)
def test_mistakes_of_the_users_module_are_one_line(place: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert cli.main(["check-source", place, "--json"]) == cli.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mtf: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


UNREADABLE = """\
class Broken:
    def __len__(self):
        return 4

    def __iter__(self):
        raise ValueError("no such table")


broken = Broken()
"""


def test_a_loader_that_raises_before_it_is_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    text = UNREADABLE.replace("def __len__(self)", "def __getattr__(self, name)").replace("return 4", "1 // 0")
    Path("cli_closed.py").write_text(text, encoding="utf-8")
    assert cli.main(["check-source", "cli_closed:broken"]) == cli.USAGE
    assert "cli_closed:broken: reading raised ZeroDivisionError" in capsys.readouterr().err


def test_a_loader_that_raises_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("cli_broken.py").write_text(UNREADABLE, encoding="utf-8")
    assert cli.main(["check-source", "cli_broken:broken"]) == cli.DIFFERENT
    said = capsys.readouterr()
    assert "FAILS: it can be read\n         ValueError: no such table\n" in said.out
    assert said.err == ""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with checkpoints after updates 1 and 2."""
    torch = pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("run")
    model = torch.nn.Linear(2, 1)
    trainer = mtf.Trainer(
        mtf.TrainerConfig(
            checkpoint=mtf.CheckpointConfig(root_dir=str(root), save_every_n_steps=1),
            logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        ),
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        training_step=lambda trainer, batch, *_: trainer.model(batch).mean(),
    )
    trainer.fit({"ones": mtf.ArrayLoader(torch.ones(8, 2), 4)}, max_steps=2)
    return root


def test_inspect_prints_a_page_and_json(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(run_folder / "step-00000001")
    assert cli.main(["inspect", checkpoint]) == cli.OK
    printed = capsys.readouterr().out
    assert "weights: 2 tensors, 3 elements" in printed
    assert "every file has the checksum its manifest states" in printed
    assert cli.main(["inspect", checkpoint, "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["manifest"]["step"], found["num_parameters"], found["verified"]) == (1, 3, True)
    assert found["schedule"]["drawn in this epoch"] == {"ones": 1}


def test_diff_prints_differences_and_json(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = str(run_folder / "step-00000001"), str(run_folder / "step-00000002")
    assert cli.main(["diff", left, left]) == cli.OK
    assert cli.main(["diff", left, right]) == cli.DIFFERENT
    assert "model['weight']" in capsys.readouterr().out
    assert cli.main(["diff", left, right, "--json"]) == cli.DIFFERENT
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False
    assert "model['weight']" in {entry["place"] for entry in found["differences"]}
    assert cli.main(["diff", left, right + "0"]) == cli.DAMAGED
    assert "step-000000020" in failure(capsys)


def test_a_run_and_its_repetition_in_other_folders_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")

    def train(name: str, lr: float, clip: float | None = None) -> str:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        config = mtf.TrainerConfig(
            experiment_name=name,
            checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path / name), save_at_end=True),
            logging=mtf.LoggingConfig(logger_type="csv", log_dir=str(tmp_path / f"{name}-logs"), progress_bar=False),
            performance=mtf.PerformanceConfig(clip_grad_norm=clip),
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        trainer = mtf.Trainer(
            config, model, optimizer, training_step=lambda trainer, batch, *_: trainer.model(batch).mean()
        )
        trainer.fit({"ones": mtf.ArrayLoader(torch.ones(8, 2), 4)}, max_steps=1)
        return str(tmp_path / name / "latest")

    first = train("first", 0.1)
    assert cli.main(["diff", first, train("again", 0.1)]) == cli.OK
    assert cli.main(["diff", first, train("clipped", 0.1, clip=9.0)]) == cli.DIFFERENT
    assert "manifest['config']['performance']['clip_grad_norm']" in capsys.readouterr().out


def test_a_runs_folder_is_no_checkpoint(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["inspect", str(run_folder)], ["diff", str(run_folder), str(run_folder / "latest")]):
        assert cli.main(command) == cli.DAMAGED
        said = failure(capsys)
        assert "is no checkpoint but holds some (latest, step-00000001, step-00000002)" in said
        assert "try" in said


def test_damage_is_found(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run_folder / "step-00000001", tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for command in (["inspect"], ["inspect", "--json"]):
        assert cli.main([*command, str(tmp_path / "copy")]) == cli.DAMAGED
        assert "model.safetensors" in failure(capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: command; see mtf --help"),
        (["plam"], "did you mean 'plan'; see mtf --help"),
        (["bench", "--order", "shufled"], "did you mean 'shuffled'; see mtf bench --help"),
        (["run", "--config", "x.yaml"], "there is no 'run': a run is a script of yours"),
        (["plan"], "the following arguments are required: config; see mtf plan --help"),
        (["plan", "x.yaml", "--bogus"], "unrecognized arguments: --bogus; see mtf --help"),
        (["plan", "x.yaml", "--epochs", "0"], "--epochs: must be a whole number of at least 1, but is '0'"),
        (["bench", "--sources", "many"], "--sources: must be a whole number of at least 1, but is 'many'"),
    ],
)
def test_mistakes_in_the_command_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == cli.USAGE
    assert said in failure(capsys)


def test_warnings_are_lines_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(MIXTURE.replace("weighted\n", "round_robin\n"), encoding="utf-8")
    assert cli.main(["plan", str(path), "--lengths", "5,6,7", "--json"]) == cli.OK
    captured = capsys.readouterr()
    json.loads(captured.out)
    lines = captured.err.splitlines()
    assert "mtf: warning: dataloader_weights has no effect with sampling_strategy=ROUND_ROBIN" in lines
    assert all(line.startswith("mtf: warning: ") for line in lines)


def test_plan_finds_the_mixture_inside_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    trainer = {"multi": {"dataloader_names": ["a", "b"]}, "seed": 3}
    path.write_text(json.dumps({"data": {"rows": 3}, "trainer": trainer, "lengths": [3, 5]}), encoding="utf-8")
    assert cli.main(["plan", str(path), "--json"]) == cli.OK
    assert json.loads(capsys.readouterr().out)["epochs"][0]["num_steps"] == 8


def test_ctrl_c_and_a_closed_pipe(
    mixture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(mixture: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtf.bench.measure_schedule", interrupt)
    assert cli.main(["bench"]) == cli.INTERRUPTED
    assert failure(capsys) == "mtf: interrupted\n"
    command = [sys.executable, "-m", "mtf", "plan", str(mixture), "--epochs", "200"]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()
    assert done.stderr.read() == b""
    assert done.wait() == cli.OK
    done.stderr.close()


def documented() -> dict[str, dict[str, str]]:
    """Command -> argument -> meaning, as docs/cli.md shows them; "" -> exit code -> meaning."""
    found: dict[str, dict[str, str]] = {"": {}}
    rows = found[""]
    for line in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## mtf "):
            rows = found[line.removeprefix("## mtf ")] = {}
        elif cells := re.fullmatch(r"\| `?([\w-]+)`? \| (.+) \|", line):
            rows[cells[1]] = cells[2]
    return {command: {k: v for k, v in rows.items() if k not in ("---", "argument")} for command, rows in found.items()}


def test_the_page_shows_every_command_and_argument() -> None:
    page = documented()
    assert page.pop("") == {str(code): meaning for code, meaning in cli.EXIT_CODES.items()}
    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    shown = {
        name: {
            (action.option_strings or [action.dest])[-1]: action.help
            for action in sub._actions
            if not isinstance(action, argparse._HelpAction)
        }
        for name, sub in commands.choices.items()
    }
    assert page == shown
