"""The notebook's cells run, print what is committed with them, and give the pictures that are committed with them."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

PATH = Path(__file__).resolve().parents[3] / "examples" / "schedules.ipynb"


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads(PATH.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def pictures(cell: dict[str, Any]) -> list[bytes]:
    found = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
    return [base64.b64decode("".join(data)) for data in found]


def test_it_was_executed_from_top_to_bottom_and_is_small() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output["output_type"] != "error" for cell in cells for output in cell["outputs"])
    assert sum(len(pictures(cell)) for cell in cells) >= 9
    assert PATH.stat().st_size < 400_000


def test_the_cells_give_their_outputs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    from matplotlib.figure import Figure

    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in code_cells():
        source = "\n".join(line for line in "".join(cell["source"]).splitlines() if not line.startswith("%"))
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        value, out = None, io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(tree, str(PATH), "exec", dont_inherit=True), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), str(PATH), "eval", dont_inherit=True), names)
        assert out.getvalue() == printed(cell)
        assert isinstance(value, Figure) == bool(pictures(cell))
        if isinstance(value, Figure):
            value.savefig(io.BytesIO(), dpi=30)
