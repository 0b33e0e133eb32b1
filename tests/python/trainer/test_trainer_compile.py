"""``compile_model`` on the CPU: in place, the same results, the same names in states."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import compile_eagerly, config, loader, model, step, trainer

import mtf

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def run(is_compiled: bool, steps: int, path: Path | None = None, load: Path | None = None) -> mtf.Trainer:
    found = trainer(config(["a", "b"], performance=mtf.PerformanceConfig(compile_model=is_compiled)), model=model())
    if load is not None:
        found.load_checkpoint(str(load))
    found.fit([loader(16, 1), loader(16, 2)], [loader(8, 3)], max_steps=steps)
    if path is not None:
        found.save_checkpoint(str(path))
    return found


@pytest.fixture
def num_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    return compile_eagerly(monkeypatch)


class Own(nn.Module):
    """A model with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


@pytest.mark.parametrize("make", [model, Own, lambda: nn.Linear(3, 1)], ids=["Sequential", "own", "Linear"])
def test_torch_captures_a_graph_of_any_model(num_graphs: Callable[[], int], make: Callable[[], nn.Module]) -> None:
    """``Module.compile`` captures nothing of modules whose forward is torch's, a Sequential for instance."""
    net = make()
    found = trainer(config(performance=mtf.PerformanceConfig(compile_model=True)), model=net)
    found.fit(loader(8, 1))
    assert num_graphs() > 0
    assert copy.deepcopy(net)._compiled_call_impl is None


def test_a_compiled_model_is_the_same_run_and_its_checkpoints_load_anywhere(
    num_graphs: Callable[[], int], tmp_path: Path
) -> None:
    plain = run(False, 6)
    compiled = run(True, 6)
    assert num_graphs() > 0
    assert compiled.get_state().diff(plain.get_state()) == []
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    run(True, 3, path=tmp_path / "compiled")
    with pytest.warns(UserWarning, match="was saved with compile_model=True, here it is False"):
        resumed = run(False, 6, load=tmp_path / "compiled")
    assert resumed.get_state().diff(plain.get_state()) == []


def test_a_step_compiled_by_the_user_works(num_graphs: Callable[[], int]) -> None:
    net = model()
    forward = torch.compile(net, backend="eager")

    def compiled_step(trainer: Any, batch: Any, *_: Any) -> Any:
        return nn.functional.mse_loss(forward(batch[0]), batch[1])

    found = trainer(model=net, training_step=compiled_step)
    found.fit(loader(16, 1))
    plain = trainer(model=model(), training_step=step)
    plain.fit(loader(16, 1))
    assert found.get_state() == plain.get_state()
