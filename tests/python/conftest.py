"""Shared by the Python tests: where torch is missing only the tests that need none are collected."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

_NEEDS_TORCH = re.compile(r"\btorch\b|mtf\.(trainer|data|checkpoint|loggers|testing)|MultiLoader|ArrayLoader|Trainer\b")


def _needs_torch(path: Path) -> bool:
    return _NEEDS_TORCH.search(path.read_text(encoding="utf-8")) is not None


collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else [path.name for path in Path(__file__).parent.glob("test_*.py") if _needs_torch(path)]
)
