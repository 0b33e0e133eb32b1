"""What a trainer looks like in a shell and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mtf.formatting import html_table
from mtf.trainer.optimization.optimizers import learning_rates
from mtf.trainer.state.run_state import RunState

_MAX_METRICS = 20


def line(kind: str, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], place: str, run: RunState) -> str:
    """Model, optimizers, place and position."""
    position = f"epoch={run.epoch}, global_step={run.global_step}"
    return f"{kind}({_model(model)}, [{_optimizers(optimizers)}], {place}, {position})"


def page(
    kind: str,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    place: str,
    run: RunState,
    loaders: Any,
    metrics: Mapping[str, float],
) -> str:
    """A table of the same, the loaders and the latest metrics."""
    rows: list[tuple[str, object]] = [
        ("model", _model(model)),
        ("optimizers", _optimizers(optimizers)),
        ("runs on", place),
        ("epoch", run.epoch),
        ("updates", run.global_step),
    ]
    if loaders is not None:
        rows.append(("loaders", loaders))
    rows += [(name, f"{value:.6g}") for name, value in list(metrics.items())[:_MAX_METRICS]]
    if len(metrics) > _MAX_METRICS:
        rows.append(("...", f"{len(metrics) - _MAX_METRICS} more in trainer.metrics"))
    return html_table(kind, (), rows)


def _model(model: nn.Module) -> str:
    num = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__} with {num:,} parameters"


def _optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> str:
    rates = [learning_rates(optimizer)[0] for optimizer in optimizers]
    shown = ["" if rate is None else f"lr={rate:.4g}" for rate in rates]
    return ", ".join(f"{type(o).__name__}({rate})" for o, rate in zip(optimizers, shown, strict=True))
