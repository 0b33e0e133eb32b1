"""The model as a table: modules, parameters, which are trained, and by which optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from mtf.formatting import text_table


def model_summary(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], levels: int) -> str:
    """A table of the modules down to ``levels`` below the model; each row counts what is inside, shared ones once.

    Args:
        optimizers: the trainer's; a module's column names the indices of those that own parameters of it.
        levels: at least 1.
    """
    owners = {p: i for i, o in enumerate(optimizers) for group in o.param_groups for p in group["params"]}
    rows = []
    for name, module in [("", model), *_modules(model, "", levels)]:
        parameters = list(module.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        indices = sorted({owners[p] for p in parameters if p in owners})
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
        rows.append((
            name or "(model)",
            type(module).__name__,
            f"{sum(p.numel() for p in parameters):,}",
            f"{trained:,}",
            ", ".join(map(str, indices)) or None,
            ", ".join(dtypes) or None,
        ))  # fmt: skip
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    title = f"model: {size / 2**20:,.1f} MiB of parameters and buffers"
    return text_table(title, ("module", "class", "parameters", "trained", "optimizer", "dtype"), rows)


def _modules(module: nn.Module, prefix: str, levels: int) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield f"{prefix}{name}", child
        if levels > 1:
            yield from _modules(child, f"{prefix}{name}.", levels - 1)
