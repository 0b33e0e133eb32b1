"""The trainer, and every public name of ``mtf``. Names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

import mtf

_PUBLIC = mtf._PUBLIC

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    try:
        module = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'mtf.trainer' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
