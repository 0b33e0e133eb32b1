"""The trainer's public face. What ``fit`` does is in :mod:`mtf.trainer.loop`, one update in :mod:`mtf.trainer.step`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.config.trainer import TrainerConfig
from mtf.data.multi_loader import MultiLoader
from mtf.data.rng.generators import discard_rng_changes
from mtf.distributed.ranks import local_gpu, make_ranks
from mtf.errors import ConfigError, UsageError
from mtf.trainer import components, data_setup, no_effect, preflight
from mtf.trainer._exclusive import only_this_thread
from mtf.trainer.checkpointing import Saver
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.evaluation.aggregation import check_validation
from mtf.trainer.evaluation.validator import Validator
from mtf.trainer.hooks.base import TrainerHooks
from mtf.trainer.hooks.registry import HookList, require_arguments
from mtf.trainer.loop import TrainLoop
from mtf.trainer.metrics import MetricTable
from mtf.trainer.optimization.item_counts import ItemCounts
from mtf.trainer.optimization.nonfinite import NonFiniteGuard
from mtf.trainer.optimization.optimizers import OptimizerSet, SchedulerSet, as_list
from mtf.trainer.optimization.precision import Precision, compile_in_place, deterministic_algorithms
from mtf.trainer.optimization.rate_watch import RateWatch
from mtf.trainer.preemption import PreemptionGuard
from mtf.trainer.reporting import _repr
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.rng import StepRng
from mtf.trainer.run_state import Phase, RunField, RunState, StopCondition
from mtf.trainer.state import TrainerState
from mtf.trainer.state_registry import Stateful, StateRegistry
from mtf.trainer.step import LossWeights, TrainStep

StepFunction = Callable[..., Any]
_STEP_ARGUMENTS = ("trainer", "batch", "batch_idx", "dataloader_idx", "dataloader_name")


class Trainer:
    """Trains a model on batches from several loaders.

    Args:
        config: everything that isn't code or data.
        model: moved to ``device`` in place; ``trainer.model`` is always this very object.
        optimizers: one or several; each parameter belongs to one of them, unless ``per_loader_optimizers`` says more.
        schedulers: learning rate schedulers, each bare (steps per epoch) or as
            ``{"scheduler": s, "interval": "step" | "epoch", "monitor": metric}``. Between epochs one that monitors
            steps whenever its metric has a new value: after a row or a validation.
        training_step: ``(trainer, batch, batch_idx, dataloader_idx, dataloader_name)`` -> loss, or a dict with
            ``"loss"`` and any metrics. With ``"num_samples"``, the items (rows, tokens) whose mean the loss is, an
            update is the mean over all items of its window and of all ranks; 0, or None for the whole result, leaves
            the batch out. May be set later, or overridden in a subclass.
        validation_step: likewise; the training step is used where there is none.
        hooks: one or several, called in this order.
        loader_factories: name -> function without arguments that makes the loader again, for loaders that were
            added during training.
        device: None: where the model's parameters are, or the GPU if they are on the CPU and there is one.

    Raises:
        ConfigError: arguments that contradict each other; nothing has been changed.
    """

    def __init__(
        self,
        config: TrainerConfig | None = None,
        model: nn.Module | None = None,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = (),
        schedulers: Any = None,
        training_step: StepFunction | None = None,
        validation_step: StepFunction | None = None,
        hooks: TrainerHooks | Iterable[TrainerHooks] = (),
        loader_factories: Mapping[str, Callable[[], Any]] | None = None,
        device: torch.device | str | None = None,
        **unknown: Any,
    ) -> None:
        preflight.refuse_unknown_arguments(Trainer, unknown)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be a torch.nn.Module, it is {model!r}")
        self.config = config if config is not None else TrainerConfig()
        if not isinstance(self.config, TrainerConfig):
            raise ConfigError(
                f"config must be a TrainerConfig, it is {config!r}: a mixture goes into TrainerConfig(multi=...), "
                "a dict into TrainerConfig.from_dict"
            )
        self.config.require_valid()
        performance, on_hook_error = self.config.performance, self.config.fault_tolerance.on_hook_error
        self.model = model
        self.device = _device(model, device)
        self.optimizers = as_list(optimizers)
        self.model.to(self.device)
        self.ranks = make_ranks(self.config.ddp, self.device.type)
        with self.ranks.failures(lambda: "while the trainer was made"):
            self.ranks.wrap(self.model, self.optimizers)
        self._optimizer_set = OptimizerSet(model, self.optimizers, self.config.per_loader_optimizers)
        self._scheduler_set = SchedulerSet(self.optimizers, schedulers, self.config.per_loader_schedulers)
        self._loss_weights = LossWeights(self.config.loss_weights_per_loader)
        self.hooks = HookList(self, [hooks] if isinstance(hooks, TrainerHooks) else hooks, on_hook_error)
        self._items = ItemCounts(self.ranks)
        self._precision = Precision(performance.precision, self.device)
        self._step_rng = StepRng(self.config.seed, self.config.step_rng, self.device, self.ranks.rank)
        self._nonfinite = NonFiniteGuard(performance.on_nonfinite, self.device)
        self._metric_table = MetricTable()
        self._training_step: StepFunction | None = None
        self._validation_step: StepFunction | None = None
        if training_step is not None:
            self.set_training_step(training_step)
        if validation_step is not None:
            self.set_validation_step(validation_step)
        self.run_state = RunState()
        self._data = TrainingData(self.config, loader_factories or {}, self.device, self.ranks)
        if performance.compile_model:
            compile_in_place(self.model)
        self._init_only = preflight.init_only_settings(self.config)
        self._reporter = Reporter(
            self.config, self.run_state, self._data, self._metric_table, self.optimizers, self.ranks
        )
        self._registry = self._components()
        self._saver = Saver(self)

    def _components(self) -> StateRegistry:
        """The trainer's state, entry by entry."""
        run = self.run_state
        registry = StateRegistry(self.ranks, upgrade=components.upgraded, on_loaded=self._after_load)
        settings = {name: self._init_only[name] for name in ("seed", "step_rng")}
        settings["per_loader_optimizers"] = self._optimizer_set.describe()
        registry.register("settings", components.SettingsState(settings))
        for name in ("global_step", "num_batches", "epoch", "epoch_is_open", "epoch_end_parts"):
            registry.register(name, RunField(run, name), loading="checked")
        registry.register("pending_work", run.pending)
        registry.register("model", components.ModelState(self.model, self.ranks), loading="checked")
        optimizers = components.OptimizersState(self.model, self.optimizers, self.ranks)
        registry.register("optimizers", optimizers, loading="recovers")
        trainability = components.TrainabilityState(self.model)
        registry.register("requires_grad", trainability, loading="checked", is_optional=True)
        general = [rate.scheduler for rate in self._scheduler_set.general]
        schedulers = [*general, *self._scheduler_set.per_loader.values()]
        source = self.config.fault_tolerance.optimizer_settings
        hyperparameters = components.HyperparametersState(self.optimizers, schedulers, source)
        registry.register("hyperparameters", hyperparameters, loading="checked", is_optional=True)
        registry.register("schedulers", self._scheduler_set)
        registry.register("item_counts", self._items, is_optional=True)
        registry.register("scaler", self._precision)
        registry.register("rng", self._step_rng, per_rank=True)
        registry.register("hooks", self.hooks)
        registry.register("metric_table", self._metric_table, per_rank=True)
        registry.register("metrics", components.LoggedMetrics(run))
        registry.register("multi", self._data, per_rank=data_setup.RANK_KEYS)
        return registry

    def _after_load(self) -> None:
        self._optimizer_set.clear()
        for optimizer in self.optimizers if self.global_step else ():
            # Where an epoch's end comes first, torch's schedulers would warn that it hasn't stepped yet.
            optimizer._opt_called = True  # type: ignore[attr-defined]  # torch sets it in step()
        self._metric_table.reset_objects()
        self._nonfinite.forget(0)
        self.run_state.mend()

    # Hooks, steps, components

    def add_hook(self, hook: TrainerHooks) -> None:
        """Adds ``hook`` after those there are."""
        self.hooks.add(hook)

    def register(self, name: str, component: Stateful) -> None:
        """Adds ``component`` to the state: it is saved, compared by ``mtf diff`` and loaded under ``name``.

        A state that has nothing under ``name`` leaves it as it is, so a component may be added to a run that has
        checkpoints already.

        Args:
            component: has ``state_dict()`` and ``load_state_dict(state)``, and maybe ``check(state)``, which returns
                differences in words. States are tensors, numbers, strings, bytes, and dicts, lists and tuples of them.

        Raises:
            ConfigError: the name is taken, or ``component`` has no state.
            UsageError: inside ``fit``.
        """
        if self.is_fitting:
            raise UsageError("register was called inside fit: call it before, so that a resume finds the component")
        self._registry.register(name, component, is_optional=True)

    def set_training_step(self, function: StepFunction) -> None:
        """Sets ``(trainer, batch, batch_idx, dataloader_idx, dataloader_name) -> loss or dict``."""
        require_arguments(function, "training_step", _STEP_ARGUMENTS)
        self._training_step = function

    def set_validation_step(self, function: StepFunction) -> None:
        """Sets the validation step, with the same arguments as the training step."""
        require_arguments(function, "validation_step", _STEP_ARGUMENTS)
        self._validation_step = function

    def training_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> Tensor | Mapping[str, Any]:
        """One training step; a subclass may override it.

        Raises:
            ConfigError: there is none.
        """
        if self._training_step is None:
            raise ConfigError("there is no training step: call set_training_step, or override training_step")
        result: Tensor | Mapping[str, Any] = self._training_step(
            self, batch, batch_idx, dataloader_idx, dataloader_name
        )
        return result

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> Tensor | Mapping[str, Any]:
        """One validation step; a subclass may override it. Without one the training step is used."""
        if self._validation_step is None:
            return self.training_step(batch, batch_idx, dataloader_idx, dataloader_name)
        result: Tensor | Mapping[str, Any] = self._validation_step(
            self, batch, batch_idx, dataloader_idx, dataloader_name
        )
        return result

    # Training and validation

    def fit(
        self,
        train_loaders: Any,
        val_loaders: Any = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        resume_from: str | None = None,
        **unknown: Any,
    ) -> None:
        """Trains until ``max_epochs`` or ``max_steps`` (updates), both counted from the beginning of training.

        With neither, one more epoch. Calling it again continues where it stopped. Any thread may call it, one at a time
        in a process; outside the main thread signals end the process without a save, and ``fetch_timeout_s`` holds for
        native sources only.

        Args:
            train_loaders: a list of loaders, a dict name -> loader, or one loader.
            val_loaders: likewise; None: no validation.
            resume_from: a checkpoint's path, or ``"latest"`` in ``checkpoint.root_dir``.

        Raises:
            ConfigError: before any data is read, for arguments that don't fit.
            StateMismatch: the loaders are not those that the state knows.
            Preempted: a signal arrived; the state has been saved.
        """
        preflight.refuse_unknown_arguments(Trainer.fit, unknown)
        run, fault_tolerance, preemption = self.run_state, self.config.fault_tolerance, self.config.preemption
        with ExitStack() as stack:
            stack.enter_context(only_this_thread())
            if self.is_fitting:
                raise UsageError("fit was called inside fit (by a hook or a step): request_stop, then call it again")
            run.enter(Phase.BETWEEN_UPDATES)
            run.stop_reason, run.is_stopping, run.late_error = None, False, None
            stack.callback(self._leave)
            stack.enter_context(self.ranks.failures(lambda: f"after {run.global_step} updates"))
            limits = StopCondition(max_epochs, max_steps, run.epoch)
            self._saver.guard = stack.enter_context(PreemptionGuard(preemption.signals, preemption.exit_code))
            loop = self._loop(self._resume(resume_from, train_loaders, val_loaders, limits))
            stack.callback(self._data.end_workers, loop.val_loaders.values())
            self._saver.leave_if_asked()
            if run.is_resumed and fault_tolerance.verify_deterministic_resume:
                self._data.manager.verify_recent_batches()
            run.is_resumed = False
            stack.enter_context(discard_rng_changes(self._step_rng.is_derived))
            stack.enter_context(deterministic_algorithms(self.config.performance.deterministic))
            try:
                loop.fit(limits)
                self._saver.finish()
                self._reporter.finish(self._saver.saved_path)
            except BaseException as error:
                if run.is_in_window:
                    self._saver.forget_what_was_asked_for()
                loop.step.roll_back(run)
                run.interrupt()
                self._saver.is_safe = self.world_size == 1  # several ranks save together, and others may not be here
                self.hooks.call("on_exception", error)
                raise

    def validate(self, val_loaders: Any) -> dict[str, float]:
        """Runs every batch of ``val_loaders`` once; returns ``val/<metric>`` and ``val/<loader>/<metric>``."""
        multi = self._data.multi
        names = self.config.multi.dataloader_names if multi is None else multi.initial_names
        named = data_setup.name_validation(val_loaders, self.config.val_loader_config, names)
        with deterministic_algorithms(self.config.performance.deterministic):
            return self._validator().run(named)

    def request_stop(self, reason: str = "requested") -> None:
        """Makes ``fit`` return after the current window; on several ranks at the next look of
        ``preemption.agree_every``, when one rank at least has asked for it."""
        self.run_state.stop_reason = reason
        self.run_state.is_stopping = self.run_state.is_stopping or self.world_size == 1

    # State

    def save_checkpoint(self, path: str) -> None:
        """Saves to ``path``; asked for inside an update, an epoch's start or its end, it happens right after it."""
        if not self._saver.is_safe:
            self._saver.ask(path)
        else:
            self._saver.save(path)

    def load_checkpoint(self, path: str) -> None:
        """Loads the state from ``path``, before or after the first ``fit``."""
        if self.is_fitting:
            raise UsageError("load_checkpoint was called inside fit: request_stop, then call it")
        self._saver.load(path)

    def get_state(self) -> TrainerState:
        """A deep copy of everything that decides how training continues. ``==`` is exact, bit by bit.

        In ``on_epoch_end`` it continues behind this epoch's end. In a validation hook the validation isn't part of it.

        Raises:
            UsageError: inside a window; a state never holds half a window.
        """
        if self.run_state.is_in_window:
            raise UsageError(
                "get_state was called inside a window: call it in an epoch or validation hook, or after fit"
            )
        return TrainerState(self.ranks.full(self._registry.collect()))

    def load_state(self, saved: TrainerState) -> None:
        """Loads ``get_state()`` of this or another trainer of the same kind."""
        if self.is_fitting:
            raise UsageError("load_state was called inside fit: request_stop, then call it")
        self._registry.load(saved.tree)
        self._saver.forget()

    # Loaders

    def add_dataloader(self, loader: Any, name: str, weight: float | None = None) -> None:
        """Adds a loader; inside a window it takes effect at its end. It is part of the state from then on."""
        self._data.add(loader, name, weight)

    def remove_dataloader(self, name: str) -> None:
        """Removes a loader; inside a window it takes effect at its end."""
        self._data.remove(name, is_final=not self.run_state.is_in_window)

    @property
    def multi_loader_manager(self) -> MultiLoader:
        """The mixture of training loaders; there is one from the first ``fit`` on."""
        return self._data.manager

    @property
    def multi_loader_config(self) -> MultiDataLoaderConfig:
        """Configuration of the mixture as it is now, edits included."""
        return self.config.multi if self._data.multi is None else self._data.multi.config

    # Metrics and position

    def log(self, name: str, value: Any) -> None:
        """Notes a value under its own name; the mean since the last row is logged. Nothing is read from the device."""
        self._metric_table.add("", name, value)

    def close_logs(self) -> None:
        """Closes the loggers: a W&B or MLflow run ends, and another trainer of this process can have one of its own.

        The next ``fit`` opens them again and continues in the same place.
        """
        if self.is_fitting:
            raise UsageError("close_logs was called inside fit: call it after fit")
        self._reporter.close_logs()

    def print(self, *args: Any) -> None:
        """``print`` on rank 0 only."""
        if self.rank == 0:
            print(*args)

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of every metric."""
        return {**self.run_state.logged, **self.run_state.partial_row}

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or the next one between two epochs."""
        return self.run_state.epoch

    @property
    def global_step(self) -> int:
        """Updates since the beginning of training."""
        return self.run_state.global_step

    @property
    def num_batches(self) -> int:
        """Batches (training steps) since the beginning of training."""
        return self.run_state.num_batches

    @property
    def stop_reason(self) -> str | None:
        """Why this rank wants ``fit`` to return; None: it doesn't."""
        return self.run_state.stop_reason

    @property
    def should_stop(self) -> bool:
        """Whether a stop was requested. Setting it to True is :meth:`request_stop`, as in Lightning."""
        return self.run_state.stop_reason is not None

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value:
            self.request_stop("should_stop was set")
        else:
            self.run_state.stop_reason, self.run_state.is_stopping = None, False

    @property
    def is_fitting(self) -> bool:
        """Whether ``fit`` is running: tells its validations from those that ``validate`` was called for outside."""
        return self.run_state.is_fitting

    @property
    def rank(self) -> int:
        """Number of this process among all ranks."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.ranks.world_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name[0] != "_" and "_saver" in vars(self) and not isinstance(value, HookList):
            no_effect.check_assignment(name, is_subclass=type(self) is not Trainer)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """Model, optimizers, place and position."""
        if "_saver" not in vars(self):  # a traceback shows the object whose constructor has raised
            return f"{type(self).__name__}(not constructed)"
        return _repr.line(type(self).__name__, self.model, self.optimizers, self._place(), self.run_state)

    def _repr_html_(self) -> str:
        kind, loaders = type(self).__name__, self._data.multi
        return _repr.page(kind, self.model, self.optimizers, self._place(), self.run_state, loaders, self.metrics)

    def _place(self) -> str:
        return str(self.device) + (f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else "")

    # Parts of fit

    def _resume(
        self, source: str | None, train_loaders: Any, val_loaders: Any, limits: StopCondition
    ) -> dict[str, Any]:
        """Opens the loaders and loads the state to continue from; returns the validation loaders by name."""
        self.config.require_valid()
        if self._training_step is None and type(self).training_step is Trainer.training_step:
            raise ConfigError("there is no training step: call set_training_step, or override training_step")
        for name in ("training_step", "validation_step"):
            require_arguments(getattr(self, name), name, _STEP_ARGUMENTS[1:])
        preflight.warn_of_no_effect(self.config, self.model, self._same_optimizers(), self.hooks, val_loaders)
        no_effect.warn_of_settings(self.config, val_loaders)
        self._warn_of_changes({})
        data, config = self._data, self.config
        is_new = data.open(train_loaders)
        try:
            self._saver.resume(source)
            is_new = data.open(train_loaders) if data.multi is None else is_new
            self.run_state.require_whole()
            data.load_pending()
            named = data_setup.name_validation(val_loaders, config.val_loader_config, data.manager.initial_names)
            for part in (self._optimizer_set, self._scheduler_set, self._loss_weights):
                part.check_names(data.setting_names)
            if named:
                check_validation(config.validation, list(named))
            preflight.require_same_on_all_ranks(self.ranks, config, self.run_state, limits, list(named))
            data.require_same_schedule()
        except BaseException:
            if is_new:
                data.undo_open()
            raise
        if is_new:
            data.warn_of_idle()
        return named

    def _warn_of_changes(self, said: dict[str, Any]) -> None:
        no_effect.warn_of_late_changes(preflight.init_only_settings(self.config), self._init_only, said)

    def _same_optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the constructor.

        Raises:
            UsageError: ``trainer.optimizers`` or ``trainer.model`` was replaced.
        """
        owned = self._optimizer_set
        if owned.model is not self.model or [*map(id, owned.optimizers)] != [*map(id, self.optimizers)]:
            raise UsageError(
                "trainer.model or trainer.optimizers was replaced after the trainer had been made, which training "
                "would only half follow: make a new trainer with them"
            )
        return self.optimizers

    def _loop(self, val_loaders: dict[str, Any]) -> TrainLoop:
        step = TrainStep(
            function=self.training_step,
            model=self.model,
            performance=self.config.performance,
            optimizers=self._optimizer_set,
            schedulers=self._scheduler_set,
            loss_weights=self._loss_weights,
            items=self._items,
            precision=self._precision,
            guard=self._nonfinite,
            rng=self._step_rng,
            data=self._data,
            hooks=self.hooks,
            metrics=self._metric_table,
            ranks=self.ranks,
            reporter=self._reporter,
            rates=RateWatch(self.optimizers),
            propagates=self.world_size > 1 and self._nonfinite.every_window,
        )
        return TrainLoop(
            run=self.run_state,
            step=step,
            data=self._data,
            hooks=self.hooks,
            validator=self._validator(),
            val_loaders=val_loaders,
            reporter=self._reporter,
            saves=self._saver,
            config=self.config,
            warn_of_changes=partial(self._warn_of_changes, {}),
        )

    def _validator(self) -> Validator:
        return Validator(
            self.model,
            self.validation_step,
            self.config,
            device=self.device,
            hooks=self.hooks,
            ranks=self.ranks,
            precision=self._precision,
            rng=self._step_rng,
            metrics=self._metric_table,
            reporter=self._reporter,
        )

    def _leave(self) -> None:
        self.run_state.interrupt()
        self.run_state.enter(Phase.IDLE)
        try:
            self._optimizer_set.clear()
            self._reporter.close()
        finally:  # a second Ctrl-C must not keep the directory
            self._saver.close()


GenericTrainer = Trainer


def _device(model: nn.Module, given: torch.device | str | None) -> torch.device:
    if given is not None:
        return torch.device(given)
    gpu = local_gpu()
    if gpu is not None:
        return gpu
    first = next(model.parameters(), None)
    if first is not None and first.device.type not in ("cpu", "meta"):
        return first.device
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
