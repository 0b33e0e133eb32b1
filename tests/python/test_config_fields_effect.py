"""Every field of every configuration changes something. A field without a case here fails.

A case is a function of the field's two values that returns what can be seen of each; the two must differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainer_tools import config, loader, model, step, trainer

import mtf
from mtf.checkpoint import read_manifest
from mtf.checkpoint.writer import BackgroundWriter
from mtf.config.fields import Config
from mtf.data import device as device_module
from mtf.data import multi_loader as multi_loader_module
from mtf.loggers.base import RunInfo
from mtf.loggers.factory import make_logger

CONFIGS: dict[str, type[Any]] = {
    "multi": mtf.MultiDataLoaderConfig,
    "curve": mtf.WeightCurve,
    "trainer": mtf.TrainerConfig,
    "performance": mtf.PerformanceConfig,
    "validation": mtf.ValidationConfig,
    "checkpoint": mtf.CheckpointConfig,
    "fault_tolerance": mtf.FaultToleranceConfig,
    "preemption": mtf.PreemptionConfig,
    "logging": mtf.LoggingConfig,
    "ddp": mtf.DDPConfig,
}

Observe = Callable[[Any], Any]
CASES: dict[str, tuple[Any, Any, Observe]] = {}


def case(field: str, one: Any, other: Any) -> Callable[[Observe], Observe]:
    """Registers a function that returns what can be seen with ``one``, and with ``other``, in that field."""

    def register(observe: Observe) -> Observe:
        assert field not in CASES
        CASES[field] = (one, other, observe)
        return observe

    return register


def cases(prefix: str, values: dict[str, tuple[Any, Any]], observe: Callable[[str, Any], Any]) -> None:
    """Registers several fields that are seen in the same way."""
    for name, (one, other) in values.items():
        case(f"{prefix}.{name}", one, other)(lambda value, name=name: observe(name, value))


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write to an empty directory of their own."""
    monkeypatch.chdir(tmp_path)


def everywhere() -> list[str]:
    return sorted(str(p) for p in Path().rglob("*") if p.is_file() and ".lock" not in p.name)


# Mixtures ----------------------------------------------------------------------------------------------------------

MULTI_BASE: dict[str, dict[str, Any]] = {
    "dataloader_weights": {"sampling_strategy": "WEIGHTED"},
    "weighted_order": {"sampling_strategy": "WEIGHTED"},
    "weight_curve": {"sampling_strategy": "WEIGHTED"},
    "seed": {"sampling_strategy": "WEIGHTED"},
    "alternating_pattern": {"sampling_strategy": "ALTERNATING"},
    "steps_per_epoch": {"epoch_length_policy": "FIXED_NUM_STEPS"},
    "continue_across_epochs": {"epoch_length_policy": "FIXED_NUM_STEPS", "steps_per_epoch": 3},
}


def draws(name: str, value: Any) -> Any:
    settings = mtf.MultiDataLoaderConfig.from_dict({**MULTI_BASE.get(name, {}), name: value})
    schedule = mtf.Schedule(settings, [3, 5])
    return schedule.names, [(d.source, d.pass_, d.batch) for e in (0, 1) for d in list_epoch(schedule, e)]


def list_epoch(schedule: mtf.Schedule, epoch: int) -> list[mtf.Draw]:
    steps = schedule.num_steps(epoch)
    assert steps is not None
    return [schedule.at(i, epoch=epoch) for i in range(steps)]


cases(
    "multi",
    {
        "sampling_strategy": ("ROUND_ROBIN", "SEQUENTIAL"),
        "dataloader_weights": ([1, 1], [9, 1]),
        "alternating_pattern": ([0, 1], [0, 0, 1]),
        "burst_size": (1, 2),
        "dataloader_names": (["a", "b"], ["c", "d"]),
        "epoch_length_policy": ("MIN_LENGTH", "MAX_LENGTH"),
        "steps_per_epoch": (3, 4),
        "cycle_short_loaders": (True, False),
        "weighted_order": ("SHUFFLED", "EVEN"),
        "continue_across_epochs": (True, False),
        "weight_curve": (None, {"points": [(0, [9.0, 1.0])]}),
        "seed": (0, 1),
    },
    draws,
)


@case("multi.drop_last", False, True)
def _(value: bool) -> Any:
    with mtf.MultiLoader(loader(10, 1), mtf.MultiDataLoaderConfig(drop_last=value)) as mixture:
        return len(mixture)


def engine(name: str, value: Any) -> Any:
    rows = torch.zeros(64, 3)
    with mtf.MultiLoader(
        mtf.ArrayLoader(rows, batch_size=4), mtf.MultiDataLoaderConfig(**{"prefetch_workers": 1, name: value})
    ) as mixture:
        iterator = iter(mixture)
        for _ in range(4):
            next(iterator)
            time.sleep(0.02)
        stats = mixture.stats()["engine"]
        return stats["peak_batches_held"], stats["num_in_caller"]


cases("multi", {"prefetch_batches": (2, 8), "prefetch_bytes": (4 * 12, None), "prefetch_workers": (0, 1)}, engine)


def weights_at(name: str, value: Any) -> Any:
    curve = {"points": [(0, [1.0, 0.0]), (6, [0.0, 1.0])], "interpolation": "LINEAR", "every": 1, name: value}
    settings = mtf.MultiDataLoaderConfig.from_dict(
        {"sampling_strategy": "WEIGHTED", "weight_curve": curve, "weighted_order": "EVEN"}
    )
    return mtf.Schedule(settings, [6, 6]).sources().tolist()


cases(
    "curve",
    {"points": ([(0, [1.0, 0.0])], [(0, [0.0, 1.0])]), "interpolation": ("STEP", "LINEAR"), "every": (1, 3)},
    weights_at,
)

# Trainer -----------------------------------------------------------------------------------------------------------


def fitted(net: nn.Module | None = None, training_step: Any = step, **settings: Any) -> mtf.Trainer:
    """Six updates of the small model on two loaders, in an epoch of eight steps."""
    net, steps = net or model(dropout=0.3), settings.pop("steps", 6)
    run = trainer(
        config(["a", "b"], **settings),
        model=net,
        optimizers=torch.optim.SGD(net.parameters(), lr=0.1),
        training_step=training_step,
    )
    run.fit([loader(20, 1, shuffle=True), loader(12, 2)], [loader(8, 3)], max_steps=steps)
    return run


def result(run: mtf.Trainer) -> Any:
    return [p.tolist() for p in run.model.parameters()], run.num_batches


def trained(name: str, value: Any) -> Any:
    return result(fitted(**{name: value}))


cases(
    "trainer",
    {
        "seed": (0, 1),
        "step_rng": ("derived", "saved"),
        "per_loader_optimizers": ({}, {"a": {"lr_scale": 0.5}}),
        "loss_weights_per_loader": ({}, {"a": 0.5}),
    },
    trained,
)


@case("trainer.val_loader_config", None, mtf.MultiDataLoaderConfig(dataloader_names=["mine"]))
def _(value: Any) -> Any:
    return sorted(fitted(val_loader_config=value, steps=8).metrics)


@case("trainer.extras", {}, {"use_domain_adversarial": True})
def _(value: Any) -> Any:
    return hasattr(config(extras=value), "use_domain_adversarial")


@case("trainer.per_loader_schedulers", 1.0, 0.5)
def _(value: float) -> Any:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rate = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=value)
    trainer(config(per_loader_schedulers={"dl0": rate}), model=net, optimizers=optimizer).fit(loader(8, 1))
    return optimizer.param_groups[0]["lr"]


@case("trainer.experiment_name", "one", "two")
def _(value: str) -> Any:
    fitted(experiment_name=value, logging=mtf.LoggingConfig(logger_type="jsonl", progress_bar=False))
    return everywhere()


# Performance -------------------------------------------------------------------------------------------------------


def performed(name: str, value: Any) -> Any:
    return result(fitted(performance=mtf.PerformanceConfig(**{name: value})))


cases(
    "performance",
    {"precision": ("fp32", "bf16"), "gradient_accumulation_steps": (1, 2), "clip_grad_norm": (None, 0.01)},
    performed,
)


@case("performance.compile_model", False, True)
def _(value: bool) -> Any:
    compiled = []

    class Net(nn.Linear):
        def compile(self, *args: Any, **kwargs: Any) -> None:
            compiled.append(self)

    trainer(config(performance=mtf.PerformanceConfig(compile_model=value)), model=Net(3, 1))
    return len(compiled)


@case("performance.deterministic", False, True)
def _(value: bool) -> Any:
    seen = []

    def look(trainer: Any, *place: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return step(trainer, *place)

    fitted(training_step=look, performance=mtf.PerformanceConfig(deterministic=value))
    return seen[0]


@case("performance.on_nonfinite", "raise", "warn")
def _(value: Any) -> Any:
    def broken(trainer: Any, *place: Any) -> Any:
        return step(trainer, *place)["loss"] * (float("nan") if trainer.num_batches == 2 else 1.0)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted(training_step=broken, performance=mtf.PerformanceConfig(on_nonfinite=value))
    except mtf.NonFiniteLoss:
        return "stopped"
    return "went on"


class Sleepy:
    """A loader that takes its time."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        time.sleep(0.3)
        yield torch.zeros(4, 3), torch.zeros(4, 1)


@case("performance.fetch_timeout_s", None, 0.05)
def _(value: float | None) -> Any:
    try:
        trainer(config(performance=mtf.PerformanceConfig(fetch_timeout_s=value))).fit(Sleepy())
    except mtf.FetchTimeout:
        return "stopped"
    return "waited"


def moved(name: str, value: Any) -> Any:
    """What the mixture asks of the device, which is said to be a GPU."""
    asked: list[Any] = []

    class Mover:
        device = torch.device("cuda")

        def __init__(self, device: Any, *, pin_memory: Any) -> None:
            asked.append(pin_memory)

        def send(self, data: Any) -> Any:
            asked.append("on a stream of its own")
            return types.SimpleNamespace(wait=lambda: data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_module, "DeviceMover", Mover)
        patch.setattr(device_module, "move_to", lambda data, device: data)
        real = multi_loader_module.MultiLoader.__init__

        def pretend(self: Any, loaders: Any, config: Any, seed: Any, device: Any, **options: Any) -> None:
            real(self, loaders, config, seed, torch.device("cuda"), **options)

        patch.setattr(multi_loader_module.MultiLoader, "__init__", pretend)
        fitted(performance=mtf.PerformanceConfig(**{name: value}))
    return asked[:2]


cases("performance", {"device_prefetch": (True, False), "pin_memory": (True, False)}, moved)

# Validation --------------------------------------------------------------------------------------------------------


def validated(name: str, value: Any) -> Any:
    base: dict[str, Any] = {"every_n_steps": {"frequency": "EVERY_N_STEPS"}}
    base["primary_metrics"] = {"aggregation": "PRIMARY_METRIC_PER_LOADER"}
    seen: list[tuple[int, Any]] = []

    class Rows(mtf.TrainerHooks):
        def on_validation_end(self, trainer: Any, metrics: Any) -> None:
            seen.append((trainer.global_step, dict(metrics)))

    def both(trainer: Any, *place: Any) -> Any:
        loss = step(trainer, *place)["loss"]
        return {"loss": loss, "twice": 2 * loss}

    run = trainer(
        config(["a", "b"], validation=mtf.ValidationConfig.from_dict({**base.get(name, {}), name: value})),
        validation_step=both,
        hooks=[Rows()],
    )
    run.fit([loader(8, 1), loader(8, 2)], [loader(4, 3), loader(12, 4)])
    return seen


cases(
    "validation",
    {
        "frequency": ("PER_EPOCH", "NEVER"),
        "every_n_steps": (1, 2),
        "aggregation": ("MICRO_AVG_WEIGHTED_BY_SAMPLES", "MACRO_AVG_EQUAL_LOADERS"),
        "aggregation_fn": (None, lambda metrics: {"mine": 1.0}),
        "validation_weights": (None, [0.9, 0.1]),
        "primary_metrics": ({}, {"a": "twice"}),
        "per_loader_metrics": (True, False),
        "global_metrics": (True, False),
    },
    validated,
)

# Checkpoints -------------------------------------------------------------------------------------------------------


def saved(name: str, value: Any) -> Any:
    base: dict[str, dict[str, Any]] = {
        "max_checkpoints": {"save_every_n_steps": 1},
        "root_dir": {"save_every_n_steps": 4},
        "filename_template": {"save_every_n_steps": 4},
        "save_best": {"monitor_metric": "val/loss"},
        "monitor_metric": {"save_every_n_epochs": 1},
        "monitor_mode": {"save_every_n_epochs": 1, "monitor_metric": "val/loss", "max_checkpoints": None},
    }
    settings = mtf.CheckpointConfig(**{**base.get(name, {}), name: value})
    run = trainer(config(["a", "b"], checkpoint=settings))
    run.fit([loader(8, 1), loader(8, 2)], [loader(8, 3)], max_epochs=3)
    best = [p.resolve().name for p in Path().glob("*/best")]
    return everywhere(), best


cases(
    "checkpoint",
    {
        "root_dir": ("here", "there"),
        "save_every_n_steps": (None, 2),
        "save_every_n_epochs": (None, 1),
        "save_every_n_minutes": (None, 1e-9),
        "max_checkpoints": (1, 2),
        "monitor_metric": (None, "val/loss"),
        "monitor_mode": ("min", "max"),
        "save_best": (False, True),
        "filename_template": ("step-{step:08d}", "at-{step}"),
    },
    saved,
)


@case("checkpoint.asynchronous", False, True)
def _(value: bool) -> Any:
    handed_over = []
    with pytest.MonkeyPatch.context() as patch:
        real = BackgroundWriter.submit

        def submit(self: Any, work: Any) -> None:
            handed_over.append(work)
            real(self, work)

        patch.setattr(BackgroundWriter, "submit", submit)
        trainer(config(checkpoint=mtf.CheckpointConfig(save_every_n_steps=1, asynchronous=value))).fit(loader(8, 1))
    return len(handed_over)


# Faults and signals ------------------------------------------------------------------------------------------------


@case("fault_tolerance.auto_resume", False, True)
def _(value: bool) -> Any:
    settings: dict[str, Any] = {
        "checkpoint": mtf.CheckpointConfig(save_every_n_steps=2),
        "fault_tolerance": mtf.FaultToleranceConfig(auto_resume=value),
    }
    trainer(config(**settings)).fit(loader(40, 1), max_steps=2)
    updates: list[int] = []

    class Count(mtf.TrainerHooks):
        def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            updates.append(trainer.global_step)

    trainer(config(**settings), hooks=[Count()]).fit(loader(40, 1), max_steps=3)
    return updates


def tolerated(name: str, value: Any) -> Any:
    return fitted(fault_tolerance=mtf.FaultToleranceConfig(**{name: value})).get_state().tree["multi"]["last_batches"]


cases("fault_tolerance", {"verify_deterministic_resume": (False, True)}, tolerated)


class Noisy(torch.utils.data.Dataset[Any]):
    """Random augmentation from torch's generator."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> Any:
        return torch.randn(3), torch.zeros(1)


@case("fault_tolerance.seed_each_batch", True, False)
def _(value: bool) -> Any:
    drawn: list[Any] = []

    def look(trainer: Any, batch: Any, *place: Any) -> Any:
        drawn.append(batch[0].tolist())
        return step(trainer, batch, *place)

    settings = config(fault_tolerance=mtf.FaultToleranceConfig(seed_each_batch=value), step_rng="saved")
    torch.manual_seed(time.time_ns() % 2**31)
    trainer(settings, training_step=look).fit(torch.utils.data.DataLoader(Noisy(), batch_size=4))
    reference = mtf.MultiLoader(torch.utils.data.DataLoader(Noisy(), batch_size=4))
    return drawn == [batch.data[0].tolist() for batch in reference]


@case("fault_tolerance.on_hook_error", "raise", "log")
def _(value: Any) -> Any:
    class Broken(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            raise ValueError

    run = trainer(config(fault_tolerance=mtf.FaultToleranceConfig(on_hook_error=value)), hooks=[Broken()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run.fit(loader(8, 1))
        except ValueError:
            return "stopped"
    return "went on"


def preempted(name: str, value: Any) -> Any:
    class Signal(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        run = trainer(config(preemption=mtf.PreemptionConfig(**{name: value})), hooks=[Signal()])
        run.fit(loader(8, 1))
    except mtf.Preempted as left:
        return left.code
    finally:
        signal.signal(signal.SIGUSR1, before)
    return None


cases("preemption", {"signals": (("SIGUSR1",), ("SIGTERM",)), "exit_code": (75, 3)}, preempted)


@case("preemption.requeue_job", False, True)
def _(value: bool) -> Any:
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtf.trainer.preemption.requeue_slurm_job", lambda: asked.append("requeue"))
        preempted("requeue_job", value)
    return asked


@case("preemption.agree_every", 1, 4)
def _(value: int) -> Any:
    """Where two ranks look, as seen by a rank that is told of another."""
    looked: list[int] = []
    run = trainer(config(preemption=mtf.PreemptionConfig(agree_every=value)))

    class Two(type(run.ranks)):  # type: ignore[misc]
        world_size = 2

        def largest(self, numbers: Any) -> Any:
            looked.append(run.global_step)
            return list(numbers)

    class Pretend(mtf.TrainerHooks):
        def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            trainer.ranks = Two()

    run.require_same_schedule = lambda: None  # type: ignore[method-assign]
    run.add_hook(Pretend())
    run.nonfinite.every_window = False
    run.fit(loader(48, 1))
    return looked


# Logging -----------------------------------------------------------------------------------------------------------


def logged(name: str, value: Any) -> Any:
    base: dict[str, dict[str, Any]] = {
        "composite_loggers": {"logger_type": "composite"},
        "logger_type": {},
        "tensorboard_log_dir": {"logger_type": "tensorboard"},
    }
    settings = {"logger_type": "jsonl", "log_scalars_every_n_steps": 2, "progress_bar": False}
    if name == "tensorboard_log_dir":
        pytest.importorskip("torch.utils.tensorboard", reason="an extra")
    fitted(logging=mtf.LoggingConfig(**{**settings, **base.get(name, {}), name: value}))
    files = [re.sub(r"tfevents.*", "tfevents", path) for path in everywhere()]
    keys = [line.count('"') for path in Path().rglob("*.jsonl") for line in path.read_text().splitlines()]
    return files, keys


cases(
    "logging",
    {
        "logger_type": ("jsonl", "csv"),
        "composite_loggers": (["jsonl"], ["jsonl", "csv"]),
        "log_dir": ("here", "there"),
        "log_scalars_every_n_steps": (1, 2),
        "log_per_loader_metrics": (True, False),
        "log_loader_proportions": (True, False),
        "tensorboard_log_dir": ("here", "there"),
    },
    logged,
)


@case("logging.progress_bar", True, False)
def _(value: bool) -> Any:
    shown: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        real = mtf.trainer.reporting.Progress

        def watch(*arguments: Any, is_shown: bool) -> Any:
            shown.append(is_shown)
            return real(*arguments, is_shown=False)

        patch.setattr(mtf.trainer.reporting, "Progress", watch)
        fitted(logging=mtf.LoggingConfig(logger_type="none", progress_bar=value))
    return any(shown)


def handed_to_package(name: str, value: Any) -> Any:
    """Everything that the logger of an optional package asks of it, which is replaced by a recorder."""
    asked: list[Any] = []

    class Recorder:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            asked.append((arguments, sorted(options.items(), key=str)))

        def __getattr__(self, method: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                asked.append((method, arguments, options if method != "init" else sorted(options.items(), key=str)))
                return None if method.startswith("get_") else types.SimpleNamespace(id="x", info=self, run_id="x")

            return call

    def package(module: str) -> types.ModuleType:
        found = types.ModuleType(module)
        found.init = Recorder().init  # type: ignore[attr-defined]
        found.__getattr__ = lambda name: Recorder  # type: ignore[method-assign]
        return found

    kind = name.split("_", 1)[0]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("wandb", "mlflow", "mlflow.tracking", "mlflow.entities"):
            patch.setitem(sys.modules, module, package(module))
        settings = mtf.LoggingConfig(**{"logger_type": kind, name: value})
        with contextlib.suppress(AttributeError, TypeError):  # from what follows the calls of interest
            make_logger(settings, RunInfo(name="run", config={}, step=0, state={}))
    return [str(call) for call in asked if "wandb" in str(call) or "0x" not in str(call)]


cases(
    "logging",
    {
        "wandb_project": (None, "p"),
        "wandb_entity": (None, "team"),
        "wandb_mode": ("offline", "disabled"),
        "wandb_tags": ([], ["t"]),
        "mlflow_tracking_uri": ("file:a", "file:b"),
        "mlflow_experiment": (None, "e"),
    },
    handed_to_package,
)

# Several ranks -----------------------------------------------------------------------------------------------------

# tests/distributed starts ranks and looks at what each of these settings changed there.
IN_DISTRIBUTED = "".join(
    path.read_text() for path in sorted((Path(__file__).resolve().parents[1] / "distributed").glob("*.py"))
)
for option in dataclasses.fields(mtf.DDPConfig):
    case(f"ddp.{option.name}", option.name, f"{option.name} by no means")(
        lambda name: re.search(rf"\b{name}\b\s*=|\"{name}\"", IN_DISTRIBUTED) is not None
    )


def test_every_field_has_a_case() -> None:
    subclasses = {cls for cls in Config.__subclasses__() if cls.__module__.startswith("mtf.")}
    assert subclasses == set(CONFIGS.values()), "a configuration isn't walked"
    fields = {
        f"{name}.{field.name}"
        for name, cls in CONFIGS.items()
        for field in dataclasses.fields(cls)
        if field.default_factory not in subclasses  # whose fields are walked themselves
    }
    assert fields == set(CASES)


@pytest.mark.parametrize("field", sorted(CASES))
def test_every_field_changes_something(field: str) -> None:
    one, other, observe = CASES[field]
    seen = []
    for number, value in enumerate((one, other)):
        Path(str(number)).mkdir()
        os.chdir(str(number))
        seen.append(observe(value))
        os.chdir("..")
    assert seen[0] != seen[1]


def test_a_checkpoint_keeps_the_configuration(tmp_path: Path) -> None:
    run = fitted(seed=7, loss_weights_per_loader={"a": 0.5})
    run.save_checkpoint(str(tmp_path / "one"))
    assert read_manifest(tmp_path / "one")["config"]["seed"] == 7
