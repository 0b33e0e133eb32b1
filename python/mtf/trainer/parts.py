"""What a trainer is made of. Each part takes values and other parts; none is handed the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mtf.config.trainer import TrainerConfig
from mtf.distributed.ranks import SingleRank, local_gpu
from mtf.trainer import data_setup, preflight
from mtf.trainer.checkpointing import Checkpointer
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.evaluation.validator import Validator
from mtf.trainer.hooks.registry import HookList
from mtf.trainer.metrics import MetricTable
from mtf.trainer.optimization.activation_checkpointing import checkpoint_activations
from mtf.trainer.optimization.clipping import check_clipping
from mtf.trainer.optimization.item_counts import ItemCounts
from mtf.trainer.optimization.manual import ManualOptimization
from mtf.trainer.optimization.nonfinite import NonFiniteGuard
from mtf.trainer.optimization.optimizers import OptimizerSet
from mtf.trainer.optimization.precision import Precision, compile_in_place
from mtf.trainer.optimization.rate_watch import RateWatch
from mtf.trainer.optimization.scheduler_settings import SchedulerSettings
from mtf.trainer.optimization.schedulers import SchedulerSet
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.reporting.throughput import Throughput
from mtf.trainer.rng import StepRng
from mtf.trainer.state import components
from mtf.trainer.state.registry import StateRegistry
from mtf.trainer.state.run_state import RunField, RunState
from mtf.trainer.steering.skips import SkippedUpdates
from mtf.trainer.steering.spike_watch import SpikeWatch
from mtf.trainer.step import LossWeights, TrainStep


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts of one trainer, made once from its configuration.

    Attributes:
        config: everything that isn't code or data.
        device: where the model and the batches are.
        run: where the run stands.
        init_only: what settings were that only the constructor reads, by dotted name.
        said_changes: those that were changed since, and named.
    """

    config: TrainerConfig
    model: nn.Module
    device: torch.device
    ranks: SingleRank
    hooks: HookList
    run: RunState
    optimizers: OptimizerSet
    schedulers: SchedulerSet
    loss_weights: LossWeights
    items: ItemCounts
    precision: Precision
    rng: StepRng
    nonfinite: NonFiniteGuard
    metrics: MetricTable
    data: TrainingData
    skips: SkippedUpdates
    reporter: Reporter
    init_only: dict[str, Any]
    said_changes: dict[str, Any] = field(default_factory=dict)
    manual: ManualOptimization = field(init=False)
    registry: StateRegistry = field(init=False)
    checkpointer: Checkpointer = field(init=False)

    def __post_init__(self) -> None:
        self.manual = ManualOptimization(
            self.config.performance,
            device=self.device,
            run=self.run,
            optimizers=self.optimizers,
            precision=self.precision,
            guard=self.nonfinite,
            ranks=self.ranks,
            hooks=self.hooks,
        )
        self.registry = StateRegistry(self.ranks, upgrade=components.upgraded, on_loaded=self._after_load)
        self.checkpointer = Checkpointer(
            self.config,
            self.ranks,
            self.registry,
            self.run,
            loggers=self.reporter,
            before_save=self._before_save,
            describe_data=self.data.record,
            on_saved=lambda path: self.hooks.call("on_checkpoint_save", path),  # the list may be replaced
            on_loaded=lambda path: self.hooks.call("on_checkpoint_load", path),
        )

    def _after_load(self) -> None:
        self.optimizers.clear()
        for optimizer in self.optimizers.optimizers if self.run.global_step else ():
            # Where an epoch's end comes first, torch's schedulers would warn that it hasn't stepped yet.
            optimizer._opt_called = True  # type: ignore[attr-defined]  # torch sets it in step()
        self.metrics.reset_objects()
        self.nonfinite.forget(0)
        self.run.mend()

    def _before_save(self) -> None:
        # guard: save of a bad loss
        self.nonfinite.window_is_finite()  # a loss that isn't finite is never saved
        self.data.require_same_schedule()

    def train_step(self, function: Callable[..., Any]) -> TrainStep:
        """Trains on one accumulation window after the other with ``function``."""
        return TrainStep(
            function=function,
            model=self.model,
            performance=self.config.performance,
            manual=self.manual,
            optimizers=self.optimizers,
            schedulers=self.schedulers,
            loss_weights=self.loss_weights,
            items=self.items,
            precision=self.precision,
            guard=self.nonfinite,
            rng=self.rng,
            data=self.data,
            hooks=self.hooks,
            metrics=self.metrics,
            ranks=self.ranks,
            reporter=self.reporter,
            spikes=SpikeWatch(self.hooks, self.ranks, self.metrics),
            rates=RateWatch(self.optimizers.optimizers),
            propagates=self.ranks.world_size > 1 and self.nonfinite.every_window,
        )

    def validator(self, function: Callable[..., Any]) -> Validator:
        """Validates with ``function``."""
        return Validator(
            self.model,
            function,
            self.config,
            device=self.device,
            hooks=self.hooks,
            ranks=self.ranks,
            precision=self.precision,
            rng=self.rng,
            metrics=self.metrics,
            reporter=self.reporter,
        )


def make_parts(
    config: TrainerConfig,
    model: nn.Module,
    device: torch.device,
    ranks: SingleRank,
    optimizers: Sequence[torch.optim.Optimizer],
    schedulers: Any,
    factories: Mapping[str, Callable[[], Any]],
    hooks: HookList,
) -> Parts:
    """Makes the parts of a trainer.

    Args:
        config: it has been checked.
        model: on ``device``, wrapped by ``ranks``.
        optimizers: of ``model``.
        schedulers: as ``Trainer`` takes them.
        factories: name -> function that makes a loader that was added during training again.
        hooks: called at the run's events.

    Raises:
        ConfigError: settings and objects contradict each other.
    """
    owned = OptimizerSet(model, optimizers, config.per_loader_optimizers)
    rates = SchedulerSet(optimizers, schedulers, config.per_loader_schedulers)
    loss_weights = LossWeights(config.loss_weights_per_loader)
    run, metrics = RunState(), MetricTable()
    data = TrainingData(config, factories, device, ranks)
    reporter = Reporter(config, run, data, metrics, optimizers, ranks, Throughput(model, device, config.logging))
    precision = Precision(config.performance.precision, device)
    nonfinite = NonFiniteGuard(config.performance.on_nonfinite, device)
    parts = Parts(
        config=config,
        model=model,
        device=device,
        ranks=ranks,
        hooks=hooks,
        run=run,
        optimizers=owned,
        schedulers=rates,
        loss_weights=loss_weights,
        items=ItemCounts(ranks),
        precision=precision,
        rng=StepRng(config.seed, config.step_rng, device, ranks.data.rank),
        nonfinite=nonfinite,
        metrics=metrics,
        data=data,
        skips=SkippedUpdates(),
        reporter=reporter,
        init_only=preflight.init_only_settings(config),
    )
    check_clipping(config.performance, optimizers)
    if config.performance.activation_checkpointing:
        checkpoint_activations(model, config.performance.activation_checkpointing)
    if config.performance.compile_model:
        compile_in_place(model, config.performance.compile_mode)
    register_components(parts)
    return parts


def register_components(parts: Parts) -> None:
    """The trainer's state, entry by entry."""
    register, run, owned = parts.registry.register, parts.run, parts.optimizers
    settings = {name: parts.init_only[name] for name in ("seed", "step_rng")}
    settings["per_loader_optimizers"] = owned.describe()
    register("settings", components.SettingsState(settings))
    for name in ("global_step", "num_batches", "epoch", "epoch_is_open", "epoch_end_parts"):
        register(name, RunField(run, name), loading="checked")
    register("pending_work", run.pending)
    register("model", components.ModelState(parts.model, parts.ranks), loading="checked")
    optimizers = components.OptimizersState(parts.model, owned.optimizers, parts.ranks)
    register("optimizers", optimizers, loading="recovers")
    register("requires_grad", components.TrainabilityState(parts.model), loading="checked", is_optional=True)
    register("eval_modules", components.ModesState(parts.model), loading="checked", is_optional=True)
    general = [rate.scheduler for rate in parts.schedulers.general]
    schedulers = [*general, *parts.schedulers.per_loader.values()]
    source = parts.config.fault_tolerance.optimizer_settings
    hyperparameters = components.HyperparametersState(owned.optimizers, schedulers, source)
    register("hyperparameters", hyperparameters, loading="checked", is_optional=True)
    register("schedulers", parts.schedulers)
    scheduler_settings = SchedulerSettings(parts.schedulers.by_place(), source)
    register("scheduler_settings", scheduler_settings, loading="checked", is_optional=True)
    register("item_counts", parts.items, is_optional=True)
    register("scaler", parts.precision)
    register("rng", parts.rng, per_rank=True)
    register("hooks", parts.hooks)
    register("skips", parts.skips, loading="checked", is_optional=True)
    register("metric_table", parts.metrics, per_rank=True)
    register("metrics", components.LoggedMetrics(run))
    register("multi", parts.data, per_rank=data_setup.RANK_KEYS)
    parts.registry.close_own()


def choose_device(model: nn.Module, given: torch.device | str | None) -> torch.device:
    """Where to train: ``given``, else this rank's GPU, else where the model is, else a GPU if there is one."""
    if given is not None:
        return torch.device(given)
    gpu = local_gpu()
    if gpu is not None:
        return gpu
    first = next(model.parameters(), None)
    if first is not None and first.device.type not in ("cpu", "meta"):
        return first.device
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
