"""Every field of every configuration changes something: a field without a case here fails."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from trainer_tools import Trace, config, loader, model, step, trainer

import mtf
from mtf.config.base import Config

Case = Callable[[Path], None]
CASES: dict[tuple[str, str], Case] = {}


def case(owner: type[Config], *names: str) -> Callable[[Case], Case]:
    """Declares a test as the case of these fields."""

    def declare(function: Case) -> Case:
        for name in names:
            assert (owner.__name__, name) not in CASES, f"two cases for {owner.__name__}.{name}"
            CASES[owner.__name__, name] = function
        return function

    return declare


def configurations(owner: type[Config]) -> Iterator[type[Config]]:
    """``owner`` and every configuration inside it."""
    yield owner
    for hint in typing.get_type_hints(owner).values():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for option in options:
            if isinstance(option, type) and issubclass(option, Config) and option is not owner:
                yield from configurations(option)


FIELDS = sorted({(o.__name__, f.name) for o in configurations(mtf.TrainerConfig) for f in dataclasses.fields(o)})


def test_no_field_is_without_a_case_and_no_case_without_a_field() -> None:
    assert sorted(CASES) == FIELDS


@pytest.mark.filterwarnings("ignore:.*held the log of another run")
@pytest.mark.parametrize(("owner", "name"), FIELDS)
def test_every_field_changes_something(owner: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CASES[owner, name](tmp_path)


def test_defaults_survive_a_round_trip() -> None:
    assert mtf.TrainerConfig.from_dict(mtf.TrainerConfig().to_dict()) == mtf.TrainerConfig()
    json.dumps(mtf.TrainerConfig(validation=mtf.ValidationConfig(aggregation_fn=lambda m: {})).describe())


def test_the_users_own_settings() -> None:
    settings = mtf.TrainerConfig(extras={"alpha": 1})
    settings.beta = 2
    assert (settings.alpha, settings.beta, settings.extras) == (1, 2, {"alpha": 1, "beta": 2})
    with pytest.raises(AttributeError, match=r"has no 'gamma'.*extras"):
        settings.gamma  # noqa: B018
    with pytest.raises(AttributeError, match="did you mean 'performance'"):
        settings.perfomance  # noqa: B018
    with pytest.warns(UserWarning, match=r"config\.seeds is kept in config.extras.*did you mean 'seed'"):
        settings.seeds = 3
    with pytest.raises(mtf.ConfigError, match=r"extras: \['seed'\] are settings of mtf"):
        mtf.TrainerConfig(extras={"seed": 1})


def test_two_names_of_the_mixture() -> None:
    multi = mtf.MultiDataLoaderConfig(burst_size=3)
    assert mtf.TrainerConfig(train_loader_config=multi).multi is multi
    assert mtf.TrainerConfig(multi=multi).train_loader_config is multi
    assert mtf.TrainerConfig.from_dict({"train_loader_config": {"burst_size": 3}}).multi == multi
    with pytest.raises(mtf.ConfigError, match="two names of one setting"):
        mtf.TrainerConfig(multi=multi, train_loader_config=multi)


def test_a_copy_with_other_settings() -> None:
    settings = mtf.TrainerConfig(multi=mtf.MultiDataLoaderConfig(burst_size=3), extras={"gamma": 0.5})
    other = dataclasses.replace(settings, seed=7)
    assert (other.multi, other.seed, other.gamma) == (settings.multi, 7, 0.5)
    multi = mtf.MultiDataLoaderConfig(burst_size=2)
    assert dataclasses.replace(settings, multi=multi).multi is multi


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"performence": {}}, "no field 'performence'; did you mean 'performance'"),
        ({"performance": {"precision": "fp61"}}, "precision must be one of .*'fp61'; did you mean 'fp16'"),
        ({"performance": {"gradient_accumulation_steps": 0}}, "must be an int of at least 1, it is 0"),
        ({"performance": {"clip_grad_norm": -1.0}}, "clip_grad_norm must be positive and finite"),
        ({"validation": {"frequency": "every_n_steps"}}, "every_n_steps is required"),
        ({"validation": {"aggregation": "custom"}}, "CUSTOM needs validation.aggregation_fn"),
        ({"validation": {"validation_weights": [0, 0]}}, "must not all be zero"),
        ({"validation": {"validation_weights": [1, -1]}}, r"validation_weights\[1\] must be finite and not negative"),
        ({"checkpoint": {"save_best": True}}, "save_best needs checkpoint.monitor_metric"),
        ({"checkpoint": {"filename_template": "last"}}, "filename_template must contain {step}"),
        ({"preemption": {"signals": ["SIGTREM"]}}, r"signals\[0\] is no signal .*did you mean 'SIGTERM'"),
        ({"preemption": {"exit_code": 300}}, r"exit_code must be in \[0, 255\]"),
        ({"logging": {"composite_loggers": ["csv"]}}, "exactly when logging.logger_type is 'composite'"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\*\*64\)"),
    ],
)
def test_bad_settings_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        mtf.TrainerConfig.from_dict(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mtf.TrainerConfig(seed=1.5), "seed must be an int, it is 1.5"),  # type: ignore[arg-type]
        (lambda: mtf.TrainerConfig(seed=None), "seed must be an int, it is None"),  # type: ignore[arg-type]
        (
            lambda: mtf.ValidationConfig(validation_weights={"a": 1.0}),  # type: ignore[arg-type]
            "validation_weights must be a list, one weight per validation loader in their order, got {'a': 1.0}",
        ),
        (
            lambda: mtf.ValidationConfig(validation_weights=["1"]),  # type: ignore[list-item]
            r"validation_weights\[0\] must be finite and not negative, it is '1'",
        ),
    ],
)
def test_settings_of_another_type_are_refused(make: Any, message: str) -> None:
    with pytest.raises(mtf.ConfigError, match=message):
        make()


def test_settings_assigned_after_the_trainer_was_made() -> None:
    """They hold from then on, or a warning says that they don't."""
    norms: list[float] = []

    class Norms(mtf.TrainerHooks):
        def on_gradient_clip(self, trainer: Any, grad_norm: Any) -> None:
            norms.append(grad_norm.item())

    run, as_made = trainer(config(["a"]), hooks=[Norms()]), trainer(config(["a"]))
    run.config.performance.clip_grad_norm = 1e6
    run.config.logging.log_scalars_every_n_steps = 2
    run.fit([loader(8, 1, shuffle=True)])
    assert len(norms) == 2
    assert run.metrics["lr/optimizer0"] == 0.1
    run = trainer(config(["a"]))
    run.config.seed = 5
    run.config.performance.precision = "bf16"
    run.config.loss_weights_per_loader["a"] = 2.0
    changed = "'seed', 'loss_weights_per_loader', 'performance.precision'"
    with pytest.warns(UserWarning, match=rf"after the trainer had read them, which has no effect: \[{changed}\]"):
        run.fit([loader(8, 1, shuffle=True)])
    as_made.fit([loader(8, 1, shuffle=True)])
    assert run.get_state() == as_made.get_state()


# What cases share ------------------------------------------------------------------------------------------------


def two() -> list[Any]:
    return [loader(20, 1), loader(12, 2)]


def drawn(epochs: int = 1, given: Any = None, **fields: Any) -> list[list[str]]:
    """Names of the loaders of each step, per epoch."""
    fields.setdefault("dataloader_names", ["a", "b"])
    with mtf.MultiLoader(given or two(), mtf.MultiDataLoaderConfig(**fields)) as mixed:
        return [[batch.name for batch in mixed] for _ in range(epochs)]


def weighted(**fields: Any) -> list[list[str]]:
    fields.setdefault("epoch_length_policy", mtf.EpochLengthPolicy.FIXED_NUM_STEPS)
    fields.setdefault("steps_per_epoch", 40)
    fields.setdefault("dataloader_weights", None if "weight_curve" in fields else [3.0, 1.0])
    return drawn(sampling_strategy=mtf.SamplingStrategy.WEIGHTED, **fields)


def fitted(given: Any = None, validation: Any = None, max_epochs: int = 1, **settings: Any) -> mtf.Trainer:
    arguments = {k: settings.pop(k) for k in ("hooks", "training_step", "optimizers", "model") if k in settings}
    run = trainer(config(["a", "b"], **settings), **arguments)
    run.fit(given or two(), validation, max_epochs=max_epochs)
    return run


def weights(run: mtf.Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.is_symlink())


def saved(root: Path, max_epochs: int = 1, validation: Any = None, **fields: Any) -> list[str]:
    fitted(validation=validation, max_epochs=max_epochs, checkpoint=mtf.CheckpointConfig(root_dir=str(root), **fields))
    return names(root) if root.exists() else []


class Signal(mtf.TrainerHooks):
    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_train_batch_end(self, *_: Any) -> None:
        os.kill(os.getpid(), self.number)


# The mixture -----------------------------------------------------------------------------------------------------


@case(mtf.MultiDataLoaderConfig, "sampling_strategy")
def _(_: Path) -> None:
    assert drawn()[0][:4] == ["a", "b", "a", "b"]
    assert drawn(sampling_strategy=mtf.SamplingStrategy.SEQUENTIAL)[0][:4] == ["a"] * 4


@case(mtf.MultiDataLoaderConfig, "dataloader_weights")
def _(_: Path) -> None:
    assert weighted(dataloader_weights=[1.0, 0.0])[0] == ["a"] * 40


@case(mtf.MultiDataLoaderConfig, "alternating_pattern")
def _(_: Path) -> None:
    assert drawn(sampling_strategy=mtf.SamplingStrategy.ALTERNATING, alternating_pattern=[1, 1, 0])[0][:3] == list(
        "bba"
    )


@case(mtf.MultiDataLoaderConfig, "burst_size")
def _(_: Path) -> None:
    assert drawn(burst_size=2)[0][:4] == ["a", "a", "b", "b"]


@case(mtf.MultiDataLoaderConfig, "dataloader_names")
def _(_: Path) -> None:
    assert set(drawn(dataloader_names=["x", "y"])[0]) == {"x", "y"}


@case(mtf.MultiDataLoaderConfig, "epoch_length_policy")
def _(_: Path) -> None:
    assert len(drawn()[0]) == 8
    assert len(drawn(epoch_length_policy=mtf.EpochLengthPolicy.MAX_LENGTH)[0]) == 9


@case(mtf.MultiDataLoaderConfig, "steps_per_epoch")
def _(_: Path) -> None:
    assert len(drawn(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=5)[0]) == 5


@case(mtf.MultiDataLoaderConfig, "cycle_short_loaders")
def _(_: Path) -> None:
    assert drawn()[0].count("b") == 4
    assert drawn(cycle_short_loaders=False)[0].count("b") == 3


@case(mtf.MultiDataLoaderConfig, "drop_last")
def _(_: Path) -> None:
    given = [loader(21, 1), loader(12, 2)]
    assert len(drawn(given=given)[0]) == 9
    assert len(drawn(given=given, drop_last=True)[0]) == 8


@case(mtf.MultiDataLoaderConfig, "weighted_order")
def _(_: Path) -> None:
    assert weighted(weighted_order=mtf.WeightedOrder.EVEN) != weighted(weighted_order=mtf.WeightedOrder.RANDOM)


@case(mtf.MultiDataLoaderConfig, "continue_across_epochs")
def _(_: Path) -> None:
    def begins(goes_on: bool) -> int:
        settings = mtf.MultiDataLoaderConfig(
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=2, continue_across_epochs=goes_on
        )
        with mtf.MultiLoader([loader(20, 1)], settings) as mixed:
            return [[batch.batch for batch in mixed] for _ in range(2)][1][0]

    assert (begins(True), begins(False)) == (2, 0)


def curve(**fields: Any) -> list[str]:
    given: dict[str, Any] = {"points": [(0, [1.0, 0.0]), (20, [0.0, 1.0])], "every": 1, **fields}
    return weighted(weight_curve=mtf.WeightCurve(**given), weighted_order=mtf.WeightedOrder.EVEN)[0]


@case(mtf.MultiDataLoaderConfig, "weight_curve")
@case(mtf.WeightCurve, "points")
def _(_: Path) -> None:
    assert curve() == ["a"] * 20 + ["b"] * 20


@case(mtf.WeightCurve, "interpolation")
def _(_: Path) -> None:
    assert "b" in curve(interpolation=mtf.Interpolation.LINEAR)[:20]


@case(mtf.WeightCurve, "every")
def _(_: Path) -> None:
    assert "b" not in curve(interpolation=mtf.Interpolation.LINEAR, every=20)[:20]


@case(mtf.WeightCurve, "unit")
def _(_: Path) -> None:
    rows = {"a": torch.arange(50), "b": torch.arange(50)}
    for unit, first in (("batches", 20), ("samples", 5)):
        points = mtf.WeightCurve([(0, [1, 0]), (20, [0, 1])], unit=unit)
        blend = mtf.Blend(rows, weight_curve=points, global_batch_size=4)
        assert blend.samples(first).source.tolist() == [1] * 4
        assert blend.samples(first - 1).source.tolist() == [0] * 4


@case(mtf.MultiDataLoaderConfig, "seed")
def _(_: Path) -> None:
    assert weighted(seed=1) != weighted(seed=2)


def held(until: int = 0, **fields: Any) -> dict[str, Any]:
    """What the engine held while a consumer read from memory, which waits once until so many batches are held."""
    rows = mtf.ArrayLoader(torch.zeros(4096, 256), batch_size=64)
    settings = mtf.MultiDataLoaderConfig(**{"prefetch_workers": 1, "prefetch_batches": 8, **fields})
    with mtf.MultiLoader([rows], settings) as mixed:
        deadline = time.monotonic() + 20
        for _ in mixed:
            while mixed.stats()["engine"]["peak_batches_held"] < until and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.001)
        engine: dict[str, Any] = mixed.stats()["engine"]
    return engine


@case(mtf.MultiDataLoaderConfig, "prefetch_batches")
def _(_: Path) -> None:
    assert held(until=8)["peak_batches_held"] >= 8
    assert held(until=2, prefetch_batches=2)["peak_batches_held"] <= 3


@case(mtf.MultiDataLoaderConfig, "prefetch_bytes")
def _(_: Path) -> None:
    batch = 64 * 256 * 4
    assert held(until=8)["peak_bytes_held"] > 4 * batch
    assert held(until=2, prefetch_bytes=2 * batch)["peak_bytes_held"] <= 3 * batch


@case(mtf.MultiDataLoaderConfig, "prefetch_workers")
def _(_: Path) -> None:
    nobody = held(prefetch_workers=0)
    assert nobody["num_in_caller"] == nobody["num_taken"] == 64
    assert held(until=8)["num_in_caller"] < 64


@case(mtf.MultiDataLoaderConfig, "shared_workers")
def _(_: Path) -> None:
    loaders = [DataLoader(range(8), 4, num_workers=2) for _ in range(2)]  # type: ignore[arg-type]
    for shared_workers, expected in ((None, 4), (1, 1)):
        with mtf.MultiLoader(loaders, mtf.MultiDataLoaderConfig(shared_workers=shared_workers)) as mixed:
            batches = iter(mixed)
            assert [next(batches).name, next(batches).name] == ["dl0", "dl1"]
            assert len(multiprocessing.active_children()) == expected


# Performance -----------------------------------------------------------------------------------------------------


@case(mtf.PerformanceConfig, "precision")
def _(_: Path) -> None:
    dtypes = []

    def watching(trainer: Any, batch: Any, *place: Any) -> Any:
        dtypes.append(trainer.model(batch[0]).dtype)
        return step(trainer, batch, *place)

    for precision in ("fp32", "bf16"):
        fitted(performance=mtf.PerformanceConfig(precision=precision), training_step=watching)  # type: ignore[arg-type]
    assert set(dtypes) == {torch.float32, torch.bfloat16}


@case(mtf.PerformanceConfig, "gradient_accumulation_steps")
def _(_: Path) -> None:
    assert fitted(performance=mtf.PerformanceConfig(gradient_accumulation_steps=3)).global_step == 3


@case(mtf.PerformanceConfig, "clip_grad_norm")
def _(_: Path) -> None:
    assert not torch.equal(weights(fitted()), weights(fitted(performance=mtf.PerformanceConfig(clip_grad_norm=0.01))))


@case(mtf.PerformanceConfig, "clip_grad_value", "manual_optimization", "activation_checkpointing")
def _(_: Path) -> None:
    """Shown by ``test_clipping.py``, ``test_manual.py`` and ``test_activation_checkpointing.py``."""
    folder = Path(__file__).parents[1] / "trainer"
    for name in ("clipping", "manual", "activation_checkpointing"):
        assert "PerformanceConfig(" in (folder / f"test_{name}.py").read_text()


@case(mtf.PerformanceConfig, "accumulate_by")
def _(_: Path) -> None:
    def losses(by: Any) -> list[int]:
        seen: list[int] = []

        class Watch(mtf.TrainerHooks):
            def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
                seen.append(trainer.num_batches)

        steps = {"0": 1, "1": 3}  # as JSON has it
        performance = mtf.PerformanceConfig(gradient_accumulation_steps=steps, accumulate_by=by)  # type: ignore[arg-type]
        run = trainer(config(performance=performance), hooks=[Watch()])
        run.fit([loader(16, 1)], max_steps=3)
        run.fit([loader(16, 1)], max_epochs=2)
        return seen

    assert losses("epoch") == [1, 2, 3, 4, 7, 8]
    assert losses("update") == [1, 4, 7, 8]
    for wrong in ({1: 2}, {0: 0}, {"a": 1}, 0):
        with pytest.raises(mtf.ConfigError, match=r"performance\.gradient_accumulation_steps"):
            mtf.PerformanceConfig(gradient_accumulation_steps=wrong)  # type: ignore[arg-type]


@case(mtf.PerformanceConfig, "matmul_precision")
def _(_: Path) -> None:
    seen: list[str] = []

    def watching(trainer: Any, *args: Any) -> Any:
        seen.append(torch.get_float32_matmul_precision())
        return step(trainer, *args)

    before = torch.get_float32_matmul_precision()
    run = trainer(config(performance=mtf.PerformanceConfig(matmul_precision="high")), training_step=watching)
    run.fit([loader(4, 1)], max_epochs=1)
    run.validate([loader(4, 1)])
    assert seen == ["high", "high"]
    assert torch.get_float32_matmul_precision() == before != "high"


@case(mtf.PerformanceConfig, "compile_mode")
def _(_: Path) -> None:
    modes: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **options: modes.append(options.get("mode")) or function)
        for mode in (None, "reduce-overhead"):
            trainer(config(performance=mtf.PerformanceConfig(compile_model=True, compile_mode=mode)))  # type: ignore[arg-type]
    assert modes == [None, "reduce-overhead"]
    with pytest.raises(mtf.ConfigError, match="compile_mode has no effect without"):
        mtf.PerformanceConfig(compile_mode="default")


@case(mtf.PerformanceConfig, "compile_model")
def _(_: Path) -> None:
    """In place: the module is the user's, with its own keys, and has a compiled call."""
    net = model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own modules
        run = trainer(config(performance=mtf.PerformanceConfig(compile_model=True)), model=net)
    assert run.model is net
    assert net._compiled_call_impl is not None
    assert model()._compiled_call_impl is None
    assert net.state_dict().keys() == model().state_dict().keys()


@case(mtf.PerformanceConfig, "deterministic")
def _(_: Path) -> None:
    seen = []

    def watching(trainer: Any, *place: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(trainer, *place)

    for enabled in (False, True):
        fitted(performance=mtf.PerformanceConfig(deterministic=enabled), training_step=watching)
    assert seen == [False] * 8 + [True] * 8


@case(mtf.PerformanceConfig, "device_prefetch", "pin_memory")
def _(_: Path) -> None:
    """Both concern copies to a GPU: here, that they reach what makes these copies."""
    made: list[dict[str, Any]] = []

    class Watched(mtf.MultiLoader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append(options)
            super().__init__(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtf.trainer.data_setup.MultiLoader", Watched)
        fitted(performance=mtf.PerformanceConfig(device_prefetch=False, pin_memory=True))
    assert (made[0]["device_prefetch"], made[0]["pin_memory"]) == (False, True)


@case(mtf.PerformanceConfig, "on_nonfinite")
def _(_: Path) -> None:
    def broken(trainer: Any, *place: Any) -> Any:
        return step(trainer, *place)["loss"] * float("nan")

    with pytest.raises(mtf.NonFiniteLoss):
        fitted(training_step=broken)
    with pytest.warns(UserWarning, match="its window is skipped"):
        fitted(training_step=broken, performance=mtf.PerformanceConfig(on_nonfinite="skip"))


class Slow(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        time.sleep(5.0)
        return torch.zeros(3)


@case(mtf.PerformanceConfig, "fetch_timeout_s")
def _(_: Path) -> None:
    with pytest.raises(mtf.FetchTimeout):
        fitted([DataLoader(Slow()), loader(8, 1)], performance=mtf.PerformanceConfig(fetch_timeout_s=0.2))


# Validation ------------------------------------------------------------------------------------------------------


def validated(validation: Any = None, **fields: Any) -> dict[str, float]:
    given = validation or [loader(16, 3), loader(4, 4)]
    return trainer(config(["a", "b"], validation=mtf.ValidationConfig(**fields))).validate(given)


@case(mtf.ValidationConfig, "frequency")
def _(_: Path) -> None:
    never = mtf.ValidationConfig(frequency=mtf.ValidationFrequency.NEVER)
    assert "val/loss" in fitted(validation=[loader(4, 1)]).metrics
    run = trainer(config(["a", "b"], validation=never))
    run.fit(two(), [loader(4, 1)])
    assert "val/loss" not in run.metrics


@case(mtf.ValidationConfig, "every_n_steps")
def _(_: Path) -> None:
    seen: list[int] = []

    class Watch(mtf.TrainerHooks):
        def on_validation_end(self, trainer: Any, metrics: Any) -> None:
            seen.append(trainer.global_step)

    every = mtf.ValidationConfig(frequency=mtf.ValidationFrequency.EVERY_N_STEPS, every_n_steps=3)
    trainer(config(["a", "b"], validation=every), hooks=[Watch()]).fit(two(), [loader(4, 1)])
    assert seen == [3, 6]


@case(mtf.ValidationConfig, "at_start", "sanity_batches", "loader_every_n", "limit_batches")
def _(_: Path) -> None:
    """More in ``test_sanity.py``."""
    seen: list[tuple[int, str, int]] = []

    def validation_step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, name: str) -> Any:
        seen.append((trainer.global_step, name, batch_idx))
        return step(trainer, batch, batch_idx, dataloader_idx, name)

    def run(**settings: Any) -> list[tuple[int, str, int]]:
        seen.clear()
        given = {"x": loader(8, 1), "y": loader(12, 2)}
        made = trainer(config(validation=mtf.ValidationConfig(**settings)), validation_step=validation_step)
        made.fit([loader(4, 3)], given, max_epochs=2)
        return list(seen)

    whole = [("x", 0), ("x", 1), ("y", 0), ("y", 1), ("y", 2)]
    assert run(sanity_batches=0) == [(k, *place) for k in (1, 2) for place in whole]
    assert run(sanity_batches=0, at_start=True) == [(k, *place) for k in (0, 1, 2) for place in whole]
    assert run(sanity_batches=1)[:3] == [(0, "x", 0), (0, "y", 0), (1, "x", 0)]
    assert run(sanity_batches=0, limit_batches=1) == [(k, name, 0) for k in (1, 2) for name in "xy"]
    assert run(sanity_batches=0, loader_every_n={"y": 2}) == [(1, "x", 0), (1, "x", 1), *((2, *p) for p in whole)]


@case(mtf.ValidationConfig, "aggregation")
def _(_: Path) -> None:
    assert validated()["val/loss"] != validated(aggregation=mtf.ValAggregation.MACRO_AVG_EQUAL_LOADERS)["val/loss"]


@case(mtf.ValidationConfig, "aggregation_fn")
def _(_: Path) -> None:
    assert validated(aggregation_fn=lambda metrics: {"mine": 7.0})["val/mine"] == 7.0


@case(mtf.ValidationConfig, "validation_weights")
def _(_: Path) -> None:
    row = validated(validation_weights=[0.0, 2.0])
    assert row["val/loss"] == row["val/b/loss"]


@case(mtf.ValidationConfig, "primary_metrics")
def _(_: Path) -> None:
    primary = {"aggregation": mtf.ValAggregation.PRIMARY_METRIC_PER_LOADER}
    assert "val/a/loss" in validated(**primary)
    with pytest.raises(mtf.ConfigError, match="'a' has no metric 'accuracy'"):
        validated(**primary, primary_metrics={"a": "accuracy"})


@case(mtf.ValidationConfig, "per_loader_metrics")
def _(_: Path) -> None:
    assert "val/a/loss" not in validated(per_loader_metrics=False)


@case(mtf.ValidationConfig, "global_metrics")
def _(_: Path) -> None:
    assert "val/loss" not in validated(global_metrics=False)


# Checkpoints -----------------------------------------------------------------------------------------------------


@case(mtf.CheckpointConfig, "root_dir")
@case(mtf.CheckpointConfig, "save_every_n_steps")
def _(path: Path) -> None:
    assert saved(path / "here", save_every_n_steps=4) == ["step-00000004", "step-00000008"]


@case(mtf.CheckpointConfig, "save_every_n_epochs")
def _(path: Path) -> None:
    assert saved(path / "run", max_epochs=4, save_every_n_epochs=2) == ["step-00000016", "step-00000032"]


@case(mtf.CheckpointConfig, "save_every_n_minutes")
def _(path: Path) -> None:
    assert saved(path / "none") == []
    assert len(saved(path / "run", save_every_n_minutes=1e-9)) == 3


@case(mtf.CheckpointConfig, "save_at_end")
def _(path: Path) -> None:
    assert saved(path / "none") == []
    assert saved(path / "alone", save_at_end=True) == ["step-00000008"]
    assert saved(path / "once", save_at_end=True, save_every_n_epochs=1) == ["step-00000008"]


@case(mtf.CheckpointConfig, "max_checkpoints")
def _(path: Path) -> None:
    assert len(saved(path / "one", save_every_n_steps=1, max_checkpoints=1)) == 1
    assert len(saved(path / "all", save_every_n_steps=1, max_checkpoints=None)) == 8


@case(mtf.CheckpointConfig, "keep_every_n_steps")
def _(path: Path) -> None:
    kept = saved(path / "good", save_every_n_steps=1, max_checkpoints=1, keep_every_n_steps=3)
    assert kept == ["step-00000003", "step-00000006", "step-00000008"]


@case(mtf.CheckpointConfig, "monitor_metric", "monitor_mode")
def _(path: Path) -> None:
    best = {}
    for mode in ("min", "max"):
        root = path / mode
        fields: dict[str, Any] = {"monitor_metric": "val/loss", "monitor_mode": mode, "max_checkpoints": None}
        saved(root, max_epochs=3, validation=[loader(8, 5)], save_every_n_epochs=1, **fields)
        values = {n: json.loads((root / n / "manifest.json").read_text())["metrics"]["val/loss"] for n in names(root)}
        best[mode] = (root / "best").resolve().name
        assert values[best[mode]] == {"min": min, "max": max}[mode](values.values())  # type: ignore[operator]
    assert best["min"] != best["max"]


@case(mtf.CheckpointConfig, "save_best")
def _(path: Path) -> None:
    assert saved(path / "run", validation=[loader(8, 5)], save_best=True, monitor_metric="val/loss")


@case(mtf.CheckpointConfig, "asynchronous")
def _(path: Path) -> None:
    import threading

    fsync = os.fsync
    for asynchronous in (False, True):
        writers: set[threading.Thread] = set()

        def note(file: int, writers: set[threading.Thread] = writers) -> None:
            writers.add(threading.current_thread())
            fsync(file)

        saving = mtf.CheckpointConfig(
            root_dir=str(path / str(asynchronous)), save_every_n_steps=1, asynchronous=asynchronous
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", note)
            fitted(checkpoint=saving)
        assert (writers == {threading.main_thread()}) != asynchronous


@case(mtf.CheckpointConfig, "filename_template")
def _(path: Path) -> None:
    assert saved(path / "run", save_every_n_epochs=1, filename_template="e{epoch}-{step}") == ["e1-8"]


# Fault tolerance, preemption --------------------------------------------------------------------------------------


@case(mtf.FaultToleranceConfig, "auto_resume")
def _(path: Path) -> None:
    saved(path, save_every_n_epochs=1)
    fields = {"checkpoint": mtf.CheckpointConfig(root_dir=str(path))}
    assert fitted(max_epochs=2, **fields).global_step == 16
    trace = Trace()
    fitted(max_epochs=2, hooks=[trace], fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True), **fields)
    assert len(trace.batches) == 8


class Moody(Dataset[Any]):
    """Another sample at every look."""

    looks = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        Moody.looks += 1
        return torch.full((3,), float(Moody.looks)), torch.ones(1)


@case(mtf.FaultToleranceConfig, "verify_deterministic_resume")
def _(path: Path) -> None:
    for verify in (False, True):
        settings = config(["m"], fault_tolerance=mtf.FaultToleranceConfig(verify_deterministic_resume=verify))
        run = trainer(settings)
        run.fit([DataLoader(Moody(), batch_size=2)], max_steps=2)
        fresh = trainer(settings)
        fresh.load_state(run.get_state())
        if verify:
            with pytest.raises(mtf.MtfError, match="'m'"):
                fresh.fit([DataLoader(Moody(), batch_size=2)], max_steps=3)
        else:
            fresh.fit([DataLoader(Moody(), batch_size=2)], max_steps=3)


class Noisy(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return torch.rand(3), torch.ones(1)


@case(mtf.FaultToleranceConfig, "seed_each_batch")
def _(_: Path) -> None:
    def first(seeded: bool, process_seed: int) -> Tensor:
        trace = Trace()
        torch.manual_seed(process_seed)
        settings = {"fault_tolerance": mtf.FaultToleranceConfig(seed_each_batch=seeded)}
        fitted([DataLoader(Noisy(), batch_size=2), loader(8, 1)], hooks=[trace], model=model(), **settings)
        found: Tensor = trace.batches[0][1][0]
        return found

    assert torch.equal(first(True, 1), first(True, 1))
    assert not torch.equal(first(True, 1), first(False, 1))


@case(mtf.FaultToleranceConfig, "optimizer_settings")
def _(_: Path) -> None:
    state = trainer().get_state()
    for source, rate in (("saved", 0.1), ("script", 0.5)):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        settings = config(fault_tolerance=mtf.FaultToleranceConfig(optimizer_settings=source))  # type: ignore[arg-type]
        run = trainer(settings, model=net, optimizers=optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.load_state(state)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


@case(mtf.FaultToleranceConfig, "on_hook_error")
def _(_: Path) -> None:
    class Broken(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fitted(hooks=[Broken()])
    with pytest.warns(UserWarning, match="raised ZeroDivisionError"):
        fitted(hooks=[Broken()], fault_tolerance=mtf.FaultToleranceConfig(on_hook_error="log"))


@case(mtf.PreemptionConfig, "signals", "exit_code")
def _(path: Path) -> None:
    fields = {"checkpoint": mtf.CheckpointConfig(root_dir=str(path))}
    for code in (75, 9):
        settings = mtf.PreemptionConfig(signals=("SIGUSR2",), exit_code=code)
        with pytest.raises(mtf.Preempted) as left:
            fitted(hooks=[Signal(signal.SIGUSR2)], preemption=settings, **fields)
        assert left.value.code == code


@case(mtf.PreemptionConfig, "max_time")
def _(path: Path) -> None:
    """Resumed starts of limited length give what one start gives."""
    straight = trainer(config())
    straight.fit([loader(40, 1)], max_steps=12)
    saving = mtf.CheckpointConfig(root_dir=str(path / "run"))
    limited: Any = {"checkpoint": saving, "fault_tolerance": mtf.FaultToleranceConfig(auto_resume=True)}
    with pytest.MonkeyPatch.context() as patch:
        now = iter(range(1000))
        patch.setattr("mtf.trainer.state.run_state.time.monotonic", lambda: float(next(now)))
        for updates in (5, 10, 12):
            run = trainer(config(preemption=mtf.PreemptionConfig(max_time="00:00:05"), **limited))
            run.fit([loader(40, 1)], max_steps=12)
            assert run.global_step == updates
            assert run.should_stop == (updates != 12)
    assert run.get_state() == straight.get_state()
    for wrong in ("1:30", "soon", -1, 0.0):
        with pytest.raises(mtf.ConfigError, match=r"preemption\.max_time"):
            mtf.PreemptionConfig(max_time=wrong)
    assert mtf.PreemptionConfig(max_time="1:02:03:04").max_time_s == 93784


@case(mtf.PreemptionConfig, "requeue_job")
def _(path: Path) -> None:
    asked: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtf.trainer.preemption.requeue_slurm_job", lambda *_: asked.append(True))
        for requeue in (False, True):
            saving = mtf.CheckpointConfig(root_dir=str(path / str(requeue)))
            settings = mtf.PreemptionConfig(requeue_job=requeue)
            with pytest.raises(mtf.Preempted):
                fitted(hooks=[Signal(signal.SIGTERM)], preemption=settings, checkpoint=saving)
    assert asked == [True]


# Logging ---------------------------------------------------------------------------------------------------------


@case(mtf.LoggingConfig, "model_summary")
def _(_: Path) -> None:
    """Where a run begins, and not where fit is called again."""

    def printed(**settings: Any) -> str:
        net = model()
        net[0].requires_grad_(False)
        run = trainer(config(logging=mtf.LoggingConfig(logger_type="none", progress_bar=False, **settings)), model=net)
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            run.fit([loader(16, 1)], max_steps=1)
            run.fit([loader(16, 1)], max_steps=2)
        return shown.getvalue()

    assert "parameters" not in printed()
    lines = [line.split() for line in printed(model_summary=1).splitlines()]
    assert lines[1] == ["module", "class", "parameters", "trained", "optimizer", "dtype"]
    assert ["(model)", "Sequential", "26", "6", "0", "float32"] in lines
    assert ["0", "Linear", "20", "0", "0", "float32"] in lines
    assert ["1", "Tanh", "0", "0", "-", "-"] in lines
    assert len(lines) == 7


@case(mtf.LoggingConfig, "log_memory", "peak_flops")
def _(_: Path) -> None:
    """More in ``test_throughput.py``."""

    def row(**settings: Any) -> dict[str, float]:
        net: Any = model()
        net.flops_per_sample = 1e6
        logging = mtf.LoggingConfig(logger_type="none", progress_bar=False, log_scalars_every_n_steps=2, **settings)
        run = trainer(config(logging=logging), model=net)
        run.fit([loader(16, 1)], max_steps=4)
        return run.metrics

    assert "memory/rss_bytes" not in row()
    assert row(log_memory=True)["memory/rss_bytes"] > 1e7
    assert "throughput/mfu" not in row()
    found = row(peak_flops=1e9)
    assert found["throughput/mfu"] == pytest.approx(found["throughput/flops_per_s"] / 1e9)


def logged(path: Path, **fields: Any) -> list[dict[str, Any]]:
    """Rows of a run that logs to a file."""
    given: dict[str, Any] = {"logger_type": "jsonl", "log_dir": str(path), "progress_bar": False, **fields}
    fitted(experiment_name="run", logging=mtf.LoggingConfig(**{"log_scalars_every_n_steps": 4, **given}))
    return [json.loads(line) for line in (path / "run" / "metrics.jsonl").read_text().splitlines()]


@case(mtf.LoggingConfig, "logger_type", "log_dir")
@case(mtf.TrainerConfig, "experiment_name")
@case(mtf.LoggingConfig, "log_scalars_every_n_steps")
def _(path: Path) -> None:
    assert [row["step"] for row in logged(path)] == [4, 8]
    assert [row["step"] for row in logged(path, log_scalars_every_n_steps=2)] == [2, 4, 6, 8]


@case(mtf.LoggingConfig, "composite_loggers")
def _(path: Path) -> None:
    logged(path, logger_type="composite", composite_loggers=["jsonl", "csv"])
    assert (path / "run" / "metrics.csv").exists()


@case(mtf.LoggingConfig, "log_per_loader_metrics")
def _(path: Path) -> None:
    assert "train/a/loss" in logged(path)[0]
    assert "train/a/loss" not in logged(path, log_per_loader_metrics=False)[0]


@case(mtf.LoggingConfig, "log_loader_proportions")
def _(path: Path) -> None:
    assert "loader_proportions/a_batches" in logged(path)[0]
    assert "loader_proportions/a_batches" not in logged(path, log_loader_proportions=False)[0]


@case(mtf.LoggingConfig, "log_pictures")
def _(path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")
    found = {}
    for draw in (False, True):
        settings = mtf.LoggingConfig("tensorboard", tensorboard_log_dir=str(path / str(draw)), progress_bar=False)
        settings.log_pictures = draw
        run = fitted(logging=settings)
        run._parts.reporter._logger.close()  # type: ignore[union-attr]
        images = events.EventAccumulator(str(path / str(draw)))
        found[draw] = images.Reload().Tags()["images"]
    assert found[False] == []
    assert sorted(found[True]) == [f"pictures/{name}" for name in ("data_wait", "passes", "schedule", "shares")]
    with pytest.raises(mtf.ConfigError, match="needs a logger that shows pictures"):
        mtf.LoggingConfig(logger_type="jsonl", log_pictures=True)


@case(mtf.LoggingConfig, "progress_bar")
def _(_: Path) -> None:
    import contextlib
    import io

    shown = []
    for bar in (False, True):
        settings = mtf.LoggingConfig(logger_type="none", progress_bar=bar, log_scalars_every_n_steps=2)
        with contextlib.redirect_stderr(io.StringIO()) as output:
            fitted(logging=settings)
        shown.append(output.getvalue().count("epoch 0:"))
    assert shown == [0, 4]


@case(mtf.LoggingConfig, "tensorboard_log_dir")
def _(path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an extra")
    settings = {"logger_type": "tensorboard", "tensorboard_log_dir": str(path / "events"), "progress_bar": False}
    run = fitted(logging=mtf.LoggingConfig(**settings))  # type: ignore[arg-type]
    run._parts.reporter._logger.close()  # type: ignore[union-attr]
    assert list((path / "events").glob("events.*"))


@case(mtf.LoggingConfig, "console_fields")
def _(path: Path) -> None:
    shown = []
    for fields in ([], ["*"]):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            several = ["console", "jsonl"]  # the second is what `logged` reads
            logged(path, logger_type="composite", composite_loggers=several, console_fields=fields)
        shown.append(out.getvalue())
    assert "loader_proportions" not in shown[0]
    assert "loader_proportions" in shown[1]


@case(mtf.LoggingConfig, "trackio_project")
def _(path: Path) -> None:
    pytest.importorskip("trackio", reason="an extra")
    code = "import mtf; from mtf.loggers.base import RunInfo; from mtf.loggers.registry import make_logger; "
    code += (
        "found = make_logger(mtf.LoggingConfig(logger_type='trackio', trackio_project='mine'), RunInfo('run', {})); "
    )
    code += "found.log_metrics({'x': 1.0}, 1); found.close()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRACKIO_DIR": str(path)}, timeout=100)
    assert (path / "mine.db").exists()


@case(mtf.LoggingConfig, "wandb_project", "wandb_entity", "wandb_mode", "wandb_tags")
def _(path: Path) -> None:
    """What W&B is asked for; the test of the logger reads a real offline run."""
    import sys

    asked: dict[str, Any] = {}
    stand_in = types.SimpleNamespace(init=lambda **options: asked.update(options) or types.SimpleNamespace(id="x"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", stand_in)
        from mtf.loggers.base import RunInfo
        from mtf.loggers.registry import make_logger

        settings = mtf.LoggingConfig(
            logger_type="wandb", log_dir=str(path), wandb_project="p", wandb_entity="e", wandb_mode="offline",
            wandb_tags=["t"],
        )  # fmt: skip
        make_logger(settings, RunInfo("run", {}))
    assert (asked["project"], asked["entity"], asked["mode"], asked["tags"]) == ("p", "e", "offline", ["t"])


@case(mtf.LoggingConfig, "mlflow_tracking_uri", "mlflow_experiment")
def _(path: Path) -> None:
    pytest.importorskip("mlflow", reason="an extra")
    from mtf.loggers.base import RunInfo
    from mtf.loggers.registry import make_logger

    settings = mtf.LoggingConfig(
        logger_type="mlflow", mlflow_tracking_uri=(path / "store").as_uri(), mlflow_experiment="mine"
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mlflow
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        make_logger(settings, RunInfo("run", {}))
    assert "name: mine" in "".join(p.read_text() for p in (path / "store").glob("*/meta.yaml"))


# The trainer -----------------------------------------------------------------------------------------------------


@case(mtf.TrainerConfig, "multi")
def _(_: Path) -> None:
    multi = mtf.MultiDataLoaderConfig(dataloader_names=["x", "y"])
    run = trainer(config(multi=multi))
    run.fit(two())
    assert run.multi_loader_manager.names == ["x", "y"]


@case(mtf.TrainerConfig, "val_loader_config")
def _(_: Path) -> None:
    named = mtf.MultiDataLoaderConfig(dataloader_names=["p", "q"])
    row = trainer(config(val_loader_config=named)).validate([loader(4, 1), loader(4, 2)])
    assert "val/p/loss" in row


for _owner in ("validation", "checkpoint", "fault_tolerance", "preemption", "performance", "logging", "ddp"):

    @case(mtf.TrainerConfig, _owner)
    def _(_: Path) -> None:
        """Its own fields are cases."""


@case(mtf.TrainerConfig, "seed")
def _(_: Path) -> None:
    def shuffled(seed: int) -> list[Any]:
        trace = Trace()
        fitted([loader(20, 1, shuffle=True), loader(12, 2)], hooks=[trace], seed=seed)
        return [batch[0].tolist() for _, batch in trace.batches]

    assert shuffled(1) != shuffled(2)
    assert shuffled(1) == shuffled(1)


@case(mtf.TrainerConfig, "step_rng")
def _(_: Path) -> None:
    def after(mode: Any, process_seed: int) -> Tensor:
        torch.manual_seed(0)
        net = model(dropout=0.5)
        torch.manual_seed(process_seed)
        return weights(fitted(model=net, step_rng=mode))

    assert torch.equal(after("derived", 1), after("derived", 2))
    assert not torch.equal(after("saved", 1), after("saved", 2))


@case(mtf.TrainerConfig, "per_loader_optimizers")
def _(_: Path) -> None:
    rules = {"a": {"lr_scale": 0.0}, "b": {"lr_scale": 0.0}}
    net = model()
    run = fitted(model=net, per_loader_optimizers=rules)
    assert torch.equal(weights(run), torch.cat([p.detach().flatten() for p in model().parameters()]))


@case(mtf.TrainerConfig, "per_loader_schedulers")
def _(_: Path) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    rate = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    fitted(model=net, optimizers=optimizer, per_loader_schedulers={"b": rate})
    assert optimizer.param_groups[0]["lr"] == 0.5**4


@case(mtf.TrainerConfig, "loss_weights_per_loader")
def _(_: Path) -> None:
    assert not torch.equal(weights(fitted()), weights(fitted(loss_weights_per_loader={"a": 0.5})))


@case(mtf.TrainerConfig, "extras")
def _(_: Path) -> None:
    def extra(trainer: Any, *place: Any) -> Any:
        return step(trainer, *place)["loss"] * trainer.config.factor

    assert not torch.equal(
        weights(fitted(training_step=extra, extras={"factor": 1.0})),
        weights(fitted(training_step=extra, extras={"factor": 2.0})),
    )


# Several ranks ---------------------------------------------------------------------------------------------------


@case(mtf.DDPConfig, *(f.name for f in dataclasses.fields(mtf.DDPConfig)))
@case(mtf.PreemptionConfig, "agree_every")
def _(_: Path) -> None:
    """Shown under torchrun, by the tests of several ranks."""
    launched = "".join(p.read_text() for p in (Path(__file__).parents[2] / "distributed").glob("*.py"))
    ours = [*(f.name for f in dataclasses.fields(mtf.DDPConfig)), "agree_every"]
    assert [name for name in ours if name not in launched] == []


def test_a_checkpoint_keeps_the_configuration(tmp_path: Path) -> None:
    run = trainer(config(seed=7))
    run.save_checkpoint(str(tmp_path / "one"))
    assert json.loads((tmp_path / "one" / "manifest.json").read_text())["config"]["seed"] == 7
