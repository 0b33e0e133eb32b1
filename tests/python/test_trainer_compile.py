"""``compile_model`` on the CPU: in place, the same results, the same names in states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import config, loader, model, step, trainer

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
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs are captured but not lowered to C++, which would take a compiler and half a minute."""
    seen: list[str] = []
    real = nn.Module.compile

    def compile(self: nn.Module, *args: Any, **options: Any) -> None:
        seen.append(type(self).__name__)
        real(self, *args, **{**options, "backend": "eager"})

    monkeypatch.setattr(nn.Module, "compile", compile)
    torch._dynamo.reset()
    return seen


def test_a_compiled_model_is_the_same_run_and_its_checkpoints_load_anywhere(
    eager_backend: list[str], tmp_path: Path
) -> None:
    plain = run(False, 6)
    compiled = run(True, 6)
    assert eager_backend == ["Sequential"]
    assert compiled.get_state().diff(plain.get_state()) == []
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    run(True, 3, path=tmp_path / "compiled")
    with pytest.warns(UserWarning, match="was saved with compile_model=True, here it is False"):
        resumed = run(False, 6, load=tmp_path / "compiled")
    assert resumed.get_state().diff(plain.get_state()) == []


def test_a_step_compiled_by_the_user_works(eager_backend: list[str]) -> None:
    net = model()
    forward = torch.compile(net, backend="eager")

    def compiled_step(trainer: Any, batch: Any, *_: Any) -> Any:
        return nn.functional.mse_loss(forward(batch[0]), batch[1])

    found = trainer(model=net, training_step=compiled_step)
    found.fit(loader(16, 1))
    plain = trainer(model=model(), training_step=step)
    plain.fit(loader(16, 1))
    assert found.get_state() == plain.get_state()
