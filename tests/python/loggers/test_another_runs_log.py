"""A new run where another run's log lies: it is named, and nothing of it is lost."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from trainer_tools import loader, trainer

import mtf
from mtf.report.read import read_run


def run(folder: Path, kind: str, steps: int, **more: Any) -> mtf.Trainer:
    kinds: dict[str, Any] = {"logger_type": kind}
    if kind == "composite":
        kinds["composite_loggers"] = ["jsonl", "csv"]
    logging = mtf.LoggingConfig(log_dir=str(folder), progress_bar=False, log_scalars_every_n_steps=1, **kinds)
    one = trainer(mtf.TrainerConfig(logging=logging, experiment_name="x", **more))
    one.fit(loader(20, 1), max_steps=steps)
    return one


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_bytes().hex() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "composite", "tensorboard"])
def test_the_log_of_another_run_is_named_and_kept(tmp_path: Path, kind: str) -> None:
    if kind == "tensorboard":
        pytest.importorskip("tensorboard")
    run(tmp_path, kind, 3).close_logs()
    first = files(tmp_path)
    assert {"x/run.jsonl"} <= set(first)
    for number in (1, 2):
        before = {name: content for name, content in files(tmp_path).items() if "previous" not in name}
        with pytest.warns(UserWarning, match=rf"x held the log of another run, which is in .*x/previous-{number} now"):
            run(tmp_path, kind, 2).close_logs()
        after = files(tmp_path)
        for name, content in before.items():
            assert after[name.replace("x/", f"x/previous-{number}/")] == content
    assert read_run(tmp_path / "x" / "previous-1").name == "x"
    assert read_run(tmp_path / "x").name == "x"  # of three runs, the one that wasn't set aside


def test_a_run_that_continues_keeps_its_log_where_it_is(tmp_path: Path) -> None:
    one = run(tmp_path, "jsonl", 2, checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path / "c"), save_at_end=True))
    one.fit(loader(20, 1), max_steps=4)  # and once more in this trainer
    one.close_logs()
    one.fit(loader(20, 1), max_steps=5)
    one.close_logs()
    again = mtf.TrainerConfig(
        logging=one.config.logging, experiment_name="x", checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path / "c"))
    )
    two = trainer(again)
    two.fit(loader(20, 1), max_steps=7, resume_from="latest")
    lines = (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [f'{{"step": {step}' for step in range(1, 8)]
    assert not list((tmp_path / "x").glob("previous*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_refuses_is_named(tmp_path: Path) -> None:
    run(tmp_path, "jsonl", 2).close_logs()
    (tmp_path / "x").chmod(0o555)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(tmp_path, "jsonl", 2)
    (tmp_path / "x").chmod(0o755)
    assert any("can't be moved" in str(w.message) for w in said)
