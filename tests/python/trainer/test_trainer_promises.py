"""What hooks and scripts change is kept, named or refused: never taken without a word."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import config, loader, model, same_weights, step, trainer

import mtf
from mtf import checkpoint


class Averaged(mtf.TrainerHooks):
    """Swaps other weights in for each validation."""

    def on_validation_start(self, trainer: mtf.Trainer) -> None:
        self.kept = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.model.load_state_dict({name: torch.zeros_like(value) for name, value in self.kept.items()})

    def on_validation_end(self, trainer: mtf.Trainer, metrics: Any) -> None:
        assert metrics["val/loss"] != 0.0, "a metric may be read in any case"
        trainer.model.load_state_dict(self.kept)


class Leaves(mtf.TrainerHooks):
    def __init__(self, way: str) -> None:
        self.way = way

    def on_validation_batch_end(self, trainer: mtf.Trainer, *_: Any) -> None:
        if self.way == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.way == "error":
            raise KeyError("in a validation")


@pytest.mark.parametrize("way", ["signal", "error", "last hook"])
def test_weights_swapped_in_for_a_validation_never_stay(tmp_path: Path, way: str) -> None:
    class Last(mtf.TrainerHooks):
        def on_validation_end(self, trainer: mtf.Trainer, metrics: Any) -> None:
            if way == "last hook":
                raise KeyError("in the end of a validation")

    settings = config(checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path)))
    run = trainer(settings, hooks=[Last(), Averaged(), Leaves(way)])
    error = mtf.Preempted if way == "signal" else KeyError
    with pytest.raises(error) as caught:
        run.fit([loader(8, 1)], [loader(8, 2)])
    plain = trainer()
    plain.fit([loader(8, 1)], max_epochs=1)
    assert same_weights(run.model, plain.model)
    if way == "signal":
        saved = checkpoint.read(caught.value.checkpoint)  # type: ignore[attr-defined]
        assert same_weights(saved.model, plain.model)


class Unfreezes(mtf.TrainerHooks):
    def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
        if epoch == 1:
            trainer.model[0].requires_grad_(True)  # type: ignore[index]


def frozen() -> mtf.Trainer:
    net = model()
    net[0].requires_grad_(False)
    return trainer(model=net, hooks=[Unfreezes()])


def test_what_a_hook_has_unfrozen_stays_so_over_a_resume() -> None:
    whole, part, fresh = frozen(), frozen(), frozen()
    whole.fit([loader(16, 1)], max_epochs=2)
    part.fit([loader(16, 1)], max_steps=6)  # inside epoch 1
    fresh.load_state(part.get_state())
    assert all(p.requires_grad for p in fresh.model.parameters())
    fresh.fit([loader(16, 1)], max_epochs=2)
    assert fresh.get_state().diff(whole.get_state()) == []


class Freezes(mtf.TrainerHooks):
    """Freezes the statistics of a batch normalisation, and switches a dropout off."""

    def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
        if epoch == 1:
            trainer.model[1].eval()  # type: ignore[index]
            trainer.model[2][0].eval()  # type: ignore[index]


def normalised() -> mtf.Trainer:
    torch.manual_seed(0)
    dropouts = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.1))
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), dropouts, torch.nn.Linear(5, 1))
    return trainer(model=net, hooks=[Freezes()])


@pytest.mark.parametrize("validates", [False, True])
def test_modules_that_a_hook_has_put_into_eval_mode_stay_so_over_a_resume(validates: bool) -> None:
    val = [loader(8, 2)] if validates else None
    whole, part, fresh = normalised(), normalised(), normalised()
    whole.fit([loader(16, 1)], val, max_epochs=2)
    part.fit([loader(16, 1)], val, max_steps=6)  # inside epoch 1
    fresh.load_state(part.get_state())
    modes = [module.training for module in fresh.model.modules()]
    assert modes == [True, True, False, True, False, True, True]
    fresh.fit([loader(16, 1)], val, max_epochs=2)
    assert fresh.get_state().diff(whole.get_state()) == []


def test_a_model_in_eval_mode_says_nothing_about_training_and_a_wrong_entry_is_named() -> None:
    run = normalised()
    run.model.eval()
    assert run.get_state().tree["eval_modules"] == []
    run.load_state(normalised().get_state())
    assert not any(module.training for module in run.model.modules())
    state = run.get_state()
    state.tree["eval_modules"] = [3]
    with pytest.raises(mtf.StateMismatch, match=r"eval_modules: it is malformed: \[3\]"):
        run.load_state(state)


class AddsGroup(mtf.TrainerHooks):
    def on_epoch_start(self, trainer: mtf.Trainer, epoch: int) -> None:
        if epoch == 1:
            trainer.optimizers[0].add_param_group({"params": list(trainer.model[3].parameters()), "lr": 0.01})  # type: ignore[index]


def half() -> mtf.Trainer:
    net = model()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="belong to no optimizer"):
        return trainer(model=net, optimizers=optimizer, hooks=[AddsGroup()])


def test_a_group_that_a_hook_added_can_be_resumed() -> None:
    whole, part, fresh = half(), half(), half()
    whole.fit([loader(16, 1)], max_epochs=2)
    part.fit([loader(16, 1)], max_steps=6)
    fresh.load_state(part.get_state())
    fresh.fit([loader(16, 1)], max_epochs=2)
    assert fresh.get_state().diff(whole.get_state()) == []


def test_a_state_of_other_groups_is_refused_still() -> None:
    part, other = half(), trainer()
    part.fit([loader(16, 1)], max_steps=6)
    with pytest.raises(mtf.StateMismatch, match=r"groups of \[4\] parameters here, \[2, 2\] in the state"):
        other.load_state(part.get_state())


def rated(lr: float, decay: float, source: str = "saved") -> mtf.Trainer:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
    fault_tolerance = mtf.FaultToleranceConfig(optimizer_settings=source)  # type: ignore[arg-type]
    return trainer(
        config(fault_tolerance=fault_tolerance),
        model=net,
        optimizers=optimizer,
        schedulers={"scheduler": scheduler, "interval": "step"},
    )


def test_other_rates_of_the_script_are_named_or_taken() -> None:
    run = rated(0.1, 0.01)
    run.fit([loader(16, 1)], max_steps=3)
    state = run.get_state()
    same = rated(0.1, 0.01)
    same.load_state(state)  # a scheduler's rates are no difference
    other = rated(0.3, 0.02)
    words = (
        r"lr=0\.3 in the script, 0\.1 in the state; .*weight_decay=0\.02 in the script, 0\.01 in the state.*'script'"
    )
    with pytest.warns(UserWarning, match=words):
        other.load_state(state)
    assert other.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 4)
    with pytest.warns(UserWarning, match="lr=0.3"):  # once more at the next start
        rated(0.3, 0.02).load_state(other.get_state())
    script = rated(0.3, 0.02, "script")
    script.load_state(state)
    group = script.optimizers[0].param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(0.3 / 4), 0.02)
    script.fit([loader(16, 1)], max_steps=4)
    assert group["lr"] == pytest.approx(0.3 / 5)


def test_a_registered_component_is_saved_and_resumed(tmp_path: Path) -> None:
    class Counter:
        value = 0

        def state_dict(self) -> dict[str, int]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.value = state["value"]

        def check(self, state: dict[str, int]) -> list[str]:
            return ["counter: it is odd"] if state["value"] % 2 else []

    run, counter = trainer(), Counter()
    run.register("counter", counter)
    counter.value = 4
    run.save_checkpoint(str(tmp_path / "a"))
    counter.value = 6
    run.save_checkpoint(str(tmp_path / "b"))
    found = checkpoint.diff_checkpoints(tmp_path / "a", tmp_path / "b")
    assert "counter" in found.text()
    fresh, other = trainer(), Counter()
    fresh.register("counter", other)
    fresh.load_checkpoint(str(tmp_path / "a"))
    assert other.value == 4
    counter.value = 5
    with pytest.raises(mtf.StateMismatch, match="counter: it is odd"):
        fresh.load_state(run.get_state())
    assert other.value == 4
    with pytest.raises(mtf.ConfigError, match="has a component 'model' already"):
        run.register("model", counter)


@pytest.mark.parametrize("in_validation", [False, True])
def test_a_metric_named_like_a_loaders_own_is_refused(in_validation: bool) -> None:
    def named(t: Any, batch: Any, i: int, j: int, name: str) -> dict[str, Any]:
        return {**step(t, batch, i, j, name), f"{name}/loss": torch.zeros(())}

    run = trainer(config(["a"]), **{"validation_step" if in_validation else "training_step": named})
    with pytest.raises(mtf.ConfigError, match=r"metric 'a/loss' of loader 'a' .* call it 'a_loss'"):
        run.fit({"a": loader(8, 1)}, {"a": loader(8, 2)})


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"]])
@pytest.mark.parametrize("in_validation", [False, True])
def test_a_metric_that_only_together_with_its_loader_is_named_like_anothers_is_refused(
    names: list[str], in_validation: bool
) -> None:
    def named(t: Any, batch: Any, i: int, j: int, name: str) -> dict[str, Any]:
        more = {"b/acc": torch.zeros(())} if name == "a" else {"acc": torch.ones(())}
        return {**step(t, batch, i, j, name), **more}

    run = trainer(config(names), **{"validation_step" if in_validation else "training_step": named})
    with pytest.raises(mtf.ConfigError, match=r"metric 'b/acc' of loader 'a' .* metric 'acc' of loader 'a/b'.*'b_acc'"):
        run.fit({name: loader(8, 1) for name in names}, {name: loader(8, 2) for name in names})


def test_a_metric_with_a_slash_that_is_no_loaders_is_kept() -> None:
    run = trainer(config(["a", "a/b"]), training_step=lambda t, *batch: {**step(t, *batch), "top/1": torch.ones(())})
    run.fit({"a": loader(8, 1), "a/b": loader(8, 2)})
    assert {"train/top/1", "train/a/top/1", "train/a/b/top/1"} <= set(run.metrics)


def test_a_logged_name_of_a_metric_is_refused() -> None:
    class Logs(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: mtf.Trainer, *_: Any) -> None:
            trainer.log("train/a/loss", 1.0)

    with pytest.raises(mtf.ConfigError, match=r"trainer.log: \['train/a/loss'\]"):
        trainer(config(["a"]), hooks=[Logs()]).fit({"a": loader(8, 1)})


def in_epoch(action: Any) -> mtf.TrainerHooks:
    def on_epoch_end(self: Any, trainer: mtf.Trainer, epoch: int) -> None:
        if epoch == 0:
            action(trainer)

    hook: mtf.TrainerHooks = type("Acts", (mtf.TrainerHooks,), {"on_epoch_end": on_epoch_end})()
    return hook


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda t: setattr(t.multi_loader_config, "burst_size", 2), r"multi_loader_config.burst_size.*rebuild"),
        (lambda t: setattr(t.config.multi, "burst_size", 2), r"config.multi.burst_size.*multi_loader_config"),
        (lambda t: t.add_dataloader(loader(8, 3), "c", weight=0.2), r"weight=0.2 has no effect under ROUND_ROBIN"),
    ],
)  # fmt: skip
def test_edits_that_nothing_reads_are_named(action: Any, words: str) -> None:
    run = trainer(config(["a", "b"]), hooks=[in_epoch(action)])
    with pytest.warns(UserWarning, match=words):
        run.fit([loader(8, 1), loader(8, 2)], max_epochs=2)


def test_edits_that_are_read_are_not_named() -> None:
    def edit(t: mtf.Trainer) -> None:
        t.multi_loader_config.burst_size = 2
        t.multi_loader_manager.rebuild_schedule()

    trainer(config(["a", "b"]), hooks=[in_epoch(edit)]).fit([loader(8, 1), loader(8, 2)], max_epochs=3)


@pytest.mark.parametrize(
    ("settings", "arguments", "validates", "words"),
    [
        ({}, {"hooks": [mtf.EarlyStopping()]}, False, r"EarlyStopping has no effect.*pass val_loaders to fit"),
        ({}, {"hooks": [mtf.BestCheckpoint("x")]}, False, r"BestCheckpoint has no effect"),
        (
            {"validation": mtf.ValidationConfig(frequency=mtf.ValidationFrequency.NEVER)},
            {"hooks": [mtf.EarlyStopping()]},
            True,
            r"EarlyStopping has no effect.*validation.frequency",
        ),
        (
            {"val_loader_config": mtf.MultiDataLoaderConfig(burst_size=3)},
            {},
            True,
            r"val_loader_config: \['burst_size'\] have no effect",
        ),
    ],
)
def test_settings_without_effect_are_named(settings: Any, arguments: Any, validates: bool, words: str) -> None:
    run = trainer(config(**settings), **arguments)
    with pytest.warns(UserWarning, match=words):
        run.fit([loader(8, 1)], [loader(8, 2)] if validates else None)


def test_optimizer_idx_must_name_one() -> None:
    with pytest.raises(mtf.ConfigError, match=r"\['optimizer_idx'\] is empty"):
        trainer(config(per_loader_optimizers={"a": {"optimizer_idx": []}}))


def test_should_stop_stops() -> None:
    class Stops(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: mtf.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 1

    run = trainer(hooks=[Stops()])
    run.fit([loader(32, 1)])
    assert run.global_step == 2
    assert run.should_stop


@pytest.mark.parametrize("name", ["model", "optimizers"])
def test_replaced_parts_are_refused(name: str) -> None:
    run = trainer()
    run.fit([loader(8, 1)], max_steps=1)
    setattr(run, name, model() if name == "model" else [torch.optim.SGD(run.model.parameters(), lr=1.0)])
    with pytest.raises(mtf.UsageError, match="was replaced after the trainer had been made"):
        run.fit([loader(8, 1)], max_steps=2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mtf.Trainer(model=model(), max_epochs=3), r"'max_epochs'; here it is fit\(max_epochs=...\)"),
        (lambda: mtf.Trainer(model=model(), optimizer=None), r"'optimizer'; here it is Trainer\(optimizers=...\)"),
        (lambda: mtf.Trainer(model=model(), hook=()), "did you mean 'hooks'"),
        (lambda: trainer().fit([loader(8, 1)], ckpt_path="x"), r"'ckpt_path'; here it is fit\(resume_from=...\)"),
    ],
)
def test_keywords_of_other_tools_are_translated(call: Any, words: str) -> None:
    with pytest.raises(mtf.ConfigError, match=words):
        call()


def test_a_last_batch_of_one_names_drop_last() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with (
        pytest.raises(mtf.ConfigError, match=r"loader 'dl0', pass 0, batch 2 .*drop_last=True"),
        pytest.warns(UserWarning, match="running statistics"),
    ):
        trainer(model=net).fit([loader(9, 1)])
