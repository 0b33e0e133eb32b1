"""Spikes of the loss: the update is left out, or the run goes back, the same however often it is interrupted."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainer_tools import Trace, config, model, rows, same_weights, trainer
from torch.utils.data import DataLoader, TensorDataset

import mtf
from mtf.errors import ConfigError

BATCH, NUM = 4, 240
WINDOW = 8


def data(spikes: Any = (), height: float = 1e3) -> DataLoader[Any]:
    """Batches in order; those of ``spikes`` have targets that make a spike."""
    x, y = rows(NUM, 0)
    y = y.clone()
    for batch in spikes:
        y[batch * BATCH : (batch + 1) * BATCH] += height
    return DataLoader(TensorDataset(x, y), BATCH)


def guard(**options: Any) -> mtf.SpikeGuard:
    return mtf.SpikeGuard(**{"window": WINDOW, "sigma": 100.0, **options})


def settings(tmp_path: Path | None = None, every: int = 5, **performance: Any) -> mtf.TrainerConfig:
    options: dict[str, Any] = {}
    if tmp_path is not None:
        options["checkpoint"] = mtf.CheckpointConfig(root_dir=str(tmp_path), save_every_n_steps=every)
    return config(performance=mtf.PerformanceConfig(**performance), **options)


def run(guard_: mtf.SpikeGuard, spikes: Any, steps: int = 40, **options: Any) -> mtf.Trainer:
    there = trainer(settings(**options), hooks=guard_)
    there.fit(data(spikes), max_steps=steps)
    return there


def left_out(ranges: list[tuple[int, int]], steps: int = 40, spikes: Any = ()) -> Any:
    """The model after ``steps`` updates without those of ``ranges``."""
    there = trainer(settings())
    there.fit(data(spikes), max_steps=steps, skip=ranges)
    return there.model


def test_the_update_of_a_spike_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mtf")
    watched = guard()
    there = run(watched, [12, 20, 21])
    assert watched.num_skipped == 3
    assert there.global_step == 40
    assert same_weights(there.model, left_out([(12, 13), (20, 22)], spikes=[12, 20, 21]))
    said = [record.getMessage() for record in caplog.records if "left out update" in record.getMessage()]
    assert [line.split(":")[0] for line in said] == ["left out update 12", "left out update 20", "left out update 21"]
    assert "deviations above the median" in said[0]
    assert "of the last 8 updates" in said[0]


def test_nothing_is_a_spike_before_half_a_window_is_known() -> None:
    early, late = guard(), guard()
    run(early, [2, 3], steps=6)
    run(late, [4], steps=6)
    assert (early.num_skipped, late.num_skipped) == (0, 1)


def test_a_lasting_change_is_followed() -> None:
    watched = guard()
    run(watched, range(15, 40))
    assert 1 <= watched.num_skipped <= WINDOW // 2 + 1


def test_loaders_are_compared_with_themselves() -> None:
    watched = guard()
    settings_ = config(["low", "high"])
    net = model()
    there = trainer(settings_, hooks=watched, model=net, optimizers=torch.optim.SGD(net.parameters(), 1e-9))
    there.fit({"low": data(), "high": data([*range(20), *range(21, 60)])}, max_steps=60)
    assert watched.num_skipped == 0
    there.fit({"low": data([39]), "high": data(range(60))}, max_steps=80)
    assert watched.num_skipped == 1


def test_the_threshold_is_the_median_and_its_deviation() -> None:
    watched = guard(sigma=3.0, window=4)

    class One:
        world_size = 1

    values = [1.0, 2.0, 1.5, 9.0, 1.2]
    for value in values:
        watched.begin_window()
        watched._losses.append(("a", torch.tensor(value)))
        watched.judge(["a"], One(), None)  # type: ignore[arg-type]
        watched.commit()
    history = values[-4:]
    median = statistics.median(history)
    threshold = median + 3.0 * 1.4826 * statistics.median(abs(v - median) for v in history)
    for value, is_spike in ((threshold - 1e-6, False), (threshold + 1e-5, True)):
        watched.begin_window()
        watched._losses.append(("a", torch.tensor(value, dtype=torch.float64)))
        assert (watched.judge(["a"], One(), None) is not None) is is_spike  # type: ignore[arg-type]


@pytest.mark.parametrize("monitor", ["gradient_norm", "both"])
def test_the_norm_of_the_gradients_is_looked_at(monitor: Any) -> None:
    watched = guard(monitor=monitor)
    there = run(watched, [12, 20], clip_grad_norm=1.0)
    plain = trainer(settings(clip_grad_norm=1.0))
    plain.fit(data([12, 20]), max_steps=40, skip=[(12, 13), (20, 21)])
    assert watched.num_skipped == 2
    assert same_weights(there.model, plain.model)


@pytest.mark.parametrize("window", [1, 3])
def test_a_window_is_judged_as_a_whole(window: int) -> None:
    watched = guard()
    there = run(watched, [12 * window + 1], steps=18, gradient_accumulation_steps=window)
    update = (12 * window + 1) // window
    assert watched.num_skipped == 1
    plain = trainer(settings(gradient_accumulation_steps=window))
    plain.fit(data([12 * window + 1]), max_steps=18, skip=[(update, update + 1)])
    assert same_weights(there.model, plain.model)
    assert there.num_batches == 18 * window


@pytest.mark.parametrize("stop", [8, 12, 13, 20, 25])
def test_decisions_are_the_same_after_a_resume(tmp_path: Path, stop: int) -> None:
    whole = guard()
    there = run(whole, [12, 20], tmp_path=tmp_path / "whole")
    first = trainer(settings(tmp_path / "parts"), hooks=guard())
    first.fit(data([12, 20]), max_steps=stop)
    first.save_checkpoint(str(tmp_path / "now"))
    again = guard()
    resumed = trainer(settings(tmp_path / "parts"), hooks=again)
    resumed.fit(data([12, 20]), max_steps=40, resume_from=str(tmp_path / "now"))
    assert again.state_dict() == whole.state_dict()
    assert same_weights(resumed.model, there.model)


def test_a_rollback_goes_to_the_last_checkpoint_and_leaves_the_range_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mtf")
    watched = guard(action="rollback")
    there = run(watched, [17], tmp_path=tmp_path)
    assert (watched.num_rollbacks, watched.num_skipped, there.global_step) == (1, 0, 40)
    assert same_weights(there.model, left_out([(15, 18)], spikes=[17]))
    assert f"went back to {tmp_path / 'step-00000015'} (rollback 1 of at most 3)" in caplog.text
    assert "leaves out the data of updates 15 to 17" in caplog.text


def test_several_rollbacks_to_one_checkpoint_add_up(tmp_path: Path) -> None:
    watched = guard(action="rollback")
    there = run(watched, [17, 23, 24], tmp_path=tmp_path, every=15)
    assert watched.num_rollbacks == 3
    assert same_weights(there.model, left_out([(15, 25)], spikes=[17, 23, 24]))


def test_skip_ahead_leaves_out_more(tmp_path: Path) -> None:
    there = run(guard(action="rollback", skip_ahead=4), [17], tmp_path=tmp_path)
    assert same_weights(there.model, left_out([(15, 22)], spikes=[17]))


def test_before_there_is_a_checkpoint_the_update_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mtf")
    watched = guard(action="rollback")
    there = run(watched, [7], tmp_path=tmp_path, every=10)
    assert (watched.num_rollbacks, watched.num_skipped) == (0, 1)
    assert same_weights(there.model, left_out([(7, 8)], spikes=[7]))
    assert "there is no checkpoint to go back to yet" in caplog.text


def test_one_clear_error_after_the_last_rollback(tmp_path: Path) -> None:
    watched = guard(action="rollback", max_rollbacks=1)
    with pytest.raises(mtf.LossSpike, match=r"update 27: loss of 'dl0' is .* has gone back 1 times already"):
        run(watched, [17, 27], tmp_path=tmp_path)


def test_a_rollback_over_the_end_of_an_epoch(tmp_path: Path) -> None:
    trace = Trace()
    watched = guard(action="rollback", window=WINDOW)
    there = trainer(settings(tmp_path, every=50), hooks=[watched, trace])
    first = NUM // BATCH

    class Later(TensorDataset):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x, y + 1e3 * (self.epoch == 1 and index < BATCH)

    def late() -> DataLoader[Any]:
        return DataLoader(Later(*rows(NUM, 0)), BATCH)

    there.fit(late(), max_steps=first + 20)
    assert watched.num_rollbacks == 1
    plain = trainer(settings())
    plain.fit(late(), max_steps=first + 20, skip=[(50, first + 1)])
    assert same_weights(there.model, plain.model)
    assert there.epoch == 1


@pytest.mark.parametrize("nonfinite", ["skip", "warn"])
@pytest.mark.filterwarnings("ignore:the loss of loader")
def test_losses_that_are_not_finite_are_left_out_too(nonfinite: Any) -> None:
    watched = guard()
    there = trainer(settings(on_nonfinite=nonfinite), hooks=watched)
    there.fit(data([12], float("nan")), max_steps=30)
    assert watched.num_skipped == (nonfinite == "warn")
    assert all(torch.isfinite(parameter).all() for parameter in there.model.parameters())


def test_fp16_with_its_scaler() -> None:
    watched = guard(monitor="both")
    net = model()
    there = trainer(
        settings(precision="fp16"), hooks=watched, model=net, optimizers=torch.optim.SGD(net.parameters(), 0.1)
    )
    there.fit(data([12]), max_steps=30)
    assert watched.num_skipped == 1
    scale = there.get_state().tree["scaler"]["scale"]
    assert watched._history["gradient norm"][-1] < 1e3 < scale


def test_the_part_that_was_left_out_is_logged() -> None:
    there = trainer(
        config(logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=10)),
        hooks=guard(),
    )
    there.fit(data([12, 13]), max_steps=20)
    assert there.metrics["spike_guard/skipped"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0}, "sigma must be a finite number above 0, but is 0"),
        ({"sigma": float("inf")}, "sigma must be"),
        ({"window": 3}, "window must be at least 4, but is 3"),
        ({"action": "stop"}, "action must be one of skip_update, rollback, but is 'stop'"),
        ({"monitor": "lr"}, "monitor must be one of loss, gradient_norm, both"),
        ({"max_rollbacks": 0}, "max_rollbacks must be at least 1"),
        ({"skip_ahead": -1}, "skip_ahead must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mtf.SpikeGuard(**options)


def test_a_rollback_without_saves_is_refused_before_any_work() -> None:
    there = trainer(settings(), hooks=mtf.SpikeGuard(action="rollback"))
    with pytest.raises(ConfigError, match="nothing saves one: set checkpoint"):
        there.fit(data(), max_steps=3)
    assert there.global_step == 0
