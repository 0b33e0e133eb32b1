"""A long run over many sources holds no more and no less than at its start (short form of scripts/soak.py)."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

SOAK = Path(__file__).resolve().parents[2] / "scripts" / "soak.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "40000", "--sources", "64"],
        ["--steps", "600", "--sources", "6", "--workers", "1", "--budget-bytes", "200000"],
    ],
    ids=["arrays", "worker processes"],
)
def test_nothing_grows(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["soak.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SOAK), run_name="__main__")
    assert exit_.value.code == 0
