"""What is refused between a state and a trainer, and what may be asked for where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trainer_tools import config, loader, model, trainer

import mtf


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
    ],
)
def test_other_parts_are_refused_by_name(saved: Any, here: Any, message: str) -> None:
    state = state_of(**saved())
    fresh = trainer(**here())
    before = fresh.get_state()
    with pytest.raises(mtf.StateMismatch, match=message):
        fresh.load_state(state)
    assert fresh.get_state() == before


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
