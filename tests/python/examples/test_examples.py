"""The examples run in a short form, and show what they say."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mtf

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(autouse=True)
def find_examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


def run_main(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    importlib.import_module(name).main()


def test_every_example_is_short_and_tested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    # In tests/distributed, and in tests/python/trainer/test_online_mixing.py.
    elsewhere = {"domain_adaptation", "several_ranks", "under_fabric", "under_ray", "online_mixing"}
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 150, f"{path.name} is too long to be read at once"
        assert path.stem in elsewhere or re.search(rf"\b{path.stem}\b", tested), f"{path.name} has no test"


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"[{path.stem}]({path.name})" in index


def test_language_mixture(tmp_path: Path) -> None:
    example = importlib.import_module("language_mixture")
    short = example.train(6, tmp_path, batch_size=4, max_bytes=60_000)
    assert {f"val/{name}/bits_per_byte" for name in ("code", "reference", "prose")} <= set(short)
    assert 2 < short["val/bits_per_byte"] < 9


def test_images_do_not_depend_on_workers() -> None:
    example = importlib.import_module("images_in_workers")
    states = [example.train(workers, steps=20).get_state() for workers in (0, 2)]
    assert states[0] == states[1], states[0].diff(states[1])


def test_curriculum_moves_on_and_resumes_its_decisions() -> None:
    example = importlib.import_module("curriculum_by_metric")
    hook = example.MoveOn(goal=0.6)
    trainer = example.make_trainer(hook, progress_bar=False)
    trainer.fit(example.make_loaders(0, 2000), example.make_loaders(10, 200), max_epochs=4)
    assert hook.stage >= 1
    half = example.make_trainer(example.MoveOn(goal=0.6), progress_bar=False)
    half.fit(example.make_loaders(0, 2000), example.make_loaders(10, 200), max_epochs=2)
    rest = example.make_trainer(example.MoveOn(goal=0.6), progress_bar=False)
    rest.load_state(half.get_state())
    rest.fit(example.make_loaders(0, 2000), example.make_loaders(10, 200), max_epochs=4)
    assert rest.get_state() == trainer.get_state(), rest.get_state().diff(trainer.get_state())


def test_multi_task_keeps_the_tasks_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    example = importlib.import_module("multi_task")
    trainer = example.make_trainer()
    heads = trainer.model.heads
    moved: dict[str, set[str]] = {}

    class Watch(mtf.TrainerHooks):
        def on_train_batch_start(self, trainer: Any, batch: Any, batch_idx: int, index: int, name: str) -> None:
            self.loader = name
            self.before = {key: head.weight.detach().clone() for key, head in heads.items()}

        def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            changed = {key for key, head in heads.items() if not torch.equal(head.weight, self.before[key])}
            moved.setdefault(self.loader, set()).update(changed)

    trainer.add_hook(Watch())
    trainer.fit(example.make_loaders(True), example.make_loaders(False), max_epochs=1)
    assert moved == {name: {name} for name in example.TASKS}
    assert trainer.metrics["val/classification/accuracy"] > 0.5
    assert {"val/regression/distance", "val/primary"} <= set(trainer.metrics)


def test_curriculum_by_curve_draws_what_it_planned() -> None:
    example = importlib.import_module("curriculum_by_curve")
    shares = example.planned_shares(3)
    assert [max(share, key=share.__getitem__) for share in shares] == ["clean", "noisy", "very_noisy"]
    trainer = example.make_trainer(3)
    trainer.fit(example.make_loaders(True), max_epochs=3)
    for name, share in shares[2].items():
        assert trainer.metrics[f"loader_proportions/{name}_batches"] == pytest.approx(share)


def test_weights_help_the_rare_classes() -> None:
    example = importlib.import_module("imbalanced_classes")
    by_size, equal = example.recalls(1.0, steps=60), example.recalls(0.0, steps=60)
    rare = [f"digit_{label}" for label in example.KEPT_OF_RARE]
    assert max(by_size[name] for name in rare) == 0.0
    assert sum(equal[name] for name in rare) / len(rare) > 0.4


def test_custom_source_is_exact() -> None:
    example = importlib.import_module("custom_source")
    report = mtf.check_source(example.make_sources()["code"])
    assert report.ok, report
    source = example.make_sources()["prose"]
    sizes = [source.read(0, batch, key=1)["text"].numel() for batch in range(source.num_batches())]
    assert max(sizes) <= 4096
    assert sum(len(line) for line in source.lines) <= sum(sizes)
    assert example.train(6).global_step == 6


@pytest.mark.filterwarnings("ignore")  # of wandb and its dependencies
def test_wandb_goes_on_in_the_same_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wandb = pytest.importorskip("wandb", reason="an extra")
    for epochs in ("1", "2"):
        run_main("wandb_offline", monkeypatch, "--epochs", epochs)
        wandb.finish()
    output = capsys.readouterr().out
    assert "1 W&B run in 1 part(s):" in output
    assert "1 W&B run in 2 part(s):" in output


def test_yaml_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("omegaconf")
    example = importlib.import_module("yaml_run")
    file = str(EXAMPLES / "yaml_run.yaml")

    def run(*assignments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["yaml_run.py", "--config", file, *(f"--{word}" for word in assignments)])
        try:
            code = example.main()
        except SystemExit as left:
            code = left.code
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = run("max_epochs=8", "optimizer.lr=5e-3")
    assert code == 0
    accuracy = re.match(r"wine: accuracy {'measured': ([\d.]+), 'noisy': ([\d.]+)}\n", out)
    assert accuracy
    assert float(accuracy[1]) > 0.9
    for assignment, said in (
        (
            "optimizer.name=adm",
            "RunConfig.optimizer.name must be one of 'adam', 'sgd', got 'adm'; did you mean 'adam'?",
        ),
        ("trainer.multi.burst=3", "RunConfig.trainer.multi has no field 'burst'; did you mean 'burst_size'?"),
        ("trainer.multi.dataloader_weights=[1]", "dataloader_weights must have one weight per dataloader (2), got 1"),
        ("model=3", "RunConfig.model must be a mapping of field names to values, got 3"),
    ):
        code, out, err = run(assignment)
        assert (code, out) == (2, "")
        assert said in err


class Job:
    """Runs the batch script as Slurm would, with stand-ins for ``srun`` and ``scontrol``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir()
        python = f'exec "{sys.executable}" "{EXAMPLES}/slurm_run.py"'
        for name, text in {
            "srun": f'echo $$ > pid\nshift 3\n{python} "$@"',
            "scontrol": 'if [ "$1" = show ]; then echo JobState=RUNNING; else echo "$@" >> scontrol.log; fi',
        }.items():
            (commands / name).write_text(f"#!/bin/bash\n{text}\n")
            (commands / name).chmod(0o755)
        path = f"{commands}{os.pathsep}{os.environ['PATH']}"
        packages = os.pathsep.join([str(Path(mtf.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        self.environment = {**kept, "PATH": path, "PYTHONPATH": packages, "SLURM_JOB_ID": "4242"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        script = ["bash", str(EXAMPLES / "slurm_run.sbatch"), *arguments]
        return subprocess.Popen(script, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(os.name != "posix", reason="signals and shell scripts of a Unix")
def test_slurm_job_is_put_back_and_goes_on(tmp_path: Path) -> None:
    job = Job(tmp_path)
    with job.start("--epochs", "100000") as first:
        assert first.stdout is not None
        said = [first.stdout.readline() for _ in range(3)]
        assert said[0] == "begins after update 0, on 1 rank(s)\n"
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
        epochs = sum(line.startswith("epoch ") for line in [*said, *first.stdout])
    assert first.returncode == 75
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4242\n"

    with job.start("--epochs", str(epochs + 1)) as second:
        output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    begun = re.match(r"begins after update (\d+), on 1 rank", output)
    assert begun
    done = re.search(r"done after update (\d+)", output)
    assert done
    per_epoch = int(done[1]) // (epochs + 1)
    assert epochs * per_epoch <= int(begun[1]) <= int(done[1])
    assert f"epoch {epochs}: loss" in output
    assert f"epoch {epochs - 1}: loss" not in output


def test_raw_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_main("raw_loop", monkeypatch)
    assert "the same bits: True" in capsys.readouterr().out


@pytest.mark.filterwarnings("default")  # what other frameworks warn about
@pytest.mark.parametrize("framework", ["accelerate", "lightning"])
def test_resume_under_another_trainer(
    framework: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(framework, reason=f"{framework} comes with the bench extra")
    modules = {"accelerate": "under_accelerate", "lightning": "under_lightning"}
    run_main(modules[framework], monkeypatch)
    output = capsys.readouterr().out
    assert "the same bits: True" in output
    assert "False" not in output.split("the same")[-1]


@pytest.mark.filterwarnings("default")  # what other frameworks warn about
@pytest.mark.parametrize(
    ("framework", "loop"),
    [("torch", "by_hand"), ("accelerate", "under_accelerate"), ("lightning", "under_lightning"),
     ("transformers", "under_transformers")],
)  # fmt: skip
def test_a_blend_resumes_in_the_loops_of_others(framework: str, loop: str, tmp_path: Path) -> None:
    pytest.importorskip(framework, reason=f"{framework} comes with the bench extra")
    example = importlib.import_module("blend_in_other_loops")
    run = getattr(example, loop)
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = run(tmp_path / "whole", example.UPDATES, resume=False).state_dict()
    stopped = run(tmp_path / "parts", example.STOP, resume=False).state_dict()
    resumed = run(tmp_path / "parts", example.UPDATES, resume=True).state_dict()
    by_hand = example.by_hand(tmp_path, example.UPDATES, resume=False).state_dict()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value)
        assert torch.equal(by_hand[name], value) or loop == "under_transformers"  # which has another optimizer
        assert not torch.equal(stopped[name], value)


@pytest.mark.filterwarnings("default")  # what DCP warns about
def test_a_loop_of_torchtitans_shape_resumes_exactly(tmp_path: Path) -> None:
    example = importlib.import_module("torchtitan_loop")
    example.join()
    try:
        whole = example.Trainer(example.ParallelDims()).train(example.STEPS, tmp_path / "whole")
        stopped = example.Trainer(example.ParallelDims()).train(4, tmp_path / "parts")
        found = example.Trainer(example.ParallelDims()).train(example.STEPS, tmp_path / "parts", resume=4)
    finally:
        example.dist.destroy_process_group()
    assert all(torch.equal(whole[name], found[name]) for name in whole)
    assert not torch.equal(whole["head.weight"], stopped["head.weight"])


def test_mixing_inside_batches_trains(tmp_path: Path) -> None:
    example = importlib.import_module("mixed_inside_batches")
    for is_mixed in (False, True):
        (tmp_path / str(is_mixed)).mkdir()
        bits = example.train(4, tmp_path / str(is_mixed), is_mixed=is_mixed, batch_size=4, max_bytes=60_000)
        assert 0 < bits < 9
