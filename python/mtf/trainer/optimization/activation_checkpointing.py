"""Activation checkpointing: parts of the model keep no activations, and run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtf.config.execution import ActivationRule
from mtf.errors import ConfigError


def checkpoint_activations(model: nn.Module, rule: ActivationRule) -> int:
    """Lets modules of ``model`` run under ``torch.utils.checkpoint``, in place: names of parameters stay.

    Random numbers of the second run are those of the first, so results are the same, bit for bit.

    Args:
        rule: True: the items of every ``nn.ModuleList``; class names; or ``(name, module) -> bool``.

    Returns:
        Number of modules.

    Raises:
        ConfigError: the rule matches nothing, or a module whose running statistics a second run would update twice.
    """
    chosen = [
        (name, module) for name, module in model.named_modules() if name and _is_chosen(model, name, module, rule)
    ]
    if not chosen:
        kinds = sorted({type(module).__name__ for name, module in model.named_modules() if name})
        raise ConfigError(
            f"performance.activation_checkpointing matches no module: {rule!r} (True is the items of a ModuleList; "
            f"classes in the model: {', '.join(kinds)})"
        )
    for name, module in chosen:
        for inner in module.modules():
            if getattr(inner, "track_running_stats", False):
                raise ConfigError(
                    f"performance.activation_checkpointing: {name!r} has a {type(inner).__name__}, whose running "
                    "statistics would be updated twice, because the module runs again in the backward pass: choose "
                    "modules without one"
                )
        module.__class__ = _checkpointed(type(module))  # type: ignore[arg-type]  # a class is hashable
    return len(chosen)


def _is_chosen(model: nn.Module, name: str, module: nn.Module, rule: ActivationRule) -> bool:
    if rule is True:
        owner = model.get_submodule(name.rpartition(".")[0])
        return isinstance(owner, nn.ModuleList) and next(module.parameters(), None) is not None
    if callable(rule):
        return bool(rule(name, module))
    return not isinstance(rule, bool) and type(module).__name__ in rule


@cache
def _checkpointed(cls: type[nn.Module]) -> type[nn.Module]:
    """A subclass, rather than another ``forward`` of the object, so that a deep copy of the module calls its own."""
    inner: Callable[..., Any] = cls.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(self, *args, **kwargs)
        return checkpoint(partial(inner, self), *args, use_reentrant=False, **kwargs)

    return type(
        cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )
