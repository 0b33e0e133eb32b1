"""The trainer's public face. What ``fit`` does is in :mod:`mtf.trainer.loop`, one update in :mod:`mtf.trainer.step`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtf.config.keywords import checked_keywords
from mtf.config.trainer import TrainerConfig
from mtf.data.steering.mixture_edit import OnOtherMixture
from mtf.distributed.ranks import make_ranks
from mtf.errors import ConfigError, UsageError
from mtf.trainer import data_setup, fitting, no_effect, preflight
from mtf.trainer.hooks.base import TrainerHooks
from mtf.trainer.hooks.registry import HookList, require_arguments
from mtf.trainer.optimization.optimizers import as_list
from mtf.trainer.optimization.precision import arithmetic
from mtf.trainer.parts import choose_device, make_parts
from mtf.trainer.reporting import _repr
from mtf.trainer.run_view import RunView
from mtf.trainer.state.registry import Stateful
from mtf.trainer.state.trainer_state import TrainerState

StepFunction = Callable[..., Any]
_STEP_ARGUMENTS = ("trainer", "batch", "batch_idx", "dataloader_idx", "dataloader_name")


class Trainer(RunView):
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
        process_group: on several ranks, those that divide batches among themselves: a ``ProcessGroup``, or a
            ``DeviceMesh`` of one dimension, as ``mesh["dp"]``; None: all. Peers in a tensor or context dimension get
            the same rows and the same random numbers. All ranks take part in ``fit``.

    Raises:
        ConfigError: arguments that contradict each other; nothing has been changed.
    """

    @checked_keywords(settings=TrainerConfig)
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
        process_group: Any = None,
    ) -> None:
        self.config = preflight.checked_config(config)
        self.model = preflight.checked_model(model)
        self.device = choose_device(self.model, device)
        self.optimizers = as_list(optimizers)
        self.model.to(self.device)
        self.ranks = make_ranks(self.config.ddp, self.device.type, process_group)
        with self.ranks.failures(lambda: "while the trainer was made"):
            self.ranks.wrap(self.model, self.optimizers)
        given = [hooks] if isinstance(hooks, TrainerHooks) else hooks
        self._hooks = HookList(self, given, self.config.fault_tolerance.on_hook_error)
        factories = loader_factories or {}
        self._parts = make_parts(
            self.config, self.model, self.device, self.ranks, self.optimizers, schedulers, factories, self._hooks
        )
        self._run, self._metrics, self._data = self._parts.run, self._parts.metrics, self._parts.data
        self.manual = self._parts.manual
        self._training_step: StepFunction | None = None
        self._validation_step: StepFunction | None = None
        if training_step is not None:
            self.set_training_step(training_step)
        if validation_step is not None:
            self.set_validation_step(validation_step)

    # Hooks, steps, components

    def add_hook(self, hook: TrainerHooks) -> None:
        """Adds ``hook`` after those there are."""
        self._hooks.add(hook)

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
        self._parts.registry.register(name, component, is_optional=True)

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

    @checked_keywords(words={"epochs": "max_epochs", "num_epochs": "max_epochs"}, settings=TrainerConfig)
    def fit(
        self,
        train_loaders: Any,
        val_loaders: Any = None,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        resume_from: str | None = None,
        resume_parts: str | Sequence[str] | None = None,
        on_other_mixture: OnOtherMixture = "refuse",
        skip: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Trains until ``max_epochs`` or ``max_steps`` (updates), both counted from the beginning of training.

        With neither, one more epoch. Calling it again continues where it stopped. Any thread may call it, one at a time
        in a process; outside the main thread signals end the process without a save, and ``fetch_timeout_s`` holds for
        native sources only.

        Args:
            train_loaders: a list of loaders, a dict name -> loader, or one loader.
            val_loaders: likewise; None: no validation.
            resume_from: a checkpoint's path, or ``"latest"`` in ``checkpoint.root_dir``.
            resume_parts: what is loaded of the checkpoint at that path: ``"model"`` (weights only), ``"optimizers"``,
                ``"schedulers"``, ``"hooks"``, ``"position"`` (counters, loaders, metrics), registered components. None:
                all. Without ``"position"`` a new run begins.
            on_other_mixture: where the state was saved with another mixture (weights, loaders, batch sizes, steps):
                ``"refuse"`` is an error, ``"edit"`` makes the difference one edit at the position.
            skip: ranges ``[(a, b), ...]`` of updates, counted from 0 over the whole training: the data of updates a to
                b - 1 are left out without being read. Left out updates count in ``global_step``. Part of the state, so
                a resume needn't give them again.

        Raises:
            ConfigError: before any data is read, for arguments that don't fit.
            StateMismatch: the loaders are not those that the state knows.
            Preempted: a signal arrived; the state has been saved.
        """
        fitting.fit(
            self._parts,
            self.training_step,
            self.validation_step,
            train_loaders,
            val_loaders,
            max_epochs=max_epochs,
            max_steps=max_steps,
            resume_from=resume_from,
            resume_parts=resume_parts,
            on_other_mixture=on_other_mixture,
            skip=skip,
            check=self._require_ready,
        )

    def _require_ready(self) -> None:
        """Raises where ``fit`` can't train with what the trainer has now."""
        if self._training_step is None and type(self).training_step is Trainer.training_step:
            raise ConfigError("there is no training step: call set_training_step, or override training_step")
        for name in ("training_step", "validation_step"):
            require_arguments(getattr(self, name), name, _STEP_ARGUMENTS[1:])
        fitting.require_same_objects(self._parts, self.config, self.model, self.optimizers)
        self._parts.hooks = self._hooks

    def validate(self, val_loaders: Any) -> dict[str, float]:
        """Runs every batch of ``val_loaders`` once; returns ``val/<metric>`` and ``val/<loader>/<metric>``."""
        multi = self._parts.data.multi
        names = self.config.multi.dataloader_names if multi is None else multi.initial_names
        named = data_setup.name_validation(val_loaders, self.config.val_loader_config, names)
        with arithmetic(self.config.performance):
            return self._parts.validator(self.validation_step).run(named)

    # State

    def save_checkpoint(self, path: str) -> None:
        """Saves to ``path``; asked for inside an update, an epoch's start or its end, it happens right after it."""
        checkpointer = self._parts.checkpointer
        save = checkpointer.save if checkpointer.can_save_now else checkpointer.defer_save
        save(path)

    def load_checkpoint(self, path: str, parts: str | Sequence[str] | None = None) -> None:
        """Loads the state from ``path``, or some ``parts`` of it as in ``fit``, before or after the first ``fit``."""
        if self.is_fitting:
            raise UsageError("load_checkpoint was called inside fit: request_stop, then call it")
        self._parts.checkpointer.load(path, parts)

    def get_state(self) -> TrainerState:
        """A deep copy of everything that decides how training continues. ``==`` is exact, bit by bit.

        In ``on_epoch_end`` it continues behind this epoch's end. In a validation hook the validation isn't part of it.

        Raises:
            UsageError: inside a window; a state never holds half a window.
        """
        if self._run.is_in_window:
            raise UsageError(
                "get_state was called inside a window: call it in an epoch or validation hook, or after fit"
            )
        return TrainerState(self.ranks.full(self._parts.registry.collect()))

    def load_state(self, saved: TrainerState) -> None:
        """Loads ``get_state()`` of this or another trainer of the same kind."""
        if self.is_fitting:
            raise UsageError("load_state was called inside fit: request_stop, then call it")
        self._parts.registry.load(saved.tree)
        self._parts.checkpointer.forget()

    # Loaders

    def add_dataloader(self, loader: Any, name: str, weight: float | None = None) -> None:
        """Adds a loader; inside a window it takes effect at its end. It is part of the state from then on."""
        self._parts.data.add(loader, name, weight)

    def remove_dataloader(self, name: str) -> None:
        """Removes a loader; inside a window it takes effect at its end."""
        self._parts.data.remove(name, is_final=not self._run.is_in_window)

    def close_logs(self) -> None:
        """Closes the loggers: a W&B or MLflow run ends, and another trainer of this process can have one of its own.

        The next ``fit`` opens them again and continues in the same place.
        """
        if self.is_fitting:
            raise UsageError("close_logs was called inside fit: call it after fit")
        self._parts.reporter.close_logs()

    def __setattr__(self, name: str, value: Any) -> None:
        if name[0] != "_" and "_validation_step" in vars(self):
            no_effect.check_assignment(name, is_subclass=type(self) is not Trainer)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """Model, optimizers, place and position."""
        if "_run" not in vars(self):  # a traceback shows the object whose constructor has raised
            return f"{type(self).__name__}(not constructed)"
        return _repr.line(type(self).__name__, self.model, self.optimizers, self._place(), self._run)

    def _repr_html_(self) -> str:
        kind, loaders = type(self).__name__, self._parts.data.multi
        return _repr.page(kind, self.model, self.optimizers, self._place(), self._run, loaders, self.metrics)


GenericTrainer = Trainer
