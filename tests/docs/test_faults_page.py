"""docs/faults.md names tests that exist, and every file of fault tests is on it."""

from __future__ import annotations

import re
from pathlib import Path

from test_guarantees import missing

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| what goes", "| ---"))]


def test_every_row_names_tests_that_exist() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        cells = re.split(r" \| ", row.strip("| "))
        assert len(cells) == 4, row
        named = re.findall(r"`(tests/[\w/.]+::[\w:.]+)`", cells[3])
        assert named, row
        assert [reason for test in named if (reason := missing(test))] == []


def test_every_file_of_fault_tests_is_on_the_page() -> None:
    for file in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        assert f"tests/faults/{file.name}::" in PAGE, file.name
