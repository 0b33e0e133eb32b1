"""The list of a trainer's hooks. It is looked at once, when a hook is added, so an event that no hook overrides costs
one empty-tuple test per step."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from mtf.call_site import user_level
from mtf.errors import ConfigError
from mtf.trainer.hooks.base import EVENTS, TrainerHooks

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
    """The hooks of one trainer, one tuple of functions per event: ``hooks.on_epoch_end``. The trainer is bound to them
    once, here, so that their callers need no trainer.

    Args:
        trainer: what every event gets as its first argument.
        on_error: ``"raise"`` lets a hook's exception end the training with its own traceback, ``"log"``
            reports it as a warning and continues.

    Attributes:
        validation_ends: ``on_validation_end`` of each hook that has both, by its ``on_validation_start``.
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

    def __init__(
        self, trainer: Any, hooks: Iterable[TrainerHooks] = (), on_error: Literal["raise", "log"] = "raise"
    ) -> None:
        self._trainer = trainer
        self._hooks: list[TrainerHooks] = []
        self._on_error = on_error
        self.validation_ends: dict[Callable[..., None], Callable[..., None]] = {}
        for event in EVENTS:
            setattr(self, event, ())
        for hook in hooks:
            self.add(hook)

    def __iter__(self) -> Iterator[TrainerHooks]:
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
            is_class = isinstance(hook, type) and issubclass(hook, TrainerHooks)
            way = f"; that is the class: give {hook.__name__}(...)" if is_class else ""
            raise ConfigError(f"hooks: expected an instance of TrainerHooks, got {hook!r}{way}")
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
        bound = {}
        for event, method in overridden.items():
            called = self._guarded(hook, event, method) if self._on_error == "log" else method
            bound[event] = partial(called, self._trainer)
            setattr(self, event, (*getattr(self, event), bound[event]))
        if "on_validation_start" in bound and "on_validation_end" in bound:
            self.validation_ends[bound["on_validation_start"]] = bound["on_validation_end"]

    def _guarded(self, hook: TrainerHooks, event: str, method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            try:
                method(*args)
            except Exception as error:  # the user asked for it: on_hook_error="log"
                warnings.warn(
                    f"hook {type(hook).__name__}.{event} raised {error!r}; training continues (on_hook_error='log')",
                    stacklevel=user_level(),
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
                stacklevel=user_level(),
            )
