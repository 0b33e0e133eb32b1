"""The benchmarks run, and a run becomes a page: their smallest form, whose figures mean nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from tables import Measurement, from_run, grouped  # noqa: E402
from targets import TARGETS, Target, at_most, beats_peers, bound_times, judge, over, rate_of  # noqa: E402


def call(*arguments: str | Path) -> str:
    # Without what says that these tests themselves run on several workers: pytest-benchmark would measure nothing.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(300)
def test_every_benchmark_runs_and_becomes_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    options = ["--smoke", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--benchmark-json={run}"]
    shown = call("-m", "pytest", BENCHMARKS, *options)
    assert "mtf against bounds and peers" in shown
    measured = from_run(json.loads(run.read_text(encoding="utf-8")))
    assert {m.row for m in measured} == set("ABCDEFGH")
    call(BENCHMARKS / "report.py", run, "--docs", tmp_path)
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "A smoke run" in page
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert all((tmp_path / picture).read_text(encoding="utf-8").startswith("<?xml") for picture in pictures)


def of(tool: str, value: float, bound: float | None = None) -> Measurement:
    return Measurement("A", "work", "n=4", tool, value, bound)


MEASURED = [of("mtf", 10.0, 8.0), of("peer", 50.0), of("other peer", 40.0), of("raw loop", 6.0)]


@pytest.mark.parametrize(
    ("limit", "met"),
    [
        (at_most(10, "10 ns"), True),
        (at_most(9.9, "9.9 ns"), False),
        (bound_times(1.25), True),
        (bound_times(1.2), False),
        (beats_peers(4), True),
        (beats_peers(4.1), False),
        (beats_peers(5, "peer"), True),
        (beats_peers(1, "nobody"), None),
        (over("raw loop", 4, "+ 4 ns"), True),
        (over("raw loop", 3.9, "+ 3.9 ns"), False),
        (over("absent", 4, ""), None),
        (rate_of("raw loop", 0.6), True),
        (rate_of("raw loop", 0.7), False),
    ],
)
def test_targets_are_judged(limit: object, met: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("targets.TARGETS", (Target("A", "work", "mtf", limit, "n=4"),))  # type: ignore[arg-type]
    (verdict,) = judge(grouped(MEASURED))
    assert verdict.met is met


def test_references_are_no_peers() -> None:
    (group,) = grouped(MEASURED)
    assert group.best_peer is not None
    assert group.best_peer.tool == "other peer"
    assert group.members[0].tool == "mtf"


def test_every_target_names_known_words() -> None:
    assert {target.row for target in TARGETS} == set("ABCDEFG")
    for target in TARGETS:
        for pattern in (target.work, target.tool, target.size):
            re.compile(pattern)
