"""Two ranks with unequal data, and signals to one of them where there are no updates to agree at."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed import launch, models

pytestmark = pytest.mark.timeout(400)  # several processes each import torch; every launch has a limit of its own


def test_a_stream_that_does_not_look_at_its_rank_is_named_at_its_first_batch(tmp_path: Path) -> None:
    run = launch.run(2, tmp_path, "leaving_worker.py", "streams", "ddp", timeout_s=120)
    assert run.codes == [0, 0], run.output
    ((step, text),) = run.results[0]["said"]
    assert step == 0
    assert text.startswith("same: ranks 0, 1 got the same first batch")
    assert run.results[1]["said"] == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_metric_objects_are_right_where_a_rank_has_no_batch(strategy: str, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    run = launch.run(2, tmp_path, "leaving_worker.py", "objects", strategy, timeout_s=120)
    assert run.codes == [0, 0], run.output
    for result in run.results:
        for row in result["rows"]:
            for name, expected in result["expected"].items():
                for metric in ("mean", "own", *(("local",) if name == "one" else ())):
                    assert row[f"val/{name}/{metric}"] == pytest.approx(expected, rel=1e-6), (name, metric)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_in_a_validation_is_obeyed_by_all_within_moments(strategy: str, tmp_path: Path) -> None:
    arguments = ("leaving_worker.py", "validation", strategy, str(tmp_path / "run"))
    run = launch.run(2, tmp_path / "a", *arguments, timeout_s=120)
    assert 75 in run.codes, run.output
    for result in run.results:
        assert result["error"].startswith("Preempted")
        assert result["step"] == 5
        assert result["seen"] < 20  # of 80
        assert "val/loss" not in result["metrics"]
    again = launch.run(2, tmp_path / "b", *arguments, timeout_s=120)
    assert again.codes == [0, 0], again.output
    whole = models.by_hand(7)
    for result in again.results:
        assert result["seen"] >= 3  # the validation that was left was made
        assert "val/loss" in result["metrics"]
        for name, value in whole.items():
            assert result["weights"][name] == pytest.approx(value.flatten().tolist(), abs=2e-7)


def test_a_signal_to_one_rank_while_a_checkpoint_loads_is_obeyed_by_all(tmp_path: Path) -> None:
    run = launch.run(2, tmp_path, "leaving_worker.py", "load", "ddp", str(tmp_path / "run"), timeout_s=120)
    assert 75 in run.codes, run.output
    for result in run.results:
        assert result["error"].startswith("Preempted")
        assert result["step"] == 3
