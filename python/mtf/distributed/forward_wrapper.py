"""A user's whole training step as one forward pass of a wrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def run_as_forward(wrapper: nn.Module, module: nn.Module, step: Callable[..., T], args: tuple[Any, ...]) -> T:
    """Returns ``step(*args)``, called inside ``wrapper``'s forward.

    DDP and FSDP2 prepare the model in the wrapper's forward and look for its gradients afterwards. A user's step calls
    the bare ``module`` or parts of it, perhaps several times. So ``module.forward`` is replaced for exactly one call by
    a function that first puts it back and then runs the step; the wrapper sees one forward pass with the step's result.

    Args:
        wrapper: what is called: DDP around ``module``, or ``module`` itself where hooks do the wrapping.
        module: the user's model.
        step: the user's training step.
        args: its arguments.
    """
    own = module.__dict__
    saved: dict[str, Any] = {name: own[name] for name in ("forward", "_compiled_call_impl") if name in own}

    def put_back() -> None:
        for name in ("forward", "_compiled_call_impl"):
            own.pop(name, None)
        own.update(saved)

    def forward(*inner: Any) -> T:
        put_back()
        return step(*inner)

    own["forward"] = forward
    # What was compiled is the model's own forward; the step around it runs as it is.
    own["_compiled_call_impl"] = None
    try:
        result: T = wrapper(*args)
        return result
    finally:
        put_back()
