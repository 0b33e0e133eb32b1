"""The profiler hook: which updates it profiles, what it writes, and that it changes nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from trainer_tools import config, loader, trainer

import mtf


def fitted(hook: mtf.Profiler | None, parts: tuple[int, ...] = (12,), window: int = 1) -> mtf.Trainer:
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=window)
    run = trainer(config(performance=performance), hooks=[] if hook is None else [hook])
    for updates in parts:
        run.fit([loader(200, 1)], max_steps=updates)
    return run


def steps(path: Path) -> int:
    """Updates in a trace."""
    events = json.loads(path.read_text())["traceEvents"]
    return len({event["name"] for event in events if event["name"].startswith("ProfilerStep#")})


@pytest.mark.parametrize("window", [1, 2])
def test_it_profiles_the_updates_that_were_asked_for(window: int, tmp_path: Path, caplog: Any) -> None:
    hook = mtf.Profiler(tmp_path / "p", skip=3, warmup=1, active=2, repeat=2, top=5)
    with caplog.at_level(logging.INFO, "mtf"):
        run = fitted(hook, window=window)
    names = ["updates-5-6.json", "updates-8-9.json"]
    assert [path.name for path in hook.paths] == names
    assert [steps(path) for path in hook.paths] == [2, 2]
    assert "aten::" in (tmp_path / "p" / "updates-5-6.txt").read_text()
    assert "profile of updates 5 to 6" in caplog.text
    plain = fitted(None, window=window)
    assert mtf.TrainerState({"m": run.get_state()["model"]}) == mtf.TrainerState({"m": plain.get_state()["model"]})


def test_the_last_update_may_complete_a_profile(tmp_path: Path) -> None:
    hook = mtf.Profiler(tmp_path, skip=1, warmup=1, active=3)
    fitted(hook, (5,))
    assert [path.name for path in hook.paths] == ["updates-3-5.json"]
    cut = mtf.Profiler(tmp_path / "cut", skip=1, warmup=1, active=3)
    fitted(cut, (4,))
    assert cut.paths == []
    assert not (tmp_path / "cut").exists()


def test_an_error_ends_the_profile(tmp_path: Path) -> None:
    class Failing(mtf.TrainerHooks):
        def on_before_backward(self, trainer: Any, loss: Any) -> None:
            if trainer.global_step == 3:
                raise KeyError("x")

    hook = mtf.Profiler(tmp_path, skip=1, active=5)
    run = trainer(hooks=[hook, Failing()])
    with pytest.raises(KeyError):
        run.fit([loader(200, 1)], max_steps=9)
    again = mtf.Profiler(tmp_path, skip=1, warmup=1, active=1)  # a second one can start
    fitted(again, (4,))
    assert len(again.paths) == 1


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(mtf.ConfigError, match="Profiler: active must be an int of at least 1"):
        mtf.Profiler(active=0)
