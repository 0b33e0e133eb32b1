"""Metrics of training: means, their independence of when they are read, proportions, progress."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_tools import config, loader, step, trainer

import mtf
from mtf.distributed.ranks import SingleRank
from mtf.trainer.metrics import MetricTable, proportions, to_floats
from mtf.trainer.reporting import progress_bar

ALONE = SingleRank()


def test_means_per_loader_and_over_all() -> None:
    table = MetricTable()
    for value in (1.0, 2.0, 6.0):
        table.add("a", "loss", torch.tensor(value))
    table.add("b", "loss", torch.tensor([5.0]))
    table.add("b", "accuracy", 0.5)
    table.add("", "mine", 7)
    row = table.means(ALONE, per_loader=True)
    assert row == {
        "train/a/loss": 3.0,
        "train/b/loss": 5.0,
        "train/loss": 3.5,
        "train/b/accuracy": 0.5,
        "train/accuracy": 0.5,
        "mine": 7.0,
    }
    assert "train/a/loss" not in table.means(ALONE, per_loader=False)
    table.clear()
    assert table.is_empty
    assert table.means(ALONE, per_loader=True) == {}


def test_nothing_is_read_from_the_device_before_the_row() -> None:
    """A meta tensor has no value at all: reading it raises."""
    table = MetricTable()
    table.add("a", "loss", torch.zeros((), device="meta", requires_grad=True))
    with pytest.raises(RuntimeError):
        table.means(ALONE, per_loader=True)


def test_sums_do_not_depend_on_when_they_were_read() -> None:
    values = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 1e6
    at_once, in_parts = MetricTable(), MetricTable()
    for i, value in enumerate(values):
        at_once.add("a", "loss", value)
        in_parts.add("a", "loss", value)
        if i % 7 == 0:
            saved = in_parts.state_dict()
            in_parts = MetricTable()
            in_parts.load_state_dict(saved)
    assert at_once.state_dict() == in_parts.state_dict()


def test_pending_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtf.trainer.metrics._MAX_PENDING", 10)
    table = MetricTable()
    for _ in range(25):
        table.add_scalar("a", "loss", torch.tensor(1.0))
        table.commit()
    assert table._num_pending == 5
    assert table.means(ALONE, per_loader=False) == {"train/loss": 1.0}


def test_a_window_that_failed_leaves_nothing() -> None:
    table = MetricTable()
    table.add("a", "loss", 1.0)
    table.commit()
    table.add("a", "loss", 9.0)
    table.add("b", "loss", 9.0)
    table.roll_back()
    assert table.means(ALONE, per_loader=True) == {"train/a/loss": 1.0, "train/loss": 1.0}


def test_mixed_types_are_read_together() -> None:
    values = [torch.tensor(1.5, dtype=torch.bfloat16), 2.0, torch.tensor(3), torch.tensor(4.25, dtype=torch.float64)]
    assert to_floats(values) == [1.5, 2.0, 3.0, 4.25]


@pytest.mark.parametrize("value", [torch.zeros(2), "text", None, [1.0]])
def test_values_that_are_no_metric(value: Any) -> None:
    with pytest.raises(mtf.ConfigError, match="metric 'logits' must"):
        MetricTable().add("a", "logits", value)


class Mean:
    def __init__(self) -> None:
        self.values: list[float] = []

    def update(self, value: float) -> None:
        self.values.append(value)

    def compute(self) -> float:
        return sum(self.values) / len(self.values)

    def reset(self) -> None:
        self.values = []


def test_metric_objects_in_training() -> None:
    table, shared, own, of_a, of_b = MetricTable(), Mean(), Mean(), Mean(), Mean()
    for loader_name, value in (("a", 1.0), ("b", 3.0)):
        shared.update(value)
        table.add(loader_name, "m", shared)
    for loader_name, name, found, value in (("a", "o", own, 5.0), ("a", "p", of_a, 6.0), ("b", "p", of_b, 7.0)):
        found.update(value)
        table.add(loader_name, name, found)
    of_all = {"train/m": 2.0, "train/o": 5.0}
    assert table.means(ALONE, per_loader=True) == {**of_all, "train/a/o": 5.0, "train/a/p": 6.0, "train/b/p": 7.0}
    assert table.means(ALONE, per_loader=False) == of_all
    table.clear()
    assert own.values == shared.values == []


def test_the_row_of_a_shared_object_keeps_its_name_where_one_loader_gave_all_batches() -> None:
    shared = Mean()

    def accuracy_step(trainer: Any, *place: Any) -> Any:
        shared.update(1.0)
        return {**step(trainer, *place), "accuracy": shared}

    multi = mtf.MultiDataLoaderConfig(sampling_strategy=mtf.SamplingStrategy.SEQUENTIAL, dataloader_names=["a", "b"])
    run = trainer(config(multi=multi, logging=quiet(2)), training_step=accuracy_step)
    for max_steps in (2, 4):
        run.fit([loader(8, 1), loader(8, 2)], max_steps=max_steps)
        assert run.metrics["train/accuracy"] == 1.0


def test_a_metric_that_training_changes_in_place_counts_as_it_was_returned() -> None:
    """A parameter or a buffer: its values of the steps, whenever the row is written and the state is taken."""
    returned: list[float] = []

    def weight_step(trainer: Any, *place: Any) -> Any:
        bias = trainer.model[0].bias
        returned.append(bias[0].item())
        return {**step(trainer, *place), "bias": bias[0], "detached": bias.detach()[0]}

    class Look(mtf.TrainerHooks):
        def on_validation_end(self, trainer: Any, metrics: Any) -> None:
            trainer.get_state()

    seldom = mtf.ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=3)
    settings = config(logging=quiet(8), validation=seldom)
    runs = [trainer(settings, training_step=weight_step, validation_step=step) for _ in range(2)]
    runs[1].add_hook(Look())
    for run in runs:
        run.fit([loader(32, 1)], [loader(8, 2)])
    assert runs[0].metrics["train/bias"] == sum(returned[:8]) / 8
    assert runs[0].metrics["train/detached"] == runs[0].metrics["train/bias"]
    assert runs[0].get_state() == runs[1].get_state()


def test_a_metric_object_holds_nothing_of_a_training_that_a_state_went_back_before() -> None:
    mean = Mean()

    def with_object(trainer: Any, batch: Any, *place: Any) -> dict[str, Any]:
        mean.update(float(trainer.num_batches))
        return {**step(trainer, batch, *place), "mean": mean}

    run = trainer(training_step=with_object)
    run.fit(loader(16, 1), max_steps=1)
    state = run.get_state()
    run.fit(loader(16, 1), max_steps=3)
    assert run.metrics["train/dl0/mean"] == 1.0
    run.load_state(state)
    run.fit(loader(16, 1), max_steps=3)
    assert run.metrics["train/dl0/mean"] == 1.5


def test_proportions() -> None:
    row = proportions(["a", "b"], list(np.array([6, 2])), [5.0, 5.0])
    assert {type(value) for value in row.values()} == {float}
    assert row == {
        "loader_proportions/a_batches": 0.75,
        "loader_proportions/a_divergence": 0.25,
        "loader_proportions/b_batches": 0.25,
        "loader_proportions/b_divergence": 0.25,
    }
    assert proportions(["a"], [0], [0.0])["loader_proportions/a_batches"] == 0.0


def weighted(weights: list[float], order: mtf.WeightedOrder = mtf.WeightedOrder.EVEN) -> mtf.MultiDataLoaderConfig:
    return mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        weighted_order=order,
        dataloader_weights=weights,
        dataloader_names=["a", "b"],
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=40,
    )


def quiet(every: int, **fields: Any) -> mtf.LoggingConfig:
    return mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=every, **fields)


def test_expected_share_follows_weight_changes() -> None:
    class Change(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 9:
                trainer.multi_loader_manager.update_weights([0.0, 1.0])

    run = trainer(config(multi=weighted([1.0, 0.0 + 1e-9]), logging=quiet(20)), hooks=[Change()])
    run.fit([loader(8, 1), loader(8, 2)], max_steps=20)
    assert run.metrics["loader_proportions/a_batches"] == 0.5
    assert run.metrics["loader_proportions/a_divergence"] == pytest.approx(0.0, abs=1e-6)
    assert run.metrics["loader_proportions/b_divergence"] == pytest.approx(0.0, abs=1e-6)


def test_random_order_diverges_from_its_weights_and_says_by_how_much() -> None:
    run = trainer(config(multi=weighted([0.5, 0.5], mtf.WeightedOrder.RANDOM), logging=quiet(7)))
    run.fit([loader(8, 1), loader(8, 2)], max_steps=7)
    share = run.metrics["loader_proportions/a_batches"]
    assert share * 7 == pytest.approx(round(share * 7))
    assert run.metrics["loader_proportions/a_divergence"] == pytest.approx(abs(share - 0.5))


def test_log_and_what_is_left_out() -> None:
    def logging_step(trainer: Any, *place: Any) -> Any:
        trainer.log("mine", float(trainer.global_step))
        return {**step(trainer, *place), "extra": torch.tensor(2.0)}

    settings = quiet(4, log_per_loader_metrics=False, log_loader_proportions=False)
    run = trainer(config(["a"], logging=settings), training_step=logging_step)
    run.fit([loader(16, 1)])
    assert run.metrics["mine"] == 1.5
    assert run.metrics["train/extra"] == 2.0
    assert not [name for name in run.metrics if "proportions" in name or name.startswith("train/a/")]


def test_an_unfinished_interval_is_shown_and_goes_on() -> None:
    """Leaving fit inside an interval shows its mean, and changes nothing for the next row."""
    parts, whole = trainer(config(logging=quiet(4))), trainer(config(logging=quiet(4)))
    parts.fit([loader(32, 1)], max_steps=3)
    assert parts.metrics["train/loss"] > 0
    parts.fit([loader(32, 1)], max_steps=6)
    whole.fit([loader(32, 1)], max_steps=6)
    assert parts.get_state().diff(whole.get_state()) == []
    assert parts.metrics["train/loss"] == whole.metrics["train/loss"]


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar.Progress("epoch 0", 10, 2)
    bar.advance(3)
    bar.describe({"loss": "0.5"})
    bar.close()
    bar.describe({"loss": "0.4"})
    assert capsys.readouterr().err.startswith("epoch 0: batch 5/10 [")


def test_rows_on_the_console_are_not_said_twice(capsys: pytest.CaptureFixture[str]) -> None:
    shown = mtf.LoggingConfig(logger_type="console", log_scalars_every_n_steps=2)
    trainer(config(logging=shown)).fit([loader(16, 1)], max_steps=4)
    out, err = capsys.readouterr()
    assert [line.partition(" · ")[0] for line in out.splitlines()] == ["update 2", "update 4"]
    assert [line for line in err.splitlines() if line.startswith("epoch")] == []


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)  # else its bar is shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress_bar.Progress("epoch 0", 10, 2)
    for _ in range(8):
        bar.advance(1)
    bar.describe({"loss": "0.5"})
    bar._bar.refresh()
    bar.close()
    shown = capsys.readouterr().err
    assert "epoch 0" in shown
    assert "10/10" in shown
    assert "loss=0.5" in shown


def test_progress_can_be_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(config(logging=quiet(1))).fit([loader(8, 1)])
    assert capsys.readouterr().err == ""
    shown = mtf.LoggingConfig(logger_type="none", log_scalars_every_n_steps=1, log_loader_proportions=False)
    trainer(config(["a", "b"], logging=shown)).fit([loader(8, 1), loader(8, 2)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("epoch 0: batch 2/4 [")
    assert "loss=" in lines[1]
    assert "wait=" in lines[1]
    assert "mix=50%/50%" in lines[1]
    assert re.fullmatch(r"update 4 after .+ · train/loss [\d.e-]+", lines[4])


def test_the_closing_line_has_the_loss_of_the_last_row_also_inside_an_epoch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = mtf.LoggingConfig(logger_type="none", log_scalars_every_n_steps=10)
    run = trainer(config(["a"], logging=shown))
    run.fit([loader(16, 1)], max_steps=6)  # the first epoch's row came after update 4
    loss = f"{run.metrics['train/loss']:.4g}"
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"train/loss {loss}")


def test_results_stay_in_the_bar_and_a_validation_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = mtf.LoggingConfig(logger_type="jsonl", log_dir=str(tmp_path), log_scalars_every_n_steps=2)
    saving = mtf.CheckpointConfig(root_dir=str(tmp_path / "saved"), save_at_end=True)
    run = trainer(config(["a"], logging=settings, checkpoint=saving, experiment_name="x"))
    with caplog.at_level("INFO", "mtf"):
        run.fit([loader(16, 1)], [loader(8, 2)], max_epochs=2)
    lines = capsys.readouterr().err.splitlines()
    validations = [line for line in lines if line.startswith("validation")]
    assert len(validations) == 2
    assert re.fullmatch(r"validation after update 4 \(epoch 0\): val/loss [\d.e-]+", validations[0])
    second_epoch = [line for line in lines if line.startswith("epoch 1")]
    assert all("val/loss=" in line and "update=" in line for line in second_epoch)
    path = tmp_path / "saved" / "step-00000008"
    closing = (
        rf"update 8 after .+ · val/loss \S+ \(best \S+ after update \d\) · checkpoint {path} · mtf report {tmp_path}/x"
    )
    assert re.fullmatch(closing, lines[-1])
    said = [record.getMessage() for record in caplog.records]
    assert f"saved {path} after update 8" in said
    assert lines[-1] in said
    again = trainer(config(["a"], logging=settings, checkpoint=saving, experiment_name="x"))
    with caplog.at_level("INFO", "mtf"):
        again.fit([loader(16, 1)], max_epochs=3, resume_from="latest")
    assert any(record.getMessage().startswith(f"resumed from {path} after update 8") for record in caplog.records)


def test_a_console_shows_a_validation_once(capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(config(["a"], logging=mtf.LoggingConfig(log_scalars_every_n_steps=100)))
    run.fit([loader(16, 1)], [loader(8, 2)], max_epochs=1)
    said = capsys.readouterr()
    assert "update 4 · val/loss " in said.out
    assert "validation after" not in said.err


def test_a_program_that_prints_its_log_shows_the_closing_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler, log = logging.StreamHandler(sys.stderr), logging.getLogger("mtf")
    before = log.level
    log.addHandler(handler)
    try:
        for level, times in ((logging.INFO, 1), (logging.WARNING, 1)):
            log.setLevel(level)
            trainer(config(["a"], logging=mtf.LoggingConfig(logger_type="none"))).fit([loader(16, 1)], max_epochs=1)
            assert capsys.readouterr().err.count("update 4 after") == times
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def test_the_closing_line_says_how_to_open_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = mtf.LoggingConfig(logger_type="tensorboard", log_dir=str(tmp_path))
    trainer(config(["a"], logging=shown, experiment_name="x")).fit([loader(16, 1)], max_epochs=1)
    assert capsys.readouterr().err.splitlines()[-1].endswith(f" · tensorboard --logdir {tmp_path / 'x'}")


def test_a_reason_to_stop_is_in_the_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Stop(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.request_stop("enough")

    shown = mtf.LoggingConfig(logger_type="none")
    trainer(config(["a"], logging=shown), hooks=[Stop()]).fit([loader(16, 1)])
    assert "(enough)" in capsys.readouterr().err.splitlines()[-1]


def test_rich_shows_the_bar_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    bar = progress_bar.Progress("epoch 3", 10, 2, {"val/loss": "0.7"})
    assert isinstance(bar._bar, progress_bar._RichBar)
    for _ in range(8):
        bar.advance(1)
    progress_bar.print_line("between [bold] lines")
    bar.describe({"loss": "0.5"})
    assert bar._bar._progress.tasks[0].completed == 10
    bar.close()
    bar.close()
    assert progress_bar._RichBar.shown is None
    assert "between [bold] lines" in capsys.readouterr().err


def test_without_rich_tqdm_shows_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress_bar.Progress("epoch 0", 10, 2)
    assert type(bar._bar).__name__ == "tqdm"
    bar.close()
