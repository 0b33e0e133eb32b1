"""Decisions, saves and resumes of a run that has no trainer."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import mtf
from mtf.distributed.ranks import SingleRank
from mtf.errors import UsageError
from mtf.trainer.checkpointing import Checkpointer, Decision, Resumed
from mtf.trainer.preemption import Preempted, PreemptionGuard
from mtf.trainer.state.registry import StateRegistry
from mtf.trainer.state.run_state import RunField, RunState


class Value:
    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, state: Any) -> None:
        self.value = state


class Run:
    """A loop of one's own: a position, a weight, a checkpointer."""

    def __init__(self, root: Path, refuses: bool = False, **settings: Any) -> None:
        self.state = RunState(epoch_is_open=True)
        self.model = Value({"weight": torch.zeros(2)})
        self.saved: list[str] = []
        self.loaded: list[str] = []
        ranks = SingleRank()
        registry = StateRegistry(ranks)
        for name in ("global_step", "epoch", "epoch_is_open"):
            registry.register(name, RunField(self.state, name))
        registry.register("model", self.model)
        registry.register("multi", Value(None))

        def before_save() -> None:
            if refuses:
                raise UsageError("not now")

        self.checkpointer = Checkpointer(
            mtf.TrainerConfig(checkpoint=mtf.CheckpointConfig(root_dir=str(root), **settings)),
            ranks,
            registry,
            self.state,
            loggers=Value({}),
            before_save=before_save,
            describe_data=dict,
            on_saved=self.saved.append,
            on_loaded=self.loaded.append,
        )
        self.checkpointer.guard = PreemptionGuard()

    def update(self) -> Decision:
        self.state.global_step += 1
        self.model.value = {"weight": self.model.value["weight"] + 1}
        return self.checkpointer.at_update()


def test_updates_and_epochs_decide(tmp_path: Path) -> None:
    run = Run(tmp_path, save_every_n_steps=2, save_every_n_epochs=1)
    assert [run.update().save for _ in range(4)] == [False, True, False, True]
    run.update()
    run.state.epoch, run.state.epoch_is_open = 1, False
    assert run.checkpointer.at_update() == Decision(save=True)


def test_the_end_decides_once_unless_a_hook_may_have_changed_something(tmp_path: Path) -> None:
    run = Run(tmp_path, save_at_end=True)
    run.update()
    assert run.checkpointer.at_train_end(may_have_changed=False).save
    assert not run.checkpointer.at_exit().save
    for may_have_changed, num_saved in ((False, 1), (False, 1), (True, 2)):
        run.checkpointer.at_train_end(may_have_changed=may_have_changed)
        run.checkpointer.save(required=False)
        assert len(run.saved) == num_saved


def test_what_was_saved_is_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path, save_every_n_steps=2)
    run.update()
    run.update()
    path = run.checkpointer.save()
    assert run.saved == [str(path)]
    run.checkpointer.close()
    fresh = Run(tmp_path, save_every_n_steps=2)
    assert fresh.checkpointer.resume("latest", is_new=True) == Resumed(path, 2, 0)
    assert fresh.loaded == [str(path)]
    assert torch.equal(fresh.model.value["weight"], torch.full((2,), 2.0))
    fresh.checkpointer.close()
    assert Run(tmp_path / "elsewhere").checkpointer.resume(None, is_new=True) is None


def test_a_deferred_save_comes_once_and_an_error_drops_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = str(tmp_path / "asked")
    run.checkpointer.defer_save(path)
    run.checkpointer.defer_save(path)
    assert run.saved == []
    run.checkpointer.save_deferred()
    run.checkpointer.save_deferred()
    assert run.saved == [path]
    run.checkpointer.defer_save(path)
    run.checkpointer.drop_deferred()
    run.checkpointer.save_deferred()
    assert run.saved == [path]


def test_a_signal_saves_and_exits(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.update() == Decision(save=False)
    assert run.checkpointer.guard is not None
    run.checkpointer.guard.request(signal.SIGTERM)
    assert run.update() == Decision(save=False, exit=True)
    assert run.checkpointer.is_exit_requested()
    with pytest.raises(Preempted):
        run.checkpointer.save_and_exit()
    assert len(run.saved) == 1
    with pytest.raises(Preempted):
        run.checkpointer.exit_if_requested()
    assert len(run.saved) == 1, "this position is saved already"


def test_nothing_is_saved_where_a_part_refuses(tmp_path: Path) -> None:
    run = Run(tmp_path, refuses=True)
    with pytest.raises(UsageError, match="not now"):
        run.checkpointer.save()
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_was_replaced_is_refused() -> None:
    model = torch.nn.Linear(1, 1)
    trainer = mtf.Trainer(mtf.TrainerConfig(), model, training_step=lambda *_: None)
    trainer.config = mtf.TrainerConfig()
    with pytest.raises(UsageError, match=r"trainer\.config was replaced"):
        trainer.fit([[torch.zeros(1)]])
