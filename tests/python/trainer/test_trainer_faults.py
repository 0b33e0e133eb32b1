"""What goes wrong around training: hooks, losses and loggers that fail, signals, threads, and trainers side by side."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_tools as tools
from torch import nn

import mtf
from mtf.trainer.hooks.base import EVENTS


class Fail(Exception):
    """Raised by hooks of these tests only."""


def at(event: str, number: int, action: Callable[[mtf.Trainer], None]) -> mtf.TrainerHooks:
    """A hook that does ``action`` once, when ``event`` happens for the ``number``-th time (from 0)."""
    calls = 0

    def called(self: Any, trainer: mtf.Trainer, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            action(trainer)

    hook: mtf.TrainerHooks = type("At", (mtf.TrainerHooks,), {event: called})()
    return hook


def fail(trainer: mtf.Trainer) -> None:
    raise Fail


def make(*hooks: mtf.TrainerHooks, seed: int = 0, window: int = 1, **settings: Any) -> mtf.Trainer:
    """Two optimizers, dropout, validation and saves, so that every event happens."""
    body, head = tools.model(seed, dropout=0.2), nn.Linear(1, 1)
    model = nn.Sequential(body, head)
    settings.setdefault("performance", mtf.PerformanceConfig(gradient_accumulation_steps=window, clip_grad_norm=1.0))
    return tools.trainer(
        tools.config(["a", "b"], seed=seed, **settings),
        model=model,
        optimizers=[torch.optim.SGD(body.parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(head.parameters())],
        hooks=hooks,
    )


def loaders() -> dict[str, Any]:
    return {"a": tools.loader(20, 1, shuffle=True), "b": mtf.ArrayLoader(tools.rows(12, 2), batch_size=4, shuffle=True)}


def validation() -> dict[str, Any]:
    return {"v": tools.loader(5, 3)}


# Hooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_fresh", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("event", [event for event in EVENTS if event not in ("on_exception", "on_checkpoint_load")])
def test_a_hook_that_raises_anywhere_leaves_a_state_that_goes_on(
    tmp_path: Path, event: str, number: int, is_fresh: bool
) -> None:
    def settings(name: str) -> dict[str, Any]:
        every = 3 if event == "on_checkpoint_save" else None
        return {
            "checkpoint": mtf.CheckpointConfig(root_dir=str(tmp_path / name), save_every_n_steps=every),
            "window": 2,
        }

    whole = make(**settings("whole"))
    whole.fit(loaders(), validation(), max_epochs=3)
    run = make(at(event, number, fail), **settings("run"))
    if number and event in ("on_train_start", "on_train_end"):
        run.fit(loaders(), validation(), max_epochs=1)
        if number == 2:
            run.fit(loaders(), validation(), max_epochs=2)
    with pytest.raises(Fail) as caught:
        run.fit(loaders(), validation(), max_epochs=3)
    assert traceback.extract_tb(caught.tb)[-1].name == "fail", "the hook's own traceback"
    state = run.get_state()
    if is_fresh:
        run = make(**settings("run"))
        run.load_state(state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="nothing to do" if event == "on_train_end" else "no warning")
        run.fit(loaders(), validation(), max_epochs=3)
    assert run.get_state().diff(whole.get_state()) == []


@pytest.mark.parametrize("event", ["on_gradient_clip", "on_before_optimizer_step", "on_after_optimizer_step"])
def test_a_hook_that_raises_around_the_scaler_goes_on_as_well(event: str) -> None:
    def mixed(*hooks: mtf.TrainerHooks) -> mtf.Trainer:
        return make(*hooks, performance=mtf.PerformanceConfig(precision="fp16", clip_grad_norm=1.0))

    whole, run = mixed(), mixed(at(event, 3, fail))
    whole.fit(loaders(), max_steps=6)
    with pytest.raises(Fail):
        run.fit(loaders(), max_steps=6)
    run.fit(loaders(), max_steps=6)
    assert run.get_state().diff(whole.get_state()) == []


def test_the_other_hooks_are_told_of_a_step_before_an_error_is_raised() -> None:
    told: list[int] = []

    class Tell(mtf.TrainerHooks):
        def on_after_optimizer_step(self, trainer: mtf.Trainer, optimizer_idx: int) -> None:
            told.append(optimizer_idx)

    run = make(at("on_after_optimizer_step", 0, fail), Tell())
    with pytest.raises(Fail):
        run.fit(loaders(), max_steps=1)
    assert told == [0, 1]
    assert run.global_step == 1


def test_a_save_that_an_error_of_the_update_kept_from_coming_comes_next(tmp_path: Path) -> None:
    settings = mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_steps=2, max_checkpoints=9)
    run = make(at("on_after_optimizer_step", 2, fail), checkpoint=settings)
    with pytest.raises(Fail):
        run.fit(loaders(), max_steps=3)
    assert not list(tmp_path.glob("step-*"))
    run.fit(loaders(), max_steps=3)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000002"]


def test_an_optimizer_that_raises_leaves_no_state_to_go_on_from(tmp_path: Path) -> None:
    """The first optimizer has stepped, the second hasn't: nobody may take that for a state."""
    run = make(checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path)))
    run.fit(loaders(), max_steps=2)
    state, second = run.get_state(), run.optimizers[1]
    whole_step = second.step

    def broken(*_: Any) -> Any:
        raise MemoryError("no room for its state")

    second.step = broken  # type: ignore[method-assign]
    with pytest.raises(MemoryError):
        run.fit(loaders(), max_steps=4)
    second.step = whole_step  # type: ignore[method-assign]
    for call in (run.get_state, lambda: run.save_checkpoint(str(tmp_path / "a")), lambda: run.fit(loaders())):
        with pytest.raises(mtf.ConfigError, match="update 3 broke off in the middle"):
            call()
    run.load_state(state)
    run.fit(loaders(), max_steps=4)
    whole = make()
    whole.fit(loaders(), max_steps=4)
    assert run.get_state().diff(whole.get_state()) == []


class Stuck(torch.optim.lr_scheduler.StepLR):
    """Raises at its second step."""

    def get_lr(self) -> list[float]:
        if self.last_epoch == 2:
            raise Fail
        return [group["lr"] for group in self.optimizer.param_groups]


def test_a_scheduler_that_raises_leaves_no_state_either() -> None:
    model = tools.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = tools.trainer(
        model=model, optimizers=optimizer, schedulers={"scheduler": Stuck(optimizer, 1), "interval": "step"}
    )
    with pytest.raises(Fail):
        run.fit(tools.loader(8, 1))
    with pytest.raises(mtf.ConfigError, match="update 2 broke off in the middle"):
        run.get_state()


def test_running_statistics_that_a_failed_window_moved_are_pointed_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    run = tools.trainer(model=model, hooks=[at("on_train_batch_end", 2, fail)])
    with pytest.warns(UserWarning, match="running statistics .* may hold a part of the window"), pytest.raises(Fail):
        run.fit(tools.loader(16, 1))
    strict = tools.trainer(model=model, hooks=[at("on_train_batch_end", 2, fail)])
    with pytest.raises(Fail):
        strict.fit(tools.loader(16, 1))  # here warnings are errors: its own comes first


# Losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(6))
@pytest.mark.parametrize("policy", ["raise", "warn", "skip"])
def test_a_loss_that_is_not_finite_at_any_step_of_a_window(policy: Any, step: int) -> None:
    """Windows of two; under "raise" training continues exactly once the step is mended."""
    performance = mtf.PerformanceConfig(gradient_accumulation_steps=2, on_nonfinite=policy)
    broken = True

    def sometimes(trainer: Any, *place: Any) -> Any:
        loss = tools.step(trainer, *place)["loss"]
        return loss * float("inf") if broken and trainer.num_batches == step else loss

    run = tools.trainer(tools.config(["a", "b"], performance=performance), training_step=sometimes)
    message = f"the loss of loader '{'ab'[step % 2]}' is inf at batch {step // 2} of this epoch, training step {step}"
    if policy != "raise":
        with pytest.warns(UserWarning, match=message):
            run.fit([tools.loader(12, 1), tools.loader(12, 2)], max_steps=3)
        assert run.global_step == 3
        assert all(p.isfinite().all() for p in run.model.parameters()) == (policy == "skip")
        return
    with pytest.raises(mtf.NonFiniteLoss, match=message):
        run.fit([tools.loader(12, 1), tools.loader(12, 2)], max_steps=3)
    assert run.global_step == step // 2, "the update was not made"
    broken = False
    run.fit([tools.loader(12, 1), tools.loader(12, 2)], max_steps=3)
    whole = tools.trainer(tools.config(["a", "b"], performance=performance))
    whole.fit([tools.loader(12, 1), tools.loader(12, 2)], max_steps=3)
    assert run.get_state().diff(whole.get_state()) == []


# Loggers ---------------------------------------------------------------------------------------------------------


def test_a_logger_that_raises_is_told_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(mtf.Logger):
        def log_metrics(self, row: Any, step: int) -> None:
            raise OSError("the server is gone")

        def flush(self) -> None:
            raise OSError("still gone")

    logging = mtf.LoggingConfig(logger_type="console", progress_bar=False, log_scalars_every_n_steps=1)
    quiet = mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=1)
    whole, run = make(logging=quiet), make(logging=logging)
    whole.fit(loaders(), validation(), max_steps=6)
    monkeypatch.setattr("mtf.trainer.reporting.reporter.make_logger", lambda *_: Broken())
    with pytest.warns(UserWarning, match=r"logger Broken raised OSError\('the server is gone'\)") as caught:
        run.fit(loaders(), validation(), max_steps=6)
    assert len(caught) == 1
    assert run.get_state().diff(whole.get_state()) == []


# Signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["on_train_batch_end", "on_before_optimizer_step", "on_after_optimizer_step"])
def test_ctrl_c_twice_stops_at_once_without_a_save_and_the_run_can_go_on(tmp_path: Path, event: str) -> None:
    def twice(trainer: mtf.Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    whole = make(window=2)
    whole.fit(loaders(), max_steps=4)
    run = make(at(event, 3, twice), window=2, checkpoint=mtf.CheckpointConfig(root_dir=str(tmp_path / "run")))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="second signal"):
        run.fit(loaders(), max_steps=4)
    assert signal.getsignal(signal.SIGINT) == before
    assert not list(tmp_path.rglob("step-*"))
    run.fit(loaders(), max_steps=4)
    assert run.get_state().diff(whole.get_state()) == []


# Side by side ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("window", [1, 2])
def test_two_trainers_step_by_step_are_as_if_alone(window: int, is_nested: bool) -> None:
    """Nested: the second makes an update inside a hook of the first, after each of its steps."""
    alone = [make(seed=seed, window=window) for seed in (1, 2)]
    for run in alone:
        run.fit(loaders(), validation(), max_steps=7)
    first, second = (make(seed=seed, window=window) for seed in (1, 2))
    given = [loaders(), loaders()]
    if is_nested:

        class Other(mtf.TrainerHooks):
            def on_train_batch_end(self, trainer: mtf.Trainer, *_: Any) -> None:
                if second.global_step < 7:
                    second.fit(given[1], validation(), max_steps=second.global_step + 1)

        first.add_hook(Other())
        first.fit(given[0], validation(), max_steps=7)
        if second.global_step < 7:
            second.fit(given[1], validation(), max_steps=7)
    else:
        for max_steps in range(1, 8):
            for run, own in zip((first, second), given, strict=True):
                run.fit(own, validation(), max_steps=max_steps)
    for run, other in zip((first, second), alone, strict=True):
        assert run.get_state().diff(other.get_state()) == []


# Threads ---------------------------------------------------------------------------------------------------------


def in_thread(call: Callable[[], Any]) -> BaseException | None:
    """Calls it in a thread of its own; returns what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # whatever it is, the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_another_thread_gives_the_same_run_and_says_that_signals_do_not_save(tmp_path: Path) -> None:
    whole = make()
    whole.fit(loaders(), validation(), max_steps=6)
    run = make()
    run.fit(loaders(), validation(), max_steps=2)
    with pytest.warns(UserWarning, match="fit runs outside the main thread, so SIGTERM, SIGUSR1, SIGINT") as caught:
        assert in_thread(lambda: run.fit(run._parts.data.given, validation(), max_steps=4)) is None
    assert len(caught) == 1
    assert in_thread(lambda: run.save_checkpoint(str(tmp_path / "saved"))) is None
    fresh = make(preemption=mtf.PreemptionConfig(signals=()))
    assert in_thread(lambda: fresh.load_checkpoint(str(tmp_path / "saved"))) is None
    assert in_thread(lambda: fresh.fit(loaders(), validation(), max_steps=6)) is None, "no warning without signals"
    assert fresh.get_state().diff(whole.get_state()) == []


@pytest.mark.parametrize("is_same", [True, False])
def test_two_threads_at_once_are_refused(is_same: bool) -> None:
    whole = make()
    whole.fit(loaders(), max_steps=4)
    raised: list[BaseException | None] = []
    other = make(seed=3)

    def elsewhere(trainer: mtf.Trainer) -> None:
        raised.append(in_thread(lambda: (trainer if is_same else other).fit(loaders(), max_steps=1)))

    run = make(at("on_train_batch_start", 2, elsewhere))
    run.fit(loaders(), max_steps=4)
    assert run.get_state().diff(whole.get_state()) == []
    assert isinstance(raised[0], mtf.ConfigError)
    assert "another thread of this process is inside fit" in str(raised[0])
    assert other.global_step == 0
    other.fit(loaders(), max_steps=1)


# Iterators -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:loader 'dl0' can't be opened at a position", "ignore:.*are produced again")
def test_an_iterator_left_in_the_middle_is_closed_and_the_loader_is_as_new() -> None:
    """A generator behind a loader ends with its trainer's mixture, and a second trainer is as if alone."""
    closed: list[int] = []

    class Stream:
        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Any:
            x, y = tools.rows(12, 1)
            try:
                for i in range(0, 12, 2):
                    yield x[i : i + 2], y[i : i + 2]
            finally:
                closed.append(1)

    whole, first, second = (tools.trainer() for _ in range(3))
    whole.fit(Stream(), max_steps=5)
    shared = Stream()
    threads = threading.active_count()
    first.fit(shared, max_steps=2)
    abandoned = iter(first.multi_loader_manager)
    next(abandoned)
    num_closed = len(closed)
    first.multi_loader_manager.close()
    assert len(closed) == num_closed + 1
    with pytest.raises(mtf.Closed):
        next(abandoned)
    second.fit(shared, max_steps=5)
    assert second.get_state().diff(whole.get_state()) == []
    assert threading.active_count() == threads
