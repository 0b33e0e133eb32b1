"""Warnings point at the user's line: those of ``fit``, of the constructor, and of a call inside a hook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_tools import config, loader, trainer

import mtf
from mtf.call_site import user_level


def line_of(caught: pytest.WarningsRecorder, words: str) -> str:
    """The source line that a warning points at, which must be in this file."""
    found = next(w for w in caught if words in str(w.message))
    assert Path(found.filename) == Path(__file__), found.filename
    return Path(__file__).read_text(encoding="utf-8").splitlines()[found.lineno - 1]


def test_a_warning_of_fit_points_at_its_call() -> None:
    run = trainer()
    run.fit([loader(16, 1)], max_epochs=1)
    with pytest.warns(UserWarning, match="nothing to do") as caught:
        run.fit([loader(16, 1)], max_epochs=1)  # nothing is left
    assert "# nothing is left" in line_of(caught, "nothing to do")


def test_a_warning_from_a_hook_points_at_the_hook() -> None:
    class Weights(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            trainer.multi_loader_manager.update_weights([1.0])  # without effect

    with pytest.warns(UserWarning, match="has no effect with sampling_strategy") as caught:
        trainer(hooks=[Weights()]).fit([loader(16, 1)], max_epochs=1)
    assert "# without effect" in line_of(caught, "has no effect with sampling_strategy")


def test_a_warning_of_mtfs_own_hook_points_at_fit() -> None:
    run = trainer(hooks=[mtf.ThroughputMonitor(max_wait_share=0.0)])
    with pytest.warns(UserWarning, match="waited for data") as caught:
        run.fit([loader(16, 1)], max_epochs=1)  # it waits a little
    assert "# it waits a little" in line_of(caught, "waited for data")


def test_a_setting_without_effect_points_at_fit() -> None:
    run = trainer(config(checkpoint=mtf.CheckpointConfig(monitor_mode="max")))
    with pytest.warns(UserWarning, match="monitor_mode has no effect") as caught:
        run.fit([loader(16, 1)], max_epochs=1)  # nothing is monitored
    assert "# nothing is monitored" in line_of(caught, "monitor_mode has no effect")


def test_the_level_counts_from_the_caller() -> None:
    assert user_level() == 1


def test_without_a_line_of_the_users_the_warning_is_where_it_is() -> None:
    program = (
        "import sys, warnings, mtf.call_site as c\n"
        "code = compile('seen.append(c.user_level())', c.__file__, 'exec')\n"
        "seen = []\n"
        "import threading\n"
        "t = threading.Thread(target=eval, args=(code, {'seen': seen, 'c': c})); t.start(); t.join()\n"
        "print(seen)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1]"
