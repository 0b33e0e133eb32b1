"""The examples run in a short form, and show what they say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def find_examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


def run_main(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    importlib.import_module(name).main()


def test_every_example_is_short_and_tested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    elsewhere = {"domain_adaptation"}  # tests/distributed
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 150, f"{path.name} is too long to be read at once"
        assert path.stem in elsewhere or f'"{path.stem}"' in tested, f"{path.name} has no test"


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
