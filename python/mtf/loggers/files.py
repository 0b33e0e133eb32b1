"""Shared by loggers that append rows to a text file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def start(path: Path, step: int, step_of: Callable[[str], int], *, header: bool = False) -> None:
    """Prepares the file of a run that begins or continues after update ``step``.

    A new run starts the file afresh. A resumed run writes the rows after ``step`` again, so those of the
    interrupted run are dropped, and a half-written last line with them. The file is replaced atomically.

    Args:
        step_of: the update that a line is about.
        header: whether the first line is none of the rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if step == 0:
        path.unlink(missing_ok=True)
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line for i, line in enumerate(lines) if line.endswith("\n") and ((header and i == 0) or step_of(line) <= step)
    ]
    if len(kept) < len(lines):
        replace(path, "".join(kept))


def replace(path: Path, text: str) -> None:
    """Replaces the file's content atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
