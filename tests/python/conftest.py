"""Shared by the Python tests: where torch is missing, files that import it aren't collected."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

_NEEDS_TORCH = re.compile(
    r"(torch|trainer_tools|loaders|mtf\.(trainer|data(?!\.prefetch\.engine)|checkpoint|loggers|testing))\b"
)


def needs_torch(path: Path) -> bool:
    """Whether the file imports torch, or what needs it, before any test runs."""
    imported: list[str] = []
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            imported += [name.name for name in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            imported.append(statement.module or "")
    return any(map(_NEEDS_TORCH.match, imported))


collect_ignore = (
    []
    if importlib.util.find_spec("torch")
    else [str(path) for path in Path(__file__).parent.rglob("test_*.py") if needs_torch(path)]
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skips a test that turns out to need torch where there is none, because names of the package load on first use."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if error.name == "torch" and not importlib.util.find_spec("torch"):
            pytest.skip("needs torch")
        raise
