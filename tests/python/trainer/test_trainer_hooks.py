"""Hooks: order, arguments, state, errors, and the hooks that come with mtf."""

from __future__ import annotations

import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainer_tools import config, loader, model, trainer

import mtf
from mtf.trainer.hooks.base import EVENTS
from mtf.trainer.hooks.registry import HookList


class Log(mtf.TrainerHooks):
    """Writes down every event."""

    def __init__(self) -> None:
        self.events: list[str] = []


def _writer(event: str) -> Any:
    def method(self: Log, trainer: Any, *args: Any) -> None:
        places = [str(a) for a in args if isinstance(a, (int, str))]
        self.events.append(" ".join([event.removeprefix("on_"), *places]))

    return method


for _event in EVENTS:
    setattr(Log, _event, _writer(_event))


def test_order_of_all_events(tmp_path: Any) -> None:
    log = Log()
    run = trainer(
        config(
            ["a", "b"],
            performance=mtf.PerformanceConfig(gradient_accumulation_steps=2, clip_grad_norm=1.0),
            checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path / "run"), save_every_n_epochs=1),
        ),
        hooks=[log],
    )
    run.fit([loader(4, 1), loader(8, 2)], [loader(4, 3)], max_epochs=1)
    path = str(tmp_path / "run" / "step-00000002")

    def batch(idx: int, source: int) -> list[str]:
        place = f"{idx} {source} {'ab'[source]}"
        return [f"train_batch_start {place}", "before_backward", "after_backward", f"train_batch_end {place}"]

    update = ["gradient_clip", "before_optimizer_step 0", "after_optimizer_step 0"]
    assert log.events == [
        "train_start",
        "epoch_start 0",
        *batch(0, 0),
        *batch(0, 1),
        *update,
        "source_pass_end a 0",
        *batch(1, 0),
        *update,
        "source_pass_end a 1",
        "validation_start",
        "validation_batch_start 0 0 dl0",
        "validation_batch_end 0 0 dl0",
        "validation_end",
        "epoch_end 0",
        f"checkpoint_save {path}",
        "train_end",
    ]


def test_hooks_are_called_in_order_and_only_when_overridden() -> None:
    first, second = Log(), Log()
    hooks = HookList(None, [first, mtf.TrainerHooks(), second])
    assert len(hooks.on_epoch_end) == 2
    assert HookList(None, [mtf.TrainerHooks()]).on_train_batch_start == ()


def test_one_hook_needs_no_list() -> None:
    log = Log()
    trainer(hooks=log).fit([loader(8, 1)])
    assert log.events[-1] == "train_end"


def test_a_misspelt_event_is_refused() -> None:
    class Typo(mtf.TrainerHooks):
        def on_epoch_ends(self, trainer: Any, epoch: int) -> None:
            pass

    with pytest.raises(mtf.ConfigError, match=r"Typo\.on_epoch_ends is no event; did you mean 'on_epoch_end'"):
        trainer(hooks=[Typo()])
    with pytest.raises(mtf.ConfigError, match="expected an instance of TrainerHooks"):
        trainer(hooks=[object()])


class Broken(mtf.TrainerHooks):
    def on_train_batch_end(self, *_: Any) -> None:
        raise ZeroDivisionError("in the hook")


def test_a_hook_that_raises_stops_training_with_its_own_error() -> None:
    log = Log()
    run = trainer(hooks=[Broken(), log])
    with pytest.raises(ZeroDivisionError, match="in the hook"):
        run.fit([loader(8, 1)])
    assert log.events[-1] == "exception"
    run._hooks = HookList(run)
    run.fit([loader(8, 1)], max_steps=1)


def test_or_is_reported_and_training_goes_on() -> None:
    settings = config(fault_tolerance=mtf.FaultToleranceConfig(on_hook_error="log"))
    run = trainer(settings, hooks=[Broken()])
    with pytest.warns(UserWarning, match=r"Broken.on_train_batch_end raised ZeroDivisionError.*training continues"):
        run.fit([loader(8, 1)])
    assert run.global_step == 2


class Counting(mtf.TrainerHooks):
    def __init__(self) -> None:
        self.num = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.num += 1

    def state_dict(self) -> dict[str, Any]:
        return {"num": self.num}

    def load_state_dict(self, state: Any) -> None:
        self.num = state["num"]


def test_state_of_hooks() -> None:
    run = trainer(hooks=[Counting(), Counting()])
    run.fit([loader(8, 1)])
    state = run.get_state()
    fresh = trainer(hooks=[Counting(), Counting()])
    fresh.load_state(state)
    assert [hook.num for hook in fresh._hooks] == [2, 2]
    with pytest.warns(UserWarning, match=r"hooks \['Counting#1'\] isn't used"):
        trainer(hooks=[Counting()]).load_state(state)


def test_early_stopping() -> None:
    stopping = mtf.EarlyStopping("val/loss", patience=2)
    net = model()
    run = trainer(model=net, optimizers=torch.optim.SGD(net.parameters(), lr=0.0), hooks=[stopping])
    run.fit([loader(8, 1)], [loader(8, 2)], max_epochs=10)
    assert run.epoch == 3, "the first sets the mark, two more are no better"
    assert stopping.best == run.metrics["val/loss"]
    again = mtf.EarlyStopping("val/loss")
    again.load_state_dict(stopping.state_dict())
    assert (again.best, again.num_bad) == (stopping.best, 2)
    with pytest.raises(mtf.ConfigError, match=r"there is no metric 'val/lss'; did you mean 'val/loss'"):
        trainer(hooks=[mtf.EarlyStopping("val/lss")]).fit([loader(8, 1)], [loader(8, 2)])


def test_early_stopping_ignores_nan_and_respects_the_mode() -> None:
    stopping = mtf.EarlyStopping("m", patience=1, mode="max", min_delta=0.5)

    class Run:
        reasons: list[str] = []  # noqa: RUF012 - a stand-in
        is_fitting = True

        def request_stop(self, reason: str) -> None:
            self.reasons.append(reason)

    run: Any = Run()
    for value in (1.0, 1.6, 2.0, float("nan")):
        stopping.on_validation_end(run, {"m": value})
    assert stopping.best == 1.6
    assert len(run.reasons) == 2


def test_gradient_monitor_and_learning_rate_monitor() -> None:
    rates = mtf.LearningRateMonitor()
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    run = trainer(
        model=net,
        optimizers=optimizer,
        schedulers={"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"},
        hooks=[mtf.GradientMonitor(warn_above=1e-6), rates],
    )
    with pytest.warns(UserWarning, match=r"gradients/norm is .* in epoch 0"):
        run.fit([loader(16, 1)])
    assert rates.history == [(0, [1.0]), (1, [0.5]), (2, [0.25]), (3, [0.125])]
    assert run.metrics["gradients/norm"] > 0


def test_best_checkpoint(tmp_path: Any) -> None:
    best = mtf.BestCheckpoint(str(tmp_path / "best"), "val/loss")
    run = trainer(hooks=[best])
    run.fit([loader(16, 1)], [loader(8, 2)], max_epochs=3)
    assert best.best is not None
    fresh = trainer(hooks=[mtf.BestCheckpoint(str(tmp_path / "best"))])
    fresh.load_checkpoint(str(tmp_path / "best"))
    assert fresh.validate([loader(8, 2)])["val/loss"] == pytest.approx(best.best)


def test_validating_by_hand_is_no_validation_of_the_run(tmp_path: Any) -> None:
    """On test data, say: what stops the run and what is best doesn't depend on it."""
    stopping, best = mtf.EarlyStopping(patience=0), mtf.BestCheckpoint(str(tmp_path / "best"))
    run = trainer(hooks=[stopping, best])
    run.fit([loader(16, 1)], [loader(8, 2)])
    state = run.get_state()
    x, y = torch.zeros(4, 3), torch.zeros(4, 1)
    assert run.validate([[(x, y)]])["val/loss"] < stopping.best
    assert run.validate([[(x, y + 9.0)]])["val/loss"] > stopping.best
    assert run.get_state() == state


def test_monitors_of_an_epoch_that_goes_on_elsewhere() -> None:
    first = trainer(hooks=[mtf.ThroughputMonitor(1.0)])
    first.fit([loader(16, 1)], max_steps=2)
    monitor = mtf.ThroughputMonitor(1.0)
    second = trainer(hooks=[monitor])
    second.load_state(first.get_state())
    second.fit([loader(16, 1)], max_epochs=1)
    assert len(monitor.epochs) == 1


def test_monitors_of_an_update_that_comes_again() -> None:
    """After an error in its window, or from a state before it."""

    class Once(mtf.TrainerHooks):
        def __init__(self) -> None:
            self.is_due = True

        def on_before_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            if trainer.global_step == 2 and self.is_due:
                self.is_due = False
                raise RuntimeError("once")

    settings = config(logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=4))
    whole = trainer(settings, hooks=[mtf.GradientMonitor()])
    whole.fit([loader(16, 1)])
    rates = mtf.LearningRateMonitor()
    run = trainer(settings, hooks=[mtf.GradientMonitor(), rates, Once()])
    with pytest.raises(RuntimeError, match="once"):
        run.fit([loader(16, 1)])
    run.fit([loader(16, 1)], max_steps=3)
    state = run.get_state()
    for _ in range(2):
        run.fit([loader(16, 1)], max_epochs=1)
        assert run.metrics["gradients/norm"] == whole.metrics["gradients/norm"]
        assert [step for step, _ in rates.history] == [0, 1, 2, 3]
        run.load_state(state)


def test_throughput_monitor() -> None:
    monitor = mtf.ThroughputMonitor(max_wait_share=0.0)
    with pytest.warns(UserWarning, match=r"training waited for data \d+% of epoch 0"):
        trainer(hooks=[monitor]).fit([loader(8, 1)])
    assert monitor.epochs[0]["samples_per_s"] > 0
    with pytest.raises(mtf.ConfigError, match="max_wait_share must be in"):
        mtf.ThroughputMonitor(2.0)


def test_validations_are_no_time_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would hide that training waits for data."""
    hours = [0]

    def slow(trainer: Any, *_: Any) -> float:
        hours[0] += 1
        return 1.0

    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + 3600 * hours[0])
    monkeypatch.setattr("mtf.trainer.reporting.reporter.time", clock)
    monitor = mtf.ThroughputMonitor(max_wait_share=1.0)
    logging = mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=2)
    often = mtf.ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=1)
    run = trainer(config(logging=logging, validation=often), validation_step=slow, hooks=[monitor])
    run.fit([loader(8, 1)], [loader(4, 2)])
    assert hours[0] >= 2
    assert monitor.epochs[0]["seconds"] < 3600
    assert run.metrics["throughput/samples_per_s"] > 8 / 3600


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("kind", ["table", "function"])
def test_curriculum(kind: str, by_name: bool) -> None:
    easy: Any = {"hard": 0.0, "easy": 1.0} if by_name else [1.0, 0.0]
    hard: Any = {"hard": 1.0, "easy": 0.0} if by_name else [0.0, 1.0]

    def from_metric(trainer: Any, metrics: Any) -> Any:
        return hard if metrics["train/loss"] > 0 else None

    rule: Any = {0: easy, 1: hard} if kind == "table" else from_metric
    seen: list[list[str]] = []

    class Names(mtf.TrainerHooks):
        def on_epoch_start(self, trainer: Any, epoch: int) -> None:
            seen.append([])

        def on_train_batch_end(self, trainer: Any, batch: Any, i: int, j: int, name: str, metrics: Any) -> None:
            seen[-1].append(name)

    multi = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        dataloader_weights=[1.0, 1e-9],
        dataloader_names=["easy", "hard"],
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=6,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a source without weight is reported by the schedule
        trainer(config(multi=multi), hooks=[mtf.Curriculum(rule), Names()]).fit(
            [loader(8, 1), loader(8, 2)], max_epochs=2
        )
    assert seen == [["easy"] * 6, ["hard"] * 6]
