"""The trainer: take a window of batches, forward, backward, maybe step, maybe validate, maybe save, tell the hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.config.trainer import TrainerConfig
from mtf.data.agreed_lengths import check_same_schedule
from mtf.data.batch import Batch
from mtf.data.multi_loader import MultiLoader
from mtf.data.rng.generators import discard_rng_changes
from mtf.distributed.ranks import local_gpu, make_ranks
from mtf.enums import ValidationFrequency
from mtf.errors import ConfigError, MtfError
from mtf.trainer import _repr, data_setup, poison, snapshot
from mtf.trainer._exclusive import only_this_thread
from mtf.trainer.accumulate import LossWeights, windows
from mtf.trainer.batch import add_note, num_samples
from mtf.trainer.checkpointing import Saver
from mtf.trainer.hooks.base import HookList, TrainerHooks, require_arguments
from mtf.trainer.init_only import init_only_settings_of
from mtf.trainer.loss import loss_of
from mtf.trainer.metrics import MetricTable
from mtf.trainer.nonfinite import NonFiniteGuard
from mtf.trainer.optimizers import OptimizerSet, SchedulerSet, as_list
from mtf.trainer.pending_work import PendingWork
from mtf.trainer.precision import Precision, compile_in_place, deterministic_algorithms
from mtf.trainer.preemption import PreemptionGuard
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.rng import StepRng
from mtf.trainer.state import TrainerState
from mtf.trainer.stop_condition import StopCondition
from mtf.trainer.validation import ValidationLeft, check_validation, run_validation

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
            ``"loss"`` and any metrics. May be set later, or overridden in a subclass.
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
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be a torch.nn.Module, it is {model!r}")
        self.config = config if config is not None else TrainerConfig()
        if not isinstance(self.config, TrainerConfig):
            raise ConfigError(
                f"config must be a TrainerConfig, it is {config!r}: a mixture goes into TrainerConfig(multi=...), "
                "a dict into TrainerConfig.from_dict"
            )
        self.config.require_valid()
        performance, fault_tolerance = self.config.performance, self.config.fault_tolerance
        self.model = model
        self.device = _device(model, device)
        self.optimizers = as_list(optimizers)
        self.model.to(self.device)
        self.ranks = make_ranks(self.config.ddp, self.device.type)
        with self.ranks.failures(lambda: "while the trainer was made"):
            self.ranks.wrap(self.model, self.optimizers)
        self.optimizer_set = OptimizerSet(model, self.optimizers, self.config.per_loader_optimizers)
        self.scheduler_set = SchedulerSet(self.optimizers, schedulers, self.config.per_loader_schedulers)
        self.loss_weights = LossWeights(self.config.loss_weights_per_loader)
        self.hooks = HookList([hooks] if isinstance(hooks, TrainerHooks) else hooks, fault_tolerance.on_hook_error)
        self.precision = Precision(performance.precision, self.device)
        self.step_rng = StepRng(self.config.seed, self.config.step_rng, self.device, self.ranks.rank)
        self.nonfinite = NonFiniteGuard(performance.on_nonfinite, self.device)
        self.metric_table = MetricTable()
        self.loader_factories = dict(loader_factories or {})
        self._training_step: StepFunction | None = None
        self._validation_step: StepFunction | None = None
        if training_step is not None:
            self.set_training_step(training_step)
        if validation_step is not None:
            self.set_validation_step(validation_step)

        self.epoch = 0
        """The epoch that is under way, or the next one between two epochs."""
        self.global_step = 0
        """Updates since the beginning of training."""
        self.num_batches = 0
        """Training steps (batches) since the beginning of training."""
        self.epoch_is_open = False
        """Whether the current epoch has begun: its ``on_epoch_start`` was called."""
        self.epoch_end_parts = 0
        """How many parts of the current epoch's end are done; 0 before its last update."""
        self.pending_work = PendingWork()
        """What follows the last update and isn't done yet."""
        self.is_mid_update = False
        """Whether an update broke off between its first and its last change."""
        self.logged: dict[str, float] = {}
        """The latest value of everything that was logged at intervals or validated; part of the state."""
        self.partial_row: dict[str, float] = {}
        """Between two calls of ``fit``: means of the interval that goes on in the next call."""

        self.multi: MultiLoader | None = None
        self.pending_multi_state: Mapping[str, Any] | None = None
        """State of the mixture that was loaded before the first ``fit`` made one."""
        self.is_resumed = False
        """Whether a state was put in place since the last ``fit`` began."""
        self.given_loaders: dict[str, Any] = {}
        self.added_loaders: dict[str, Any] = {}
        self._val_loaders: dict[str, Any] = {}
        self._is_fitting = False
        self._in_window = False
        self._num_batches_committed = 0
        self._late_error: BaseException | None = None  # of a hook, while its update had to be completed
        self._ranks_are_open = False
        self._poisons = False
        self.stop_reason: str | None = None
        """Why this rank wants ``fit`` to return; None: it doesn't."""
        self.is_stopping = False
        """Whether ``fit`` returns after this update, on all ranks."""
        if performance.compile_model:
            compile_in_place(self.model)
        self.init_only_settings = init_only_settings_of(self.config)
        """Settings that are read once, here."""
        self._saver = Saver(self)
        self.reporter = Reporter(self)

    # What users call ---------------------------------------------------------------------------------------------

    def add_hook(self, hook: TrainerHooks) -> None:
        """Adds ``hook`` after those there are."""
        self.hooks.add(hook)

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

    def fit(
        self,
        train_loaders: Any,
        val_loaders: Any = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        resume_from: str | None = None,
    ) -> None:
        """Trains until ``max_epochs`` or ``max_steps`` (updates), both counted from the beginning of training.

        With neither, one more epoch. Calling it again goes on where it stopped. Any thread may call it, one at a time
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
        with ExitStack() as stack:
            stack.enter_context(only_this_thread())
            if self._is_fitting:
                raise ConfigError("fit was called inside fit (by a hook or a step): request_stop, then call it again")
            self._is_fitting = True
            self.stop_reason, self.is_stopping = None, False
            self._late_error = None
            stack.callback(self._leave)
            stack.enter_context(self.ranks.failures(lambda: f"after {self.global_step} updates"))
            limits = StopCondition(max_epochs, max_steps, self.epoch)
            preemption = self.config.preemption
            self._saver.guard = stack.enter_context(PreemptionGuard(preemption.signals, preemption.exit_code))
            self._resume(resume_from, train_loaders, val_loaders, limits)
            self._saver.leave_if_asked()
            if self.is_resumed and self.config.fault_tolerance.verify_deterministic_resume:
                self.multi_loader_manager.verify_recent_batches()
            self.is_resumed = False
            stack.enter_context(discard_rng_changes(self.step_rng.is_derived))
            stack.enter_context(deterministic_algorithms(self.config.performance.deterministic))
            try:
                self._train(limits)
                self._saver.finish()
            except BaseException as error:
                self._roll_back()
                self._saver.is_safe = self.world_size == 1  # several ranks save together, and others may not be here
                self.hooks.call("on_exception", self, error)
                raise

    def validate(self, val_loaders: Any) -> dict[str, float]:
        """Runs every batch of ``val_loaders`` once; returns ``val/<metric>`` and ``val/<loader>/<metric>``."""
        names = self.config.multi.dataloader_names if self.multi is None else self.multi.initial_names
        named = data_setup.name_validation(val_loaders, self.config.val_loader_config, names)
        with deterministic_algorithms(self.config.performance.deterministic):
            return run_validation(self, named)

    def save_checkpoint(self, path: str) -> None:
        """Saves to ``path``; asked for inside an update, an epoch's start or its end, it happens right after it."""
        if not self._saver.is_safe:
            self._saver.ask(path)
        else:
            self._saver.save(path)

    def load_checkpoint(self, path: str) -> None:
        """Puts the state from ``path`` in place, before or after the first ``fit``."""
        if self._is_fitting:
            raise ConfigError("load_checkpoint was called inside fit: request_stop, then call it")
        self._saver.load(path)

    def get_state(self) -> TrainerState:
        """A deep copy of everything that decides how training goes on. ``==`` is exact, bit by bit.

        In ``on_epoch_end`` it goes on behind this epoch's end. In a validation hook the validation isn't part of it.

        Raises:
            ConfigError: inside a window; a state never holds half a window.
        """
        if self._in_window:
            raise ConfigError(
                "get_state was called inside a window: call it in an epoch or validation hook, or after fit"
            )
        return snapshot.capture(self)

    def load_state(self, saved: TrainerState) -> None:
        """Puts ``get_state()`` of this or another trainer of the same kind in place."""
        if self._is_fitting:
            raise ConfigError("load_state was called inside fit: request_stop, then call it")
        snapshot.restore(self, saved.tree)
        self._saver.forget()

    def add_dataloader(self, loader: Any, name: str, weight: float | None = None) -> None:
        """Adds a loader; inside a window it takes effect at its end. It is part of the state from then on."""
        self.multi_loader_manager.add_source(name, loader, weight=weight)
        self._ranks_are_open = False
        self.added_loaders[name] = loader

    def remove_dataloader(self, name: str) -> None:
        """Removes a loader; inside a window it takes effect at its end."""
        self.multi_loader_manager.remove_source(name)
        if not self._in_window:  # which may fail, and then has it again
            self.added_loaders.pop(name, None)

    def log(self, name: str, value: Any) -> None:
        """Notes a value under its own name; the mean since the last row is logged. Nothing is read from the device."""
        self.metric_table.add("", name, value)

    def close_logs(self) -> None:
        """Closes the loggers: a W&B or MLflow run ends, and another trainer of this process can have one of its own.

        The next ``fit`` opens them again and goes on in the same place.
        """
        if self._is_fitting:
            raise ConfigError("close_logs was called inside fit: call it after fit")
        self.reporter.close_logs()

    def request_stop(self, reason: str = "requested") -> None:
        """Makes ``fit`` return after the current window; on several ranks at the next look of
        ``preemption.agree_every``, when one rank at least has asked for it."""
        self.stop_reason = reason
        self.is_stopping = self.is_stopping or self.world_size == 1

    def print(self, *args: Any) -> None:
        """``print`` on rank 0 only."""
        if self.rank == 0:
            print(*args)

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of every metric."""
        return {**self.logged, **self.partial_row}

    @property
    def is_fitting(self) -> bool:
        """Whether ``fit`` is running: tells its validations from those that ``validate`` was called for outside."""
        return self._is_fitting

    @property
    def rank(self) -> int:
        """Number of this process among all ranks."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.ranks.world_size

    @property
    def multi_loader_manager(self) -> MultiLoader:
        """The mixture of training loaders; there is one from the first ``fit`` on."""
        if self.multi is None:
            raise ConfigError("there are no loaders yet: multi_loader_manager exists from the first fit on")
        return self.multi

    @property
    def multi_loader_config(self) -> MultiDataLoaderConfig:
        """Configuration of the mixture as it is now, edits included."""
        return self.config.multi if self.multi is None else self.multi.config

    def __repr__(self) -> str:
        """Model, optimizers, place and position."""
        return _repr.line(self)

    def _repr_html_(self) -> str:
        return _repr.page(self)

    # The loop ----------------------------------------------------------------------------------------------------

    def _train(self, limits: StopCondition) -> None:
        if self._is_done(limits):
            warnings.warn(
                f"nothing to do: {limits.reason(self)}; both count from the beginning of training", stacklevel=3
            )
            return
        self._tell("on_train_start")
        self.is_stopping = self.ranks.any(self.stop_reason is not None)
        self.reporter.open()
        self._saver.is_safe = False
        while not self.is_stopping and not self._is_done(limits):
            if self.pending_work.is_anything:  # after an error, or from a state taken in a hook
                self._finish_update(self.multi_loader_manager.epoch != self.epoch, limits.steps_reached(self))
                continue
            if not self.epoch_is_open:
                self._begin_epoch()
            if not self._run_epoch(limits):
                break
            self._end_epoch()
        self._saver.is_safe = True
        self.nonfinite.window_is_finite()
        self.reporter.pause()
        self.scheduler_set.warn_of_missing(self.logged, validates=bool(self._val_loaders))
        self._tell("on_train_end")
        self._saver.at_end()

    def _is_done(self, limits: StopCondition) -> bool:
        """Whether nothing is left to do; what an update owes is, and so is the end of an epoch that has begun."""
        is_ending = self.epoch_is_open and self.multi_loader_manager.epoch != self.epoch
        return limits.reached(self) and not is_ending and not self.pending_work.is_anything

    def _tell(self, event: str, *args: Any) -> None:
        """Tells every hook of something between two windows. What they log stays when none of them raised."""
        self.hooks.call(event, self, *args)
        self.metric_table.commit()

    def _begin_epoch(self) -> None:
        self._tell("on_epoch_start", self.epoch)
        self.epoch_is_open = True
        self._saver.save_what_was_asked_for()

    def _run_epoch(self, limits: StopCondition) -> bool:
        """Trains to the end of the epoch; False when it stopped before."""
        multi = self.multi_loader_manager
        if multi.epoch == self.epoch:  # else all its batches were trained on when fit was left
            self.reporter.begin_epoch(multi)
        self._num_batches_committed = self.num_batches
        while multi.epoch == self.epoch:  # again where an edit in the last window made the epoch longer
            for window in windows(iter(multi), self.config.performance.gradient_accumulation_steps):
                if not self._ranks_are_open:
                    self._open_ranks()
                self._in_window = True
                self.step_rng.begin_window()
                is_mixed = len(window) > 1 and any(batch.name != window[0].name for batch in window)
                try:
                    for batch in window:
                        with self.ranks.window(batch is window[-1], is_mixed):
                            self._step(batch, self.loss_weights.factor(batch.name, len(window)) * batch.weight)
                except Exception as error:
                    add_note(error, f"in the training step on {batch.place}")
                    raise
                self._update(window)
                self._in_window = False
                is_last, is_final = multi.epoch != self.epoch, limits.steps_reached(self)
                self._after_update(window, is_last, is_final)
                # An edit between the windows may have made the epoch shorter, too.
                if (self.is_stopping or is_final) and multi.epoch == self.epoch:
                    return False
        return True

    def _step(self, batch: Batch, factor: float) -> None:
        """Forward and backward of one batch."""
        hooks, data = self.hooks, batch.data
        place = (batch.batch_idx, batch.source, batch.name)
        self.step_rng.begin(self.num_batches)
        for method in hooks.on_train_batch_start:
            method(self, data, *place)
        forward = self._autocast_step if self.precision.is_mixed else self.training_step
        result = self.ranks.run(forward, data, *place)
        loss = loss_of(result, batch)
        # On the CPU a number is cheaper than a tensor that is kept; elsewhere reading it would wait for the device.
        value = loss.item() if loss.is_cpu else loss.detach()
        self.nonfinite.add(value, batch.name, batch.batch_idx, self.num_batches)
        scaled = loss if factor == 1.0 else loss * factor
        if self._poisons:
            scaled = poison.poisoned(scaled, loss.detach())
        for method in hooks.on_before_backward:
            method(self, scaled)
        scaler = self.precision.scaler
        torch.autograd.backward(scaled if scaler is None else scaler.scale(scaled))
        for method in hooks.on_after_backward:
            method(self)
        self.num_batches += 1
        self.metric_table.add_scalar(batch.name, "loss", value, batch.weight)
        metrics = {} if isinstance(result, Tensor) or len(result) == 1 else self._note(batch, result)
        self.reporter.num_samples += num_samples(data)
        self.reporter.advance(1)
        for method in hooks.on_train_batch_end:
            method(self, data, *place, {"loss": loss.detach(), **metrics})

    def _autocast_step(self, *args: Any) -> Any:
        with self.precision.autocast():
            return self.training_step(*args)

    def _note(self, batch: Batch, result: Mapping[str, Any]) -> dict[str, Any]:
        """Notes what a step returned besides its loss; returns it, detached."""
        metrics: dict[str, Any] = {}
        for key, value in result.items():
            if key not in ("loss", "num_samples"):
                metrics[key] = value.detach() if isinstance(value, Tensor) else value
                self.metric_table.add(batch.name, key, metrics[key], batch.weight)
        return metrics

    def _update(self, window: list[Batch]) -> None:
        """Ends a window: optimizers, schedulers, cleared gradients, one more update, the batches committed."""
        stepping: dict[int, float] = {}
        scaler = self.precision.scaler
        if not self.nonfinite.every_window or self._window_is_finite():
            stepping = self.optimizer_set.prepare(window, self, self.hooks, self.ranks, scaler)
        self.is_mid_update = True  # an error from here on could leave half an update
        self.optimizer_set.step(stepping, scaler)
        if self.hooks.on_after_optimizer_step:
            self._tell_steps(stepping)
        self.optimizer_set.clear()
        self.scheduler_set.after_update(window, stepping)
        self.global_step += 1
        self.multi_loader_manager.commit()
        self.metric_table.commit()
        self._num_batches_committed = self.num_batches
        self.is_mid_update = False

    def _tell_steps(self, stepped: Iterable[int]) -> None:
        """Tells every hook; an error waits until the update is whole."""
        for method in self.hooks.on_after_optimizer_step:
            try:
                for i in stepped:
                    method(self, i)
            except BaseException as error:  # also a hook's sys.exit()
                self._late_error = self._late_error or error

    def require_whole(self) -> None:
        """Raises ``ConfigError`` where the weights are between two states."""
        if self.is_mid_update:
            raise ConfigError(
                f"update {self.global_step + 1} broke off in the middle (an optimizer or a scheduler raised, or a "
                "second signal came), so the weights belong to no state: load_checkpoint or load_state goes on from one"
            )

    def _window_is_finite(self) -> bool:
        """Whether the window may become an update, the same on all ranks.

        Raises:
            NonFiniteLoss: under ``"raise"``, on every rank, for the loss of any.
        """
        finite = self.nonfinite.window_is_finite()
        if self.world_size == 1:
            return finite
        if self.nonfinite.policy == "skip":
            return not self.ranks.any(not finite)
        poison.require_none(self.model.parameters(), self.num_batches)
        return finite

    def require_same_schedule(self) -> None:
        """A collective on several ranks.

        Raises:
            ConfigError: on all ranks, where their schedules are no longer the same; names ranks and fields.
        """
        if self.world_size > 1 and self.multi is not None:
            check_same_schedule(self.multi.schedule, self.world_size, self.multi.state_dict()["schedule"])

    def _require_same_settings(self, limits: StopCondition) -> None:
        """Settings that would make ranks run different numbers of steps or collectives."""
        if self.world_size == 1:
            return
        config = self.config.describe()
        parts = ("performance", "validation", "checkpoint", "preemption", "ddp", "seed", "step_rng")
        settings = {name: config[name] for name in (*parts, "per_loader_optimizers", "loss_weights_per_loader")}
        settings["logging"] = {"log_scalars_every_n_steps": self.config.logging.log_scalars_every_n_steps}
        position = {"updates": self.global_step, "epoch": self.epoch}
        fields = {"config": settings, "limits": limits.describe(), "position": position}
        self.ranks.require_equal("the run", {**fields, "validation loaders": list(self._val_loaders)})

    def _open_ranks(self) -> None:
        """Before the first window, and the first one after a loader was added."""
        self.ranks.open(len({*self.multi_loader_manager.names, *self.loader_factories}))
        self._poisons = self.world_size > 1 and self.nonfinite.every_window
        self._ranks_are_open = True

    def _roll_back(self) -> None:
        """After an error: the state is that of the last update, which weights never left."""
        if self._in_window:
            self._in_window = False
            if any(getattr(module, "track_running_stats", False) for module in self.model.modules()):
                with suppress(UserWarning):  # where warnings are errors, the one under way says more
                    warnings.warn(
                        "running statistics of the model's normalisation layers may hold a part of the window that "
                        "failed, and nothing can take it out: load a checkpoint to go on exactly",
                        stacklevel=3,
                    )
            self.optimizer_set.clear()
            self.num_batches = self._num_batches_committed
            self.nonfinite.forget(self.num_batches)
            self._saver.forget_what_was_asked_for()
            self.precision.roll_back()
            self.step_rng.roll_back()
        self.metric_table.roll_back()
        self.multi_loader_manager.rewind()

    def _after_update(self, window: list[Batch], is_last: bool, is_final: bool) -> None:
        """What happens between two windows; ``is_last``: the epoch's end follows and saves after itself;
        ``is_final``: ``fit`` ends here."""
        pending_work, validation = self.pending_work, self.config.validation
        if self.hooks.on_source_pass_end:
            pending_work.passes += data_setup.ended_passes(self.multi_loader_manager, window)
        pending_work.row = self.reporter.is_due()
        if validation.frequency is ValidationFrequency.EVERY_N_STEPS and self._val_loaders:
            assert validation.every_n_steps is not None
            pending_work.validation = self.global_step % validation.every_n_steps == 0
        if self._late_error is not None:
            error, self._late_error = self._late_error, None
            pending_work.save = True
            raise error
        self._finish_update(is_last, is_final)

    def _finish_update(self, is_last: bool, is_final: bool) -> None:
        """Does what the last update owes, and saves. Parts that are done aren't done again after an error in a
        later one."""
        pending_work = self.pending_work
        if pending_work.passes:
            self._tell_ended_passes()
        if pending_work.row:
            self.nonfinite.window_is_finite()
            row = self.reporter.log()
            pending_work.row = False
            self.scheduler_set.after_row(row)
        if pending_work.validation:
            if self._val_loaders:
                self._validate()
            pending_work.validation = False
        if is_last:
            pending_work.save = False
        elif pending_work.save and not self.epoch_is_open:
            self._save(self._saver.after_epoch)
        else:
            self._save(partial(self._saver.after_update, is_final=is_final))

    def _save(self, save: Callable[[], None]) -> None:
        """A commit point. After an error of a hook it is still pending_work; what mtf refused it would refuse again."""
        self.pending_work.save = False  # not part of what is saved
        try:
            save()
        except MtfError:
            raise
        except Exception:
            self.pending_work.save = True
            raise

    def _tell_ended_passes(self) -> None:
        passes = self.pending_work.passes
        while passes:
            told = passes.pop(0)  # a state that a hook takes must not tell of it again
            try:
                self._tell("on_source_pass_end", *told)
            except BaseException:
                passes.insert(0, told)
                raise

    def _end_epoch(self) -> None:
        """Epoch schedulers, validation, ``on_epoch_end``, checkpoint: the checkpoint says the next epoch.

        Parts that are done aren't done again after an error in a later one, or from a state taken in between.
        """
        self.reporter.note_schedule()
        # Edits made from here on are about the next epoch.
        self.multi_loader_manager.set_epoch(self.epoch + 1)
        if self.hooks.on_source_pass_end:
            self.pending_work.passes += data_setup.ended_passes(
                self.multi_loader_manager, ()
            )  # whose end was the epoch's
            self._tell_ended_passes()
        self.reporter.end_epoch()
        parts = (self._step_epoch_schedulers, self._validate_epoch, self._step_monitoring_schedulers)
        while self.epoch_end_parts < len(parts):
            parts[self.epoch_end_parts]()
            self.epoch_end_parts += 1
        if self.epoch_end_parts == len(parts):
            self._tell_epoch_end()
        self.epoch += 1
        self.epoch_is_open, self.epoch_end_parts = False, 0
        self._save(self._saver.after_epoch)

    def _step_epoch_schedulers(self) -> None:
        self.scheduler_set.after_epoch(self.logged, after_validation=False)

    def _validate_epoch(self) -> None:
        if self.config.validation.frequency is ValidationFrequency.PER_EPOCH and self._val_loaders:
            self._validate()

    def _step_monitoring_schedulers(self) -> None:
        self.scheduler_set.after_epoch(self.logged, after_validation=True)

    def _tell_epoch_end(self) -> None:
        self.epoch_end_parts += 1  # a state that a hook takes must not call it again
        try:
            self._tell("on_epoch_end", self.epoch)
        except BaseException:
            self.epoch_end_parts -= 1
            raise

    def _validate(self) -> None:
        try:
            row = run_validation(self, self._val_loaders, self._saver.is_asked_to_leave)
        except ValidationLeft:
            self._saver.leave()
            raise
        self.metric_table.commit()
        self.logged.update(row)
        self.reporter.write(row)
        self.scheduler_set.after_row(row)
        self._saver.after_validation(row)

    def _resume(self, source: str | None, train_loaders: Any, val_loaders: Any, limits: StopCondition) -> None:
        """Loads the state to go on from and opens the loaders; where one doesn't fit the other, nothing has changed."""
        put_back = self._saver.resume(source)
        try:
            self.require_whole()
            self._open(train_loaders, val_loaders)
            self._require_same_settings(limits)
            self.require_same_schedule()
        except BaseException:
            put_back()
            raise

    def _open(self, train_loaders: Any, val_loaders: Any) -> None:
        """Names and checks the loaders, makes or keeps the mixture, checks settings that name loaders."""
        self.config.require_valid()
        if self._training_step is None and type(self).training_step is Trainer.training_step:
            raise ConfigError("there is no training step: call set_training_step, or override training_step")
        for name in ("training_step", "validation_step"):
            require_arguments(getattr(self, name), name, _STEP_ARGUMENTS[1:])
        if not self.optimizers:
            warnings.warn(
                "there is no optimizer, so fit changes no parameter: pass optimizers= unless that is meant",
                stacklevel=4,
            )
        if self.config.checkpoint.save_best and val_loaders is None:
            warnings.warn(
                "checkpoint.save_best has no effect without validation: pass val_loaders to fit", stacklevel=4
            )
        changed = [
            name for name, value in init_only_settings_of(self.config).items() if value != self.init_only_settings[name]
        ]
        if changed:
            warnings.warn(
                f"these settings were changed after the trainer had read them, which has no effect: {changed}; make "
                "a new trainer with them",
                stacklevel=4,
            )
        validation = self.config.validation
        is_per_epoch = validation.frequency is ValidationFrequency.PER_EPOCH
        if val_loaders is not None and validation.every_n_steps is not None and is_per_epoch:
            warnings.warn(
                "validation.every_n_steps has no effect with frequency PER_EPOCH: set EVERY_N_STEPS", stacklevel=4
            )
        if not self.model.training:
            warnings.warn("the model is in eval mode; call model.train() before fit unless that is meant", stacklevel=4)
        data_setup.open_training(self, train_loaders)
        multi = self.multi_loader_manager
        # Settings may name loaders that were removed, and those that a factory makes once they are added.
        names = list(dict.fromkeys((*multi.schedule.names, *self.loader_factories)))
        self.optimizer_set.check(names)
        self.scheduler_set.check(names)
        self.loss_weights.check(names)
        self._val_loaders = data_setup.name_validation(val_loaders, self.config.val_loader_config, multi.initial_names)
        if self._val_loaders:
            check_validation(self.config.validation, list(self._val_loaders))

    def _leave(self) -> None:
        self._is_fitting = self._in_window = False
        try:
            self.optimizer_set.clear()
            self.reporter.close()
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
