"""Averaged weights: as computed by hand, validated with, resumed exactly, and never in a checkpoint's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_tools import config, loader, model, same_weights, trainer

import mtf
from mtf import checkpoint


class History(mtf.TrainerHooks):
    """Weights after each update."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
        self.weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize(("every", "start"), [(1, 0), (2, 3)])
def test_averages_are_those_computed_by_hand(kind: Any, every: int, start: int) -> None:
    history, averaged = History(), mtf.AveragedWeights(kind, 0.9, every, start)
    run = trainer(hooks=[history, averaged])
    run.fit([loader(40, 1)], max_steps=9)
    expected = {name: p.detach().clone() for name, p in model().named_parameters()}
    num = 0
    for update, weights in enumerate(history.weights):
        if update < start:
            expected = weights
        elif update % every == 0:
            num += 1
            share = 0.1 if kind == "ema" else 1 / num
            expected = {name: (1 - share) * expected[name] + share * weights[name] for name in weights}
    found = averaged.export(run.model)
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert not same_weights(found, run.model)


def test_it_validates_with_the_averages_and_saves_the_trained_weights(tmp_path: Path) -> None:
    settings = config(checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_epochs=1))
    averaged = mtf.AveragedWeights(decay=0.5)
    run = trainer(settings, hooks=[averaged])
    run.fit([loader(16, 1)], [loader(8, 2)], max_epochs=2)
    plain = trainer()
    plain.fit([loader(16, 1)], max_epochs=2)
    assert same_weights(run.model, plain.model), "averaging changes nothing in training"
    saved = next(path for path in sorted(tmp_path.iterdir(), reverse=True) if (path / "manifest.json").is_file())
    assert same_weights(checkpoint.read(saved).model, plain.model)
    plain.model.load_state_dict(averaged.export(run.model))
    assert plain.validate([loader(8, 2)])["val/loss"] == run.metrics["val/loss"]


def test_a_resumed_run_continues_the_averages_exactly() -> None:
    def made() -> mtf.Trainer:
        return trainer(hooks=[mtf.AveragedWeights("swa", start=2)])

    whole, part, fresh = made(), made(), made()
    whole.fit([loader(40, 1)], max_steps=9)
    part.fit([loader(40, 1)], max_steps=4)
    fresh.load_state(part.get_state())
    fresh.fit([loader(40, 1)], max_steps=9)
    assert fresh.get_state().diff(whole.get_state()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "x"}, "kind"),
        ({"decay": 1.0}, "decay"),
        ({"every_n_updates": 0}, "every_n_updates"),
        ({"start": -1}, "start"),
    ],
)
def test_arguments_are_checked(arguments: Any, words: str) -> None:
    with pytest.raises(mtf.ConfigError, match=words):
        mtf.AveragedWeights(**arguments)


class Tied(torch.nn.Module):
    """A parameter with two names, as input and output embeddings have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.last = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.second(self.first(x)))


def test_a_shared_parameter_has_its_average_under_each_name() -> None:
    averaged, tied = mtf.AveragedWeights(decay=0.5), Tied()

    def step(trainer: Any, batch: Any, *_: Any) -> torch.Tensor:
        return torch.nn.functional.mse_loss(trainer.model(batch[0]), batch[1])

    data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.randn(16, 1))
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    run = mtf.Trainer(config(), tied, optimizer, training_step=step, hooks=averaged)
    run.fit(torch.utils.data.DataLoader(data, batch_size=4), max_epochs=1)
    exported = averaged.export(tied)
    assert torch.equal(exported["second.weight"], exported["first.weight"])
    assert not torch.equal(exported["first.weight"], tied.first.weight)
    fresh = Tied()
    fresh.load_state_dict(exported)
    assert torch.equal(fresh.first.weight, exported["first.weight"])


def test_an_export_for_another_model_or_before_training_is_refused() -> None:
    averaged = mtf.AveragedWeights()
    with pytest.raises(mtf.UsageError, match="no averages before the first fit"):
        averaged.export(model())
    run = trainer(hooks=[averaged])
    run.fit([loader(16, 1)], max_epochs=1)
    with pytest.raises(mtf.ConfigError, match="give it the trained model, or another of its class"):
        averaged.export(torch.nn.Linear(3, 7))
