"""Models as users build them: frozen parts, several in one, parameters of no optimizer, compiled, deterministic."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_tools as tools
from torch import Tensor, nn

import mtf

DICT_NAMES = ["one", "two"]


class NoForward(nn.Module):
    """Parts that the training step calls one by one, as the guide's models of several domains."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tools.model(1)
        self.head = nn.Linear(1, 1)


def compiled_in(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if module._compiled_call_impl is not None]


def sum_of_parts(trainer: Any, batch: Any, *_: Any) -> Tensor:
    x, y = batch
    loss: Tensor = ((sum(part(x) for part in trainer.model.values()) - y) ** 2).mean()
    return loss


def test_a_module_without_forward_has_its_parts_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    tools.compile_eagerly(monkeypatch)
    performance = mtf.PerformanceConfig(compile_model=True)
    one, two = tools.model(1), tools.model(2)
    nets = nn.ModuleDict({"one": one, "two": nn.ModuleList([two])})
    tools.trainer(tools.config(performance=performance), model=nets)
    assert compiled_in(nets) == [one, two]
    parts = NoForward()
    tools.trainer(tools.config(performance=performance), model=parts)
    assert compiled_in(parts) == [parts.encoder, parts.head]


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_a_compiled_model_goes_on_exactly_and_keeps_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_graphs = tools.compile_eagerly(monkeypatch)

    def make() -> mtf.Trainer:
        return tools.trainer(
            tools.config(performance=mtf.PerformanceConfig(compile_model=True)), model=tools.model(dropout=0.3)
        )

    def loaders() -> list[Any]:
        return [tools.loader(8, 1, shuffle=True), tools.loader(8, 2)]

    whole = make()
    whole.fit(loaders(), [tools.loader(4, 3)], max_epochs=2)
    assert num_graphs() > 0
    assert list(whole.model.state_dict()) == list(tools.model().state_dict())
    first = make()
    first.fit(loaders(), [tools.loader(4, 3)], max_steps=3)
    first.save_checkpoint(str(tmp_path / "c"))
    second = make()
    second.fit(loaders(), [tools.loader(4, 3)], max_epochs=2, resume_from=str(tmp_path / "c"))
    assert second.get_state().diff(whole.get_state()) == []


def test_deterministic_algorithms_give_the_same_run_in_parts() -> None:
    def make() -> mtf.Trainer:
        return tools.trainer(tools.config(performance=mtf.PerformanceConfig(deterministic=True)))

    whole, parts = make(), make()
    whole.fit([tools.loader(12, 1)], max_steps=5)
    for max_steps in (2, 5):
        parts.fit([tools.loader(12, 1)], max_steps=max_steps)
    assert parts.get_state().diff(whole.get_state()) == []
    assert not torch.are_deterministic_algorithms_enabled()


def test_frozen_parts_stay_as_they_are_and_unfrozen_ones_start_to_move() -> None:
    nets = nn.ModuleDict({name: tools.model(i) for i, name in enumerate(DICT_NAMES)})
    nets["two"].requires_grad_(False)
    before = {name: value.clone() for name, value in nets["two"].state_dict().items()}

    class Unfreeze(mtf.TrainerHooks):
        def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
            if epoch == 1:
                assert tools.same_weights(before, nets["two"])
                nets["two"].requires_grad_(True)

    optimizers = [torch.optim.Adam(nets[name].parameters(), lr=0.1) for name in DICT_NAMES]
    run = tools.trainer(model=nets, optimizers=optimizers, training_step=sum_of_parts, hooks=[Unfreeze()])
    run.fit([tools.loader(8, 1)], max_epochs=1)
    assert not optimizers[1].state, "an optimizer without gradients doesn't step"
    run.fit([tools.loader(8, 1)], max_epochs=2)
    assert not tools.same_weights(before, nets["two"])


@pytest.mark.parametrize("name", DICT_NAMES)
def test_several_models_go_on_exactly_with_an_optimizer_each(name: str) -> None:
    def make() -> mtf.Trainer:
        nets = nn.ModuleDict({name: tools.model(i, dropout=0.2) for i, name in enumerate(DICT_NAMES)})
        nets[name].eval()
        optimizers = [torch.optim.Adam(nets[key].parameters(), lr=0.01) for key in DICT_NAMES]
        settings = tools.config(
            ["a", "b"], per_loader_optimizers={"a": {"optimizer_idx": 0}, "b": {"optimizer_idx": [0, 1]}}
        )
        return tools.trainer(settings, model=nets, optimizers=optimizers, training_step=sum_of_parts)

    def loaders() -> dict[str, Any]:
        return {"a": tools.loader(12, 1, shuffle=True), "b": tools.loader(12, 2)}

    whole = make()
    whole.fit(loaders(), [tools.loader(4, 3)], max_epochs=2)
    assert not whole.model.get_submodule(name).training
    first, second = make(), make()
    first.fit(loaders(), [tools.loader(4, 3)], max_steps=4)
    second.load_state(first.get_state())
    second.fit(loaders(), [tools.loader(4, 3)], max_epochs=2)
    assert second.get_state().diff(whole.get_state()) == []


def test_parameters_of_no_optimizer_are_named_and_never_change() -> None:
    net = tools.model()
    first = next(net.parameters())
    before = first.detach().clone()
    with pytest.warns(UserWarning, match=r"belong to no optimizer, so they never change: 0\.weight, 0\.bias"):
        run = tools.trainer(model=net, optimizers=torch.optim.SGD(list(net.parameters())[2:], lr=0.1))
    run.fit([tools.loader(8, 1)], max_epochs=1)
    assert torch.equal(first, before)
    assert first.grad is None


def test_parameters_outside_of_the_model_are_pointed_out() -> None:
    net, balance = tools.model(), nn.Parameter(torch.zeros(2))
    with pytest.warns(UserWarning, match=r"optimizers\[0\] has 1 parameters that aren't in the model"):
        tools.trainer(model=net, optimizers=torch.optim.SGD([*net.parameters(), balance], lr=0.1))


def test_two_trainers_take_turns_without_a_trace_of_each_other() -> None:
    def make(seed: int) -> mtf.Trainer:
        return tools.trainer(tools.config(seed=seed), model=tools.model(seed, dropout=0.3))

    def loaders() -> list[Any]:
        return [tools.loader(12, 1, shuffle=True), mtf.ArrayLoader(tools.rows(9, 2), batch_size=4, shuffle=True)]

    alone = [make(seed) for seed in (1, 2)]
    for run in alone:
        run.fit(loaders(), max_steps=9)
    turns, given = [make(seed) for seed in (1, 2)], [loaders(), loaders()]
    for max_steps in (2, 5, 9):
        for run, own in zip(turns, given, strict=True):
            run.fit(own, max_steps=max_steps)
    for one, other in zip(turns, alone, strict=True):
        assert one.get_state().diff(other.get_state()) == []


def test_a_signal_after_the_last_update_is_not_swallowed(tmp_path: Path) -> None:
    class AtTheEnd(mtf.TrainerHooks):
        def on_train_end(self, trainer: mtf.Trainer) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    settings = tools.config(checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path)))
    run = tools.trainer(settings, hooks=[AtTheEnd()])
    with pytest.raises(mtf.Preempted) as left:
        run.fit([tools.loader(8, 1)], max_epochs=1)
    assert left.value.checkpoint is not None
    fresh = tools.trainer(settings)
    with pytest.warns(UserWarning, match="nothing to do"):
        fresh.fit([tools.loader(8, 1)], max_epochs=1, resume_from="latest")
    assert fresh.get_state().diff(run.get_state()) == []
