"""What a notebook shows of a run: bars in one place that is empty in the end, lines, and no traceback of a stop."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from trainer_tools import config, loader, trainer

import mtf
from mtf.trainer.reporting.notebook_bar import NotebookBar


class Cell:
    """Stands for IPython in a kernel: the places below a cell, each with all that was shown in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[list[dict[str, str]]] = []
        self.shell = type("ZMQInteractiveShell", (), {"execution_count": 1})()
        modules: dict[str, Any] = {
            name: types.ModuleType(name) for name in ("IPython", "IPython.core.getipython", "IPython.display")
        }
        modules["IPython"].get_ipython = modules["IPython.core.getipython"].get_ipython = lambda: self.shell
        modules["IPython.display"].display = self.display
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    def display(self, content: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        place = [content]
        self.places.append(place)
        return types.SimpleNamespace(update=lambda content, raw: place.append(content))


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.setattr(NotebookBar, "_place", (None, None))
    return Cell(monkeypatch)


def fit(max_epochs: int, **settings: Any) -> mtf.Trainer:
    shown = mtf.LoggingConfig(logger_type="none", log_scalars_every_n_steps=1)
    run = trainer(config(["a"], logging=shown), **settings)
    run.fit([loader(16, 1)], {"v": loader(8, 2)}, max_epochs=max_epochs)
    return run


def test_bars_share_one_place_which_is_empty_in_the_end(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(max_epochs=2)
    (place,) = cell.places
    assert place[-1] == {"text/plain": "", "text/html": ""}
    texts = [content["text/plain"] for content in place]
    assert "epoch 0: batch 0/4" in texts
    assert any(text.startswith("epoch 1: batch 0/4 ") and "val/loss=" in text for text in texts)
    assert any(text.startswith("validation v: batch") for text in texts)
    assert any("<progress value='0' max='4'></progress> epoch 0" in content["text/html"] for content in place)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line.split()[0] for line in printed.out.splitlines()] == ["validation", "validation", "update"]
    cell.shell.execution_count = 2
    run.fit([loader(16, 1)], {"v": loader(8, 2)}, max_epochs=3)
    assert len(cell.places) == 2  # below the next cell
    assert cell.places[1][-1] == place[-1]


def test_nothing_is_left_of_a_bar_when_a_step_raises(cell: Cell) -> None:
    class Fails(mtf.TrainerHooks):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(max_epochs=1, hooks=[Fails()])
    assert cell.places[0][-1]["text/html"] == ""


def test_names_are_text(cell: Cell) -> None:
    bar = NotebookBar("validation <b>", None, 3)
    assert cell.places[0][-1]["text/html"] == "<progress></progress> validation &lt;b&gt;: batch 3"
    bar.close()
    bar.close()
    assert cell.places[0][-1]["text/html"] == ""


def test_the_stop_button_shows_one_line(tmp_path: Path) -> None:
    class Button(mtf.TrainerHooks):
        def on_train_batch_end(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    saving = mtf.CheckpointConfig(root_dir=str(tmp_path))
    run = trainer(config(["a"], logging=mtf.LoggingConfig(logger_type="none"), checkpoint=saving), hooks=[Button()])
    with pytest.raises(KeyboardInterrupt) as raised:
        run.fit([loader(16, 1)], max_epochs=1)
    path = tmp_path / "step-00000001"
    render: Any = raised.value
    assert render._render_traceback_() == [f"KeyboardInterrupt: stopped by Ctrl-C, saved to {path}"]


def test_pictures_are_shown_without_pyplot() -> None:
    pytest.importorskip("matplotlib")
    figure: Any = mtf.Schedule(mtf.MultiDataLoaderConfig(dataloader_names=["a", "b"]), lengths=[6, 2]).plan().plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
