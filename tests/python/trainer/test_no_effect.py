"""Settings and assignments that nothing reads: each is one clear message, said once, with a way out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_tools import config, loader, trainer

import mtf


def said(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in found]


def fit(val: Any = None, **settings: Any) -> list[str]:
    return said(lambda: trainer(config(**settings)).fit(loader(8, 1), val, max_epochs=2))


V, C = mtf.ValidationConfig, mtf.CheckpointConfig


@pytest.mark.parametrize(
    ("settings", "validates", "words"),
    [
        ({"validation": V(frequency="EVERY_N_STEPS", every_n_steps=2)}, False, "without validation loaders: pass val_"),
        ({"validation": V(aggregation_fn=lambda row: {})}, False, r"\['aggregation_fn'\] have no effect without valid"),
        ({"validation": V(primary_metrics={"dl0": "loss"})}, True, "primary_metrics has no effect .* set PRIMARY_ME"),
        (
            {"validation": V(validation_weights=[1.0], aggregation="MACRO_AVG_EQUAL_LOADERS")},
            True,
            r"\['aggregation'\] have no effect beside validation_weights",
        ),
        (
            {"validation": V(validation_weights=[1.0], aggregation_fn=lambda row: {"x": 1.0})},
            True,
            r"\['validation_weights'\] have no effect beside aggregation_fn",
        ),
        ({"validation": V(per_loader_metrics=False, global_metrics=False)}, True, "a validation gives no metric"),
        (
            {"checkpoint": C(max_checkpoints=7)},
            False,
            r"\['max_checkpoints'\] have no effect, because nothing",
        ),
        ({"checkpoint": C(asynchronous=True)}, False, r"\['asynchronous'\] have no effect, because nothing is saved"),
        ({"checkpoint": C(filename_template="s-{step}")}, False, "set save_every_n_steps"),
        ({"checkpoint": C(monitor_mode="max")}, False, "monitor_mode has no effect without monitor_metric"),
        ({"logging": {"wandb_project": "x"}}, False, "logging.wandb_project has no effect .*: set 'wandb'"),
        ({"logging": {"tensorboard_log_dir": "x"}}, False, "tensorboard_log_dir has no effect .*: set 'tensorboard'"),
        ({"logging": {"mlflow_experiment": "x"}}, False, "mlflow_experiment has no effect .*: set 'mlflow'"),
        ({"logging": {"log_dir": "x"}}, False, "log_dir has no effect .*: set 'jsonl' or 'csv' or"),
    ],
)
def test_a_setting_that_nothing_reads_is_named_once(settings: dict[str, Any], validates: bool, words: str) -> None:
    if "logging" in settings:
        settings = {"logging": mtf.LoggingConfig(logger_type="none", progress_bar=False, **settings["logging"])}
    texts = fit([loader(8, 2)] if validates else None, **settings)
    assert len(texts) == 1, texts
    with pytest.warns(UserWarning, match=words):
        warnings.warn(texts[0], stacklevel=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"ddp": mtf.DDPConfig(strategy="fsdp")},
            r"ddp: \['strategy'\] have no effect, because this process was started",
        ),
        (
            {"ddp": mtf.DDPConfig(bucket_cap_mb=1, fsdp_wrap=["Linear"])},
            r"\['bucket_cap_mb', 'fsdp_wrap'\] have no eff",
        ),
        (
            {"checkpoint": C(root_dir="elsewhere"), "preemption": mtf.PreemptionConfig(signals=())},
            r"\['root_dir'\] have no effect, because nothing is saved: set",
        ),
        (
            {"checkpoint": C(keep_every_n_steps=2)},
            r"\['keep_every_n_steps'\] have no effect, because nothing is saved u",
        ),
    ],
)
def test_a_setting_for_other_processes_and_a_folder_that_nothing_writes_are_named(
    settings: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = fit(**settings)
    assert len(texts) == 1, texts
    assert re.search(words, texts[0]), texts
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("saves", "limits", "words"),
    [
        ({"save_every_n_epochs": 1}, {"max_steps": 1}, "save_every_n_epochs=1 .* after update 1 and 0 whole epochs"),
        ({"save_every_n_epochs": 3}, {"max_epochs": 2}, "save_every_n_epochs=3 .* after update 4 and 2 whole epochs"),
        (
            {"save_every_n_epochs": 2},
            {"max_steps": 3, "max_epochs": 9},
            "after update 3 and 1 whole epoch: set save_at",
        ),
        ({"save_every_n_steps": 5}, {"max_epochs": 2}, "save_every_n_steps=5 .* after update 4"),
        ({"save_every_n_steps": 5, "save_every_n_epochs": 2}, {"max_steps": 3}, "steps=5 and save_every_n_epochs=2"),
        ({"save_every_n_epochs": 1}, {"max_steps": 2}, None),  # the epoch ends with its last update
        ({"save_every_n_epochs": 2}, {"max_epochs": 2}, None),
        ({"save_every_n_steps": 4}, {"max_epochs": 2}, None),
        ({"save_every_n_epochs": 1, "save_at_end": True}, {"max_steps": 1}, None),
    ],
)
def test_a_run_that_ends_before_its_first_save_is_named_where_it_begins(
    saves: dict[str, Any], limits: dict[str, int], words: str | None, tmp_path: Path
) -> None:
    one = trainer(config(checkpoint=C(root_dir=str(tmp_path / "run"), **saves)))
    texts = said(lambda: one.fit(loader(8, 1), **limits))
    saved = any((tmp_path / "run").glob("step-*"))
    assert (len(texts), saved) == ((0, True) if words is None else (1, False)), texts
    if words is not None:
        assert re.search(words, texts[0]), texts


def test_settings_that_are_read_are_not_named(tmp_path: Path) -> None:
    every = {
        "validation": V(frequency="EVERY_N_STEPS", every_n_steps=1, validation_weights=[1.0]),
        "checkpoint": C(root_dir=str(tmp_path), save_every_n_steps=1, max_checkpoints=2, monitor_metric="val/loss"),
        "logging": mtf.LoggingConfig("jsonl", log_dir=str(tmp_path), progress_bar=False),
    }
    assert fit([loader(8, 2)], **every) == []
    assert fit(checkpoint=C(root_dir=str(tmp_path / "x"))) == []  # for the save on a signal


def test_a_run_with_a_folder_that_got_no_checkpoint_says_so_in_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(
        checkpoint=C(root_dir=str(tmp_path / "x")),
        logging=mtf.LoggingConfig("none", progress_bar=True, model_summary=0),
    )
    trainer(settings).fit(loader(8, 1), max_epochs=1)
    assert "no checkpoint, because nothing asked for one (checkpoint.save_at_end)" in capsys.readouterr().err
    settings.checkpoint.save_at_end = True
    trainer(settings).fit(loader(8, 1), max_epochs=1)
    assert "no checkpoint" not in capsys.readouterr().err


class Sets(mtf.TrainerHooks):
    def __init__(self, change: Callable[[Any], Any], event: str = "on_train_start") -> None:
        self.change = change
        setattr(self, event, lambda trainer, *_: self.change(trainer.config))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda c: setattr(c, "seed", 4), "seed"),
        (lambda c: setattr(c.checkpoint, "save_every_n_steps", 1), "checkpoint.save_every_n_steps"),
        (lambda c: setattr(c, "loss_weights_per_loader", {"dl0": 0.1}), "loss_weights_per_loader"),
        (lambda c: setattr(c.performance, "precision", "bf16"), "performance.precision"),
    ],
)
def test_a_setting_that_a_hook_changes_too_late_is_named_once(change: Any, name: str) -> None:
    texts = said(lambda: trainer(config(), hooks=[Sets(change)]).fit(loader(8, 1), max_epochs=3))
    assert len(texts) == 1
    assert f"['{name}']; make a new trainer" in texts[0]


@pytest.mark.parametrize(
    ("change", "name", "way_out"),
    [
        (lambda c: setattr(c, "experiment_name", "other"), "experiment_name", "make a new trainer"),
        (lambda c: setattr(c.logging, "logger_type", "jsonl"), "logging.logger_type", "make a new trainer"),
        (lambda c: setattr(c.logging, "log_dir", "elsewhere"), "logging.log_dir", "make a new trainer"),
        (lambda c: setattr(c.performance, "fetch_timeout_s", 9.0), "performance.fetch_timeout_s", "make a new trainer"),
        (lambda c: setattr(c.preemption, "exit_code", 3), "preemption.exit_code", "they count from the next fit on"),
        (lambda c: setattr(c.preemption, "signals", ()), "preemption.signals", "they count from the next fit on"),
    ],
)
def test_what_fit_has_read_already_is_named_once(change: Any, name: str, way_out: str) -> None:
    for event in ("on_epoch_start", "on_epoch_end"):
        one = trainer(config(), hooks=[Sets(change, event)])
        texts = said(lambda one=one: one.fit(loader(8, 1), max_epochs=3))  # type: ignore[misc]
        assert len(texts) == 1, texts
        assert f"['{name}']" in texts[0]
        assert way_out in texts[0]


def test_a_logger_that_is_chosen_in_time_is_used_and_one_that_comes_later_named(tmp_path: Path) -> None:
    def log(settings: Any) -> None:
        settings.logging.logger_type, settings.logging.log_dir = "jsonl", str(tmp_path)

    one = trainer(config(), hooks=[Sets(log)])
    assert said(lambda: one.fit(loader(8, 1), max_epochs=1)) == []
    assert list(tmp_path.rglob("metrics.jsonl"))
    one.config.logging.logger_type = "csv"
    (text,) = said(lambda: one.fit(loader(8, 1), max_epochs=2))
    assert "['logging.logger_type']; make a new trainer" in text


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("hooks", [], "call trainer.add_hook"),
        ("device", torch.device("meta"), "make a new trainer on it"),
    ],
)
def test_what_a_trainer_was_made_with_cannot_be_set_later(name: str, value: Any, words: str) -> None:
    one = trainer()
    before = dict(vars(one))
    with pytest.raises(mtf.UsageError, match=words):
        setattr(one, name, value)
    assert vars(one) == before


class Mine(mtf.Trainer):
    schedulers: Any = ()


def test_attributes_that_belong_elsewhere_are_named_and_a_users_own_are_not() -> None:
    one = trainer()
    with pytest.warns(UserWarning, match="max_epochs is read by nothing.*give it to fit"):
        one.max_epochs = 3  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="schedulers is read by nothing.*to the constructor"):
        one.schedulers = []  # type: ignore[attr-defined]
    one.counter = 1  # type: ignore[attr-defined]
    mine = Mine(config(), one.model, one.optimizers)
    mine.schedulers = [1]


def test_a_mixtures_config_that_was_changed_and_not_rebuilt_is_named_once_for_each_change() -> None:
    with mtf.MultiLoader({"a": [1] * 4, "b": [2] * 4}) as one:
        one.config.burst_size = 2
        texts = said(lambda: [list(one), list(one)])
        assert len(texts) == 1
        assert "config.burst_size of this MultiLoader was changed" in texts[0]
        assert "rebuild_schedule()" in texts[0]
        one.rebuild_schedule()
        assert said(lambda: list(one)) == []
        one.config = mtf.MultiDataLoaderConfig(sampling_strategy="SEQUENTIAL")
        assert len(said(lambda: list(one))) == 1


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("clip_grad_norm", "performance.clip_grad_norm"),
        ("gradient_acumulation_steps", "performance.gradient_accumulation_steps"),
        ("save_every_n_steps", "checkpoint.save_every_n_steps"),
        ("sampling_strategy", "multi.sampling_strategy"),
        ("loss_weights_per_loaders", "loss_weights_per_loader"),
    ],
)
def test_a_setting_assigned_to_the_wrong_part_is_named(name: str, meant: str) -> None:
    settings = config()
    with pytest.warns(UserWarning, match=f"did you mean '{meant}'"):
        setattr(settings, name, 3)
    assert said(lambda: setattr(config(), "use_domain_adversarial", True)) == []
