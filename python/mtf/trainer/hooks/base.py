"""Hooks: a user's own code at fixed points of training.

A hook overrides the methods it needs. The list below is looked at once, when a hook is added, so an event
that no hook overrides costs one empty-tuple test per step.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mtf.errors import ConfigError
from mtf.formatting import plain_repr

if TYPE_CHECKING:
    from torch import Tensor

    from mtf.trainer.trainer import Trainer


class TrainerHooks:
    """Base of all hooks; every method does nothing. No ``super().__init__()`` is needed.

    A hook that defines ``state_dict()`` and ``load_state_dict(state)`` is saved with the trainer. All
    arguments are positional. A batch is what the training step gets, on the trainer's device.

    A hook that raises stops training. When training goes on, by another ``fit`` or from a state or a checkpoint, it
    goes on before the event: a window that was under way is trained on again from its first batch, and an event between
    two windows is called again for all hooks, followed by what would have followed it (a row, a validation, a save).
    What was done before the event isn't done again.
    """

    def __repr__(self) -> str:
        """The class and its plain attributes."""
        return plain_repr(self)

    def on_train_start(self, trainer: Trainer) -> None:
        """Every call of ``fit`` starts with it."""

    def on_train_end(self, trainer: Trainer) -> None:
        """Every call of ``fit`` that raises nothing ends with it."""

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Once per epoch, before its first batch is fetched; edits made here hold for the whole epoch."""

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """Once per epoch, after its schedulers and validation and before its checkpoint."""

    def on_train_batch_start(
        self, trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        """Before each training step. ``batch_idx`` counts inside that loader and epoch."""

    def on_train_batch_end(
        self,
        trainer: Trainer,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        dataloader_name: str,
        metrics: Mapping[str, Any],
    ) -> None:
        """After each training step and its backward pass; ``metrics`` is what the step returned, detached."""

    def on_before_backward(self, trainer: Trainer, loss: Tensor) -> None:
        """``loss`` is weighted and divided by the window's length already."""

    def on_after_backward(self, trainer: Trainer) -> None:
        """Gradients of this step have been added to those of its window."""

    def on_before_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """Gradients are unscaled and clipped, and no optimizer has stepped yet; once for each that is going to."""

    def on_after_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """Parameters are new, all optimizers have stepped, gradients aren't cleared yet. An error here is raised when
        the update is complete; the other hooks are told as well."""

    def on_gradient_clip(self, trainer: Trainer, grad_norm: Tensor) -> None:
        """``grad_norm``: 0-dim tensor, the joint norm before clipping. Only with ``clip_grad_norm``."""

    def on_validation_start(self, trainer: Trainer) -> None:
        """The model is in eval mode already."""

    def on_validation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """``metrics`` has the keys that ``trainer.validate`` returns."""

    def on_validation_batch_start(
        self, trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        """As in training."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        dataloader_name: str,
        metrics: Mapping[str, Any],
    ) -> None:
        """As in training."""

    def on_checkpoint_save(self, trainer: Trainer, path: str) -> None:
        """A checkpoint is complete at ``path``; with ``asynchronous=True`` some updates after that of which it is."""

    def on_checkpoint_load(self, trainer: Trainer, path: str) -> None:
        """The state from ``path`` is in place."""

    def on_source_pass_end(self, trainer: Trainer, name: str, pass_: int) -> None:
        """The last batch of a loader's pass has become part of an update.

        Where no length tells it, a pass has ended when a further batch was asked for: after the update of that one.
        """

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """``fit`` is about to raise ``error``. The state is that of the last update; a single rank may save it here."""


EVENTS: tuple[str, ...] = tuple(name for name in vars(TrainerHooks) if name.startswith("on_"))

# What events are called in Lightning and transformers: nobody would call a hook's method of that name.
_ELSEWHERE = {
    "on_fit_start": "on_train_start",
    "on_fit_end": "on_train_end",
    "on_train_begin": "on_train_start",
    "on_train_epoch_start": "on_epoch_start",
    "on_train_epoch_end": "on_epoch_end",
    "on_epoch_begin": "on_epoch_start",
    "on_step_begin": "on_train_batch_start",
    "on_step_end": "on_after_optimizer_step",
    "on_validation_epoch_start": "on_validation_start",
    "on_validation_epoch_end": "on_validation_end",
    "on_evaluate": "on_validation_end",
    "on_save": "on_checkpoint_save",
    "on_save_checkpoint": "on_checkpoint_save",
    "on_load_checkpoint": "on_checkpoint_load",
}


def require_arguments(function: Callable[..., Any], name: str, arguments: Sequence[str]) -> None:
    """Checks that ``function`` can be called with ``arguments``, all positional.

    Raises:
        ConfigError: it takes fewer or needs more.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of native code
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        taken = ", ".join(signature.parameters)
        raise ConfigError(f"{name} is called with ({', '.join(arguments)}), but takes ({taken}): {error}") from None


def _arguments(event: Callable[..., None]) -> list[str]:
    return list(inspect.signature(event).parameters)[1:]


class HookList:
    """The hooks of one trainer, one tuple of bound methods per event: ``hooks.on_epoch_end``.

    Args:
        on_error: ``"raise"`` lets a hook's exception end the training with its own traceback, ``"log"``
            reports it as a warning and goes on.
    """

    on_train_start: tuple[Callable[..., None], ...]
    on_train_end: tuple[Callable[..., None], ...]
    on_epoch_start: tuple[Callable[..., None], ...]
    on_epoch_end: tuple[Callable[..., None], ...]
    on_train_batch_start: tuple[Callable[..., None], ...]
    on_train_batch_end: tuple[Callable[..., None], ...]
    on_before_backward: tuple[Callable[..., None], ...]
    on_after_backward: tuple[Callable[..., None], ...]
    on_before_optimizer_step: tuple[Callable[..., None], ...]
    on_after_optimizer_step: tuple[Callable[..., None], ...]
    on_gradient_clip: tuple[Callable[..., None], ...]
    on_validation_start: tuple[Callable[..., None], ...]
    on_validation_end: tuple[Callable[..., None], ...]
    on_validation_batch_start: tuple[Callable[..., None], ...]
    on_validation_batch_end: tuple[Callable[..., None], ...]
    on_checkpoint_save: tuple[Callable[..., None], ...]
    on_checkpoint_load: tuple[Callable[..., None], ...]
    on_source_pass_end: tuple[Callable[..., None], ...]
    on_exception: tuple[Callable[..., None], ...]

    def __init__(self, hooks: Iterable[TrainerHooks] = (), on_error: Literal["raise", "log"] = "raise") -> None:
        self._hooks: list[TrainerHooks] = []
        self._on_error = on_error
        for event in EVENTS:
            setattr(self, event, ())
        for hook in hooks:
            self.add(hook)

    def __iter__(self) -> Any:
        return iter(self._hooks)

    def __len__(self) -> int:
        return len(self._hooks)

    def add(self, hook: TrainerHooks) -> None:
        """Appends ``hook``; hooks are called in the order in which they were added.

        Raises:
            ConfigError: it is no ``TrainerHooks``, has a method ``on_...`` that is no event, or one that can't be
                called with the event's arguments.
        """
        if not isinstance(hook, TrainerHooks):
            raise ConfigError(f"hooks: expected an instance of TrainerHooks, got {hook!r}")
        for name in dir(type(hook)):
            if name.startswith("on_") and name not in EVENTS and callable(getattr(hook, name)):
                same = _ELSEWHERE.get(name)
                near = [same] if same else difflib.get_close_matches(name, EVENTS, n=1, cutoff=0.8)
                if near:
                    raise ConfigError(f"hooks: {type(hook).__name__}.{name} is no event; did you mean {near[0]!r}?")
        overridden = {}
        for event in EVENTS:
            method, base = getattr(hook, event), getattr(TrainerHooks, event)
            if getattr(method, "__func__", method) is not base:
                require_arguments(method, f"hooks: {type(hook).__name__}.{event}", _arguments(base))
                overridden[event] = method
        self._hooks.append(hook)
        for event, method in overridden.items():
            called = self._guarded(hook, event, method) if self._on_error == "log" else method
            setattr(self, event, (*getattr(self, event), called))

    def _guarded(self, hook: TrainerHooks, event: str, method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            try:
                method(*args)
            except Exception as error:  # the user asked for it: on_hook_error="log"
                warnings.warn(
                    f"hook {type(hook).__name__}.{event} raised {error!r}; training goes on (on_hook_error='log')",
                    stacklevel=2,
                )

        return call

    def call(self, event: str, *args: Any) -> None:
        """Calls ``event`` of every hook that overrides it; for events that are rare."""
        for method in getattr(self, event):
            method(*args)

    def _keys(self) -> list[tuple[str, TrainerHooks]]:
        """Class name of each hook, numbered where a class occurs more than once."""
        seen: dict[str, int] = {}
        keyed = []
        for hook in self._hooks:
            name = type(hook).__name__
            number = seen[name] = seen.get(name, -1) + 1
            keyed.append((f"{name}#{number}" if number else name, hook))
        return keyed

    def state_dict(self) -> dict[str, Any]:
        """State of every hook that has one, by class name."""
        return {key: hook.state_dict() for key, hook in self._keys() if hasattr(hook, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives each hook its state back; a hook that the state doesn't know keeps what it has."""
        own = dict(self._keys())
        for key, saved in state.items():
            if key in own:
                own[key].load_state_dict(saved)  # type: ignore[attr-defined]  # state_dict() was found when it was saved
        lost = sorted(set(state) - set(own))
        if lost:
            warnings.warn(
                f"the saved state of hooks {lost} isn't used: no such hook was added to this trainer; "
                "call add_hook before loading",
                stacklevel=2,
            )
