"""A signal that comes while ``fit`` loads: obeyed before the first update, with marker, requeue and exit code."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from trainer_tools import config, loader, trainer

import mtf
from mtf.trainer import preemption


class InLoad(mtf.TrainerHooks):
    def on_checkpoint_load(self, trainer: Any, path: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("where", ["own", "elsewhere"])
def test_it_leaves_a_marker_and_asks_to_be_requeued(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(preemption, "requeue_slurm_job", lambda: asked.append(True))

    def settings(root: str) -> mtf.TrainerConfig:
        return config(
            checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path / root), save_at_end=True),
            preemption=mtf.PreemptionConfig(exit_code=44, requeue_job=True),
        )

    trainer(settings("run")).fit(loader(40, 1), max_steps=3)
    again = trainer(settings("run" if where == "own" else "other"), hooks=[InLoad()])
    source = "latest" if where == "own" else str(tmp_path / "run" / "step-00000003")
    with pytest.raises(mtf.Preempted) as left:
        again.fit(loader(40, 1), max_steps=9, resume_from=source)
    assert left.value.code == 44
    assert str(left.value.checkpoint) == str(tmp_path / "run" / "step-00000003")
    assert asked == [True]
    assert again.global_step == 3
    marker = tmp_path / ("run" if where == "own" else "other") / "PREEMPTED"
    assert marker.exists()
    assert {"signal": "SIGTERM", "step": 3, "checkpoint": "step-00000003"}.items() <= json.loads(
        marker.read_text()
    ).items()
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-00000003"]
