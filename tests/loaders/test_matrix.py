"""The matrix of loaders: every row, cut and resumed in new processes, and asked of the tools (``make loaders``)."""

from __future__ import annotations

from typing import Any

import pytest
from matrix import IS_SHORT, Row, cells
from proofs import check_resumes, check_that_tools_agree

CELLS = pytest.mark.parametrize(
    ("row", "workers"),
    [
        pytest.param(*cell, id=f"{cell[0].name}-{cell[1]}")
        for module in ("map_style", "streams")
        for cell in cells(module)
    ],
)
pytestmark = pytest.mark.timeout(300)


@CELLS
def test_resumes_are_as_the_matrix_says(cells: Any, row: Row, workers: int) -> None:
    check_resumes(cells, row, workers)


@pytest.mark.skipif(IS_SHORT, reason="the long form")
@CELLS
def test_the_tools_say_what_the_matrix_says(cells: Any, row: Row, workers: int) -> None:
    check_that_tools_agree(cells, row, workers)
