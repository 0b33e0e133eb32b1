"""The table of libraries in docs/loaders.md is the one that the tests of loaders prove."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

LOADERS = Path(__file__).resolve().parents[2] / "tests" / "loaders"


def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix", LOADERS / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_table_of_the_tests() -> None:
    rows = matrix()
    assert rows.PAGE.read_text(encoding="utf-8") == rows.page_with_table(), "out of date: make loaders-table"


def test_every_row_has_a_loader_and_a_line() -> None:
    rows = matrix()
    assert len(rows.BY_NAME) == len(rows.ROWS) > 30
    text = {name: (LOADERS / f"{name}.py").read_text(encoding="utf-8") for name in ("map_style", "streams")}
    for row in rows.ROWS:
        assert f"\ndef {row.name}(num_workers: int, folder: Path)" in text[row.module]
        assert row.exact or row.advice, row.name
