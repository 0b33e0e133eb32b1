"""What is refused between a state and a trainer, and what may be asked for where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_tools import config, loader, model, trainer

import mtf
from mtf import checkpoint


def state_of(**arguments: Any) -> mtf.TrainerState:
    run = trainer(**arguments)
    run.fit([loader(8, 1), loader(8, 2)], max_steps=2)
    return run.get_state()


def groups(num: int) -> Any:
    net = model()
    parameters = list(net.parameters())
    return {
        "model": net,
        "optimizers": torch.optim.SGD([{"params": parameters[:num]}, {"params": parameters[num:]}], 0.1),
    }


def in_order(order: list[int]) -> Any:
    net = model()
    parameters = list(net.parameters())
    return {"model": net, "optimizers": torch.optim.SGD([parameters[i] for i in order], 0.1)}


def with_rate(kind: Any, **options: Any) -> Any:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return {"model": net, "optimizers": optimizer, "schedulers": [kind(optimizer, **options)]}


@pytest.mark.parametrize(
    ("saved", "here", "message"),
    [
        (lambda: groups(2), lambda: groups(1), r"optimizers\[0\]: groups of \[1, 3\] parameters here, \[2, 2\]"),
        (dict, lambda: with_rate(torch.optim.lr_scheduler.StepLR, step_size=1), "schedulers: 1 here, 0 in the state"),
        (
            dict,
            lambda: {"settings": config(per_loader_schedulers={"dl0": _rate()})},
            r"per_loader_schedulers: \['dl0'\] here, \[\] in the state",
        ),
        (
            lambda: in_order([0, 1, 2, 3]),
            lambda: in_order([0, 3, 2, 1]),
            r"optimizers\[0\]: its parameter 1 is '3.bias' here, '0.bias' in the state \(and 1 more differ\)",
        ),
        (
            lambda: with_rate(torch.optim.lr_scheduler.StepLR, step_size=1),
            lambda: with_rate(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=5),
            r"schedulers\[0\]: CosineAnnealingLR per epoch here, StepLR per epoch in the state",
        ),
        (
            dict,
            lambda: {"model": model().double()},
            "model: '0.weight' has dtype torch.float64, in the state torch.float32",
        ),
        (lambda: settings(seed=3), lambda: settings(seed=4), "seed: 4 here, 3 in the state"),
        (dict, lambda: settings(step_rng="saved"), "step_rng: saved here, derived in the state"),
    ],
)
def test_other_parts_are_refused_by_name(saved: Any, here: Any, message: str) -> None:
    state = state_of(**saved())
    fresh = trainer(**here())
    before = fresh.get_state()
    with pytest.raises(mtf.StateMismatch, match=message):
        fresh.load_state(state)
    assert fresh.get_state() == before


def settings(**given: Any) -> Any:
    """The mixture has a seed of its own."""
    return {"settings": config(multi=mtf.MultiDataLoaderConfig(seed=1), **given)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"performance": mtf.PerformanceConfig(precision="bf16")}, "performance.precision=fp32, here it is bf16"),
        (
            {"performance": mtf.PerformanceConfig(gradient_accumulation_steps=2)},
            "performance.gradient_accumulation_steps=1, here it is 2",
        ),
        ({"performance": mtf.PerformanceConfig(clip_grad_norm=1.0)}, "performance.clip_grad_norm=None, here it is 1.0"),
        (
            {"per_loader_optimizers": {"dl0": {"lr_scale": 0.5}}},
            r"per_loader_optimizers.lr_scale={}, here it is {'dl0': 0.5}",
        ),
        ({"loss_weights_per_loader": {"dl0": 2.0}}, r"loss_weights_per_loader={}, here it is {'dl0': 2.0}"),
    ],
)
def test_a_setting_changed_on_the_way_is_pointed_out(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    run = trainer()
    run.fit([loader(8, 1), loader(8, 2)], max_steps=2)
    run.save_checkpoint(str(tmp_path / "c"))
    with pytest.warns(UserWarning, match=words):
        trainer(config(**change)).load_checkpoint(str(tmp_path / "c"))


@pytest.mark.parametrize("tree", [[1], {"trainer": {}}, {"mine": 1}])
def test_a_checkpoint_that_no_trainer_saved_is_refused(tmp_path: Path, tree: Any) -> None:
    checkpoint.write(tmp_path / "c", model={}, state_tree=tree, schedule=b"", manifest={"step": 1})
    with pytest.raises(mtf.StateMismatch, match="no Trainer saved it"):
        trainer().load_checkpoint(str(tmp_path / "c"))


def _rate() -> Any:
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model().parameters(), lr=0.1), 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"burst_size": 2}, "burst_size"),
        ({"sampling_strategy": "SEQUENTIAL"}, "sampling_strategy"),
        ({"epoch_length_policy": "MAX_LENGTH"}, "epoch_length_policy"),
        ({"seed": 5}, "seed"),
    ],
)
def test_another_mixture_is_refused_by_its_field(change: dict[str, Any], word: str) -> None:
    state = state_of()
    fresh = trainer(config(multi=mtf.MultiDataLoaderConfig.from_dict(change)))
    fresh.load_state(state)
    with pytest.raises(mtf.StateMismatch, match=word):
        fresh.fit([loader(8, 1), loader(8, 2)], max_steps=3)


def two_optimizers(names: str = "ab", net: Any = None, used: Any = 0, **settings: Any) -> mtf.Trainer:
    """The first loader steps one of two optimizers, the second steps both."""
    net = net or model()
    parameters = list(net.parameters())
    return trainer(
        config(list(names), per_loader_optimizers={names[0]: {"optimizer_idx": used}}, **settings),
        model=net,
        optimizers=[torch.optim.SGD(parameters[:2], lr=0.1), torch.optim.SGD(parameters[2:], lr=0.1)],
    )


@pytest.mark.parametrize(
    ("here", "loaders", "message"),
    [
        ({"names": "ac"}, {"a": 12, "c": 8}, "the state has a source 'b', but here are only"),
        ({}, {"a": 16, "b": 8}, "length of 'a': 3 in the state, 4 here"),
        ({}, {"a": (6, 2), "b": 8}, "source 'a' has global batches of 2 samples here .* 4 in the state"),
        ({"seed": 1}, {"a": 12, "b": 8}, "seed: 1 here, 0 in the state"),
        ({"used": 1}, {"a": 12, "b": 8}, r"per_loader_optimizers: {'a': \[1\]} here, {'a': \[0\]} in the state"),
        (
            {"net": torch.nn.Sequential(*model(), torch.nn.Linear(1, 1))},
            {"a": 12, "b": 8},
            "the state has no '4.weight'",
        ),
        (
            {"multi": mtf.MultiDataLoaderConfig(dataloader_names=["a", "b"], burst_size=2)},
            {"a": 12, "b": 8},
            "burst_size",
        ),
    ],
    ids=["names", "lengths", "batch size", "seed", "optimizer map", "model", "mixture"],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    tmp_path: Path, here: dict[str, Any], loaders: dict[str, Any], message: str
) -> None:
    run = two_optimizers()
    run.fit({"a": loader(12, 1), "b": loader(8, 2)}, max_steps=3)
    run.save_checkpoint(str(tmp_path / "saved"))
    fresh = two_optimizers(**here)
    before = fresh.get_state()
    given = {
        name: loader(rows, 1) if isinstance(rows, int) else loader(rows[0], 1, rows[1])
        for name, rows in loaders.items()
    }
    with pytest.raises(mtf.StateMismatch, match=message):
        fresh.fit(given, max_steps=5, resume_from=str(tmp_path / "saved"))
    assert fresh.get_state().diff(before) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.load_checkpoint("x"), "load_checkpoint was called inside fit"),
        (lambda run: run.load_state(None), "load_state was called inside fit"),
        (lambda run: run.fit(loader(8, 1)), "fit was called inside fit"),
        (lambda run: run.get_state(), "get_state was called inside a window"),
    ],
)
def test_what_a_step_may_not_ask_for(call: Any, message: str) -> None:
    class Ask(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            call(trainer)

    with pytest.raises(mtf.ConfigError, match=message):
        trainer(hooks=[Ask()]).fit(loader(8, 1))


def test_a_stop_asked_for_inside_a_window_and_at_epoch_ends() -> None:
    for event, expected in (("on_train_batch_end", 2), ("on_epoch_end", 6), ("on_validation_end", 6)):

        class Stop(mtf.TrainerHooks):
            pass

        setattr(Stop, event, lambda self, run, *_: run.request_stop("enough"))
        run = trainer(
            config(performance=mtf.PerformanceConfig(gradient_accumulation_steps=2)),
            hooks=[Stop()],
        )
        run.fit(loader(24, 1), loader(8, 2), max_epochs=3)
        assert run.num_batches == expected


def test_validation_inside_a_hook_changes_nothing() -> None:
    class Look(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            assert trainer.model.training
            trainer.validate(loader(8, 5))
            assert trainer.model.training

    plain, looking = trainer(), trainer(hooks=[Look()])
    for run in (plain, looking):
        run.fit(loader(24, 1, shuffle=True))
    for one, other in zip(plain.model.parameters(), looking.model.parameters(), strict=True):
        assert torch.equal(one, other)
