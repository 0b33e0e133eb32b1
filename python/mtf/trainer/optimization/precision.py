"""Mixed precision, compilation and deterministic algorithms."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from mtf.config.execution import PerformanceConfig

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How forward passes are computed and, for fp16, how losses are scaled.

    Attributes:
        is_mixed: whether forward passes need the context of ``autocast()``.
        scaler: the gradient scaler under ``"fp16"``, else None.
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self._dtype = _DTYPES.get(name)
        self._device_type = device.type
        self.is_mixed = self._dtype is not None
        self.scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of one forward pass and its loss; the backward pass runs outside."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device_type, dtype=self._dtype)

    def roll_back(self) -> None:
        """A window failed: its gradients, which may have been unscaled, are gone."""
        if self.scaler is not None:
            state, self.scaler = self.scaler.state_dict(), torch.amp.GradScaler(self._device_type)
            self.scaler.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; empty without one."""
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives the scaler its state back."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def compile_in_place(model: nn.Module, mode: str | None = None) -> None:
    """Compiles ``model.forward`` inside the module itself, so that its state keys keep their names.

    A module without a ``forward`` (a ``ModuleDict``, or one whose parts the step calls one by one) has its parts
    compiled instead.
    """
    forward = type(model).forward
    if forward is nn.Module.forward:
        for part in model.children():
            compile_in_place(part, mode)
    elif (getattr(forward, "__module__", None) or "").startswith("torch."):
        # torch.compile skips the frames of torch's own modules, which here would be all there are.
        model._compiled_call_impl = torch.compile(_calling(model), mode=mode)
    else:
        model.compile(mode=mode)


def _calling(model: nn.Module) -> Callable[..., Any]:
    """A function whose frame isn't torch's."""

    def call(*args: Any, **options: Any) -> Any:
        return model._call_impl(*args, **options)

    return call


@contextmanager
def arithmetic(performance: PerformanceConfig) -> Iterator[None]:
    """Inside, torch computes as ``performance`` says; afterwards as before."""
    before = torch.get_float32_matmul_precision()
    with deterministic_algorithms(performance.deterministic):
        if performance.matmul_precision is not None:
            torch.set_float32_matmul_precision(performance.matmul_precision)
        try:
            yield
        finally:
            if performance.matmul_precision is not None:
                torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Inside, torch uses deterministic algorithms only (and raises where it has none); afterwards as before."""
    if not enabled:
        yield
        return
    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
