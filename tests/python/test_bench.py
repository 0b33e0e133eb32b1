"""The command `mtf bench`: what it measures for whose mixtures. The figures themselves prove nothing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mtf import bench, cli
from mtf.enums import SamplingStrategy

MIXTURE = """\
sampling_strategy: weighted
dataloader_weights: [0.7, 0.2, 0.1]
dataloader_names: [web, code, books]
lengths: {web: 50, code: 40, books: 30}
"""


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    path = tmp_path / "mixture.yaml"
    path.write_text(MIXTURE, encoding="utf-8")
    return path


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and short rounds."""
    effort = bench.Effort(num_steps=2000, num_looks=20, delivery_s=0.002, rounds=1)
    monkeypatch.setattr(bench, "measure_schedule", partial(bench.measure_schedule, effort=effort))
    monkeypatch.setattr(bench, "measure_delivery", partial(bench.measure_delivery, effort=effort))


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert cli.main(["bench", *arguments, "--json"]) == cli.OK
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    for row in rows:
        assert row["ns_per_step"] > 0
        assert row["per_second"] == pytest.approx(1e9 / row["ns_per_step"])
    return rows


@pytest.mark.usefixtures("hurried")
def test_draws_beside_numpy_and_python(capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured(capsys, "--sources", "3")
    assert {row["num_sources"] for row in rows} == {3}
    assert {"mtf", "numpy", "random.choices"} <= {row["tool"] for row in rows}
    for order in ("RANDOM", "SHUFFLED", "EVEN"):
        works = {row["work"] for row in rows}
        assert {f"{work} (weighted, {order})" for work in ("array", "one by one", "at(step)")} < works


@pytest.mark.usefixtures("hurried")
def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--sources", "3", "--order", "even"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["work", "tool", "sources", "ns", "per", "step", "per", "second"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.usefixtures("hurried")
def test_batches_are_delivered(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    options = ["--weights", "0.7,0.2,0.1", "--order", "even", "--threads", "0", "2", "--row-bytes", "64"]
    rows = measured(capsys, *options, "--batch-size", "16")
    assert {row["num_sources"] for row in rows} == {3}
    delivered = {row["tool"] for row in rows if row["work"] == "batches of 16 rows of 64 bytes (weighted, EVEN)"}
    assert delivered == {"mtf, 0 threads", "mtf, 2 threads", "torch.index_select"}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("strategy", ["round_robin", "alternating", "sequential"])
def test_other_strategies(strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured(capsys, "--strategy", strategy, "--sources", "2", "5")
    assert {(row["work"], row["num_sources"]) for row in rows} >= {(f"array ({strategy})", n) for n in (2, 5)}


@pytest.mark.usefixtures("hurried")
def test_a_mixture_of_ones_own(mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured(capsys, str(mixture), "--threads", "1", "--batch-size", "8")
    assert {row["num_sources"] for row in rows} == {3}
    assert f"array ({mixture})" in {row["work"] for row in rows}
    assert "numpy" in {row["tool"] for row in rows}


def test_weights_are_the_given_ones() -> None:
    example = bench.mixture_of(2, weights=[3.0, 1.0])
    assert example.config.dataloader_weights == [3.0, 1.0]
    assert bench.mixture_of(2).config.dataloader_weights == [1.0, 0.5]
    assert bench.mixture_of(2, SamplingStrategy.SEQUENTIAL).config.dataloader_weights is None


@pytest.mark.usefixtures("hurried")
def test_without_torch_only_draws(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: object) -> None:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(bench, "measure_delivery", missing)
    assert cli.main(["bench", "--sources", "2", "--json"]) == cli.OK
    captured = capsys.readouterr()
    assert all("batches" not in row["work"] for row in json.loads(captured.out))
    assert captured.err == "mtf: no batches are delivered: No module named 'torch'\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weights", "1,x"], "--weights must be numbers"),
        (["--weights", "1,2", "--sources", "3"], "--weights has 2 numbers"),
        (["--weights", "1,2", "--strategy", "sequential"], "belongs to the strategy 'weighted'"),
        (["--weights", "0,0"], "weight"),
        (["--lengths", "1,2"], "name its file"),
        (["{mixture}", "--weights", "1,2"], "which has its own"),
        (["{mixture}", "--sources", "2"], "which has its own"),
    ],
)
def test_refused(arguments: list[str], said: str, mixture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *(argument.format(mixture=mixture) for argument in arguments)]) == cli.USAGE
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--sources", "0"], ["--threads", "-1"], ["--strategy", "guess"], ["--order", "odd"]]
)
def test_refused_by_the_parser(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == cli.USAGE
