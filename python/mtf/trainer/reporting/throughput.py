"""How fast a run is, and the memory that it takes: tokens per second, FLOP/s, MFU, resident and CUDA memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtf.call_site import user_level
from mtf.config.logging import LoggingConfig

_PEAK_FLOPS: dict[str, float] = {
    "H200": 989e12, "H100": 989e12, "H800": 989e12, "B200": 2250e12, "GB200": 2500e12, "A100": 312e12, "A800": 312e12,
    "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12, "V100": 125e12, "T4": 65e12, "RTX 4090": 165e12,
}  # fmt: skip
"""Name in ``torch.cuda.get_device_name`` -> dense bf16 (older ones: fp16) operations per second, as in the vendor's
data sheets."""

_MUCH_WAITING = 0.3
_SHORTEST_S = 5.0  # of a fit, whose first seconds go into starting loaders


class Throughput:
    """Counts what steps say they trained on, and turns it into entries of a row. None of it is state.

    Args:
        model: may have ``flops_per_token`` or ``flops_per_sample``, a number or a method: floating point operations of
            one token or sample, forward and backward.
        config: ``peak_flops``, ``log_memory``.
    """

    def __init__(self, model: nn.Module, device: torch.device, config: LoggingConfig) -> None:
        self._model = model
        self._device = device
        self._config = config
        self._items = 0.0
        self._tokens: Any = None
        self._has_warned = False

    def add(self, items: float | None, tokens: Any) -> None:
        """Notes one batch. Nothing is read from the device.

        Args:
            items: ``num_samples`` of the step's result.
            tokens: ``num_tokens`` of it, a number or a tensor.
        """
        if items is not None:
            self._items += items
        if tokens is not None:
            value = tokens.detach().to(torch.float64) if isinstance(tokens, Tensor) else tokens
            self._tokens = value if self._tokens is None else self._tokens + value

    def row(self, elapsed_s: float, samples: int) -> dict[str, float]:
        """Entries for what was added since the last call, in ``elapsed_s`` seconds of training on ``samples`` rows."""
        row: dict[str, float] = {}
        tokens = None if self._tokens is None else float(self._tokens)
        if self._items:
            row["throughput/items_per_s"] = self._items / elapsed_s
        if tokens is not None:
            row["throughput/tokens_per_s"] = tokens / elapsed_s
        self._items, self._tokens = 0.0, None
        flops = self._flops(samples, tokens)
        if flops is not None:
            row["throughput/flops_per_s"] = flops / elapsed_s
            peak = self._config.peak_flops or peak_flops(self._device)
            if peak is not None:
                row["throughput/mfu"] = flops / elapsed_s / peak
        if self._config.log_memory:
            row.update(self._memory())
        return row

    def _flops(self, samples: int, tokens: float | None) -> float | None:
        per_token, per_sample = (self._of_model(name) for name in ("flops_per_token", "flops_per_sample"))
        if per_token is not None and tokens is not None:
            return per_token * tokens
        if per_token is not None and per_sample is None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the model has flops_per_token, and the training step returns no 'num_tokens', so MFU can't be "
                "logged: return the number of tokens of the batch under this name",
                stacklevel=user_level(),
            )
        return None if per_sample is None else per_sample * samples

    def _of_model(self, name: str) -> float | None:
        value = getattr(self._model, name, None)
        value = value() if callable(value) else value
        return None if value is None else float(value)

    def _memory(self) -> dict[str, float]:
        row = {"memory/rss_bytes": float(resident_bytes())}
        if self._device.type == "cuda":
            row["memory/cuda_peak_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        return row


def waiting(elapsed_s: float, waited_s: float, by_loader: Mapping[str, float]) -> str | None:
    """``98% waiting for data, most of it for loader 'web'``; None where the loaders nearly kept up.

    Args:
        elapsed_s: seconds of training.
        waited_s: of them, those spent waiting.
        by_loader: seconds that were spent waiting for each loader.
    """
    share = waited_s / max(elapsed_s, 1e-9)
    if share < _MUCH_WAITING or elapsed_s < _SHORTEST_S:
        return None
    slowest = max(by_loader, key=lambda name: by_loader[name], default=None)
    if slowest is None or len(by_loader) == 1 or by_loader[slowest] < waited_s / 2:
        return f"{share:.0%} waiting for data"
    return f"{share:.0%} waiting for data, most of it for loader {slowest!r}"


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second of ``device``; None where that isn't known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)


def resident_bytes() -> int:
    """Memory of this process that is in RAM, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: the largest so far, which there is in bytes
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
