"""What a trainer looks like in a shell and in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtf.formatting import html_table
from mtf.trainer.optimizers import learning_rates

if TYPE_CHECKING:
    from mtf.trainer.trainer import Trainer

_MAX_METRICS = 20


def line(trainer: Trainer) -> str:
    """Model, optimizers, place and position."""
    if "num_batches" not in vars(trainer):  # a traceback shows the object whose constructor has raised
        return f"{type(trainer).__name__}(not constructed)"
    position = f"epoch={trainer.epoch}, global_step={trainer.global_step}"
    return f"{type(trainer).__name__}({_model(trainer)}, [{_optimizers(trainer)}], {_place(trainer)}, {position})"


def page(trainer: Trainer) -> str:
    """A table of the same, the loaders and the latest metrics."""
    rows: list[tuple[str, object]] = [
        ("model", _model(trainer)),
        ("optimizers", _optimizers(trainer)),
        ("runs on", _place(trainer)),
        ("epoch", trainer.epoch),
        ("updates", trainer.global_step),
    ]
    if trainer.multi is not None:
        rows.append(("loaders", trainer.multi))
    metrics = trainer.metrics
    rows += [(name, f"{value:.6g}") for name, value in list(metrics.items())[:_MAX_METRICS]]
    if len(metrics) > _MAX_METRICS:
        rows.append(("...", f"{len(metrics) - _MAX_METRICS} more in trainer.metrics"))
    return html_table(type(trainer).__name__, (), rows)


def _model(trainer: Trainer) -> str:
    num = sum(parameter.numel() for parameter in trainer.model.parameters())
    return f"{type(trainer.model).__name__} with {num:,} parameters"


def _optimizers(trainer: Trainer) -> str:
    rates = [learning_rates(optimizer)[0] for optimizer in trainer.optimizers]
    shown = ["" if rate is None else f"lr={rate:.4g}" for rate in rates]
    return ", ".join(f"{type(o).__name__}({rate})" for o, rate in zip(trainer.optimizers, shown, strict=True))


def _place(trainer: Trainer) -> str:
    ranks = f", rank {trainer.rank} of {trainer.world_size}" if trainer.world_size > 1 else ""
    return f"{trainer.device}{ranks}"
