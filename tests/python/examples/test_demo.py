"""The demonstration in a short form: it runs, its resumed run is bit-identical, its report is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo" / "demo.py"


def test_demo_proves_its_resume(tmp_path: Path) -> None:
    command = [sys.executable, str(DEMO), "--updates", "60", "--report", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "bit-identical" in report
    for name in ("digits", "diabetes", "cancer"):
        assert f"| {name} |" in report
    assert (tmp_path / "report" / "drawn.png").read_bytes().startswith(b"\x89PNG")
    assert "three-tasks" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
