"""Shared by loggers that append rows to a text file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def drop_rows(path: Path, keep: Callable[[str], bool], *, header: bool = False) -> None:
    """Rewrites ``path`` without the rows that ``keep`` refuses, and without a half-written last line.

    A run that goes on from update k writes the rows after k again; those of the interrupted run must not stay beside
    them. The file is replaced atomically.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for i, line in enumerate(lines) if line.endswith("\n") and ((header and i == 0) or keep(line))]
    if len(kept) < len(lines):
        replace(path, "".join(kept))


def replace(path: Path, text: str) -> None:
    """Replaces the file's content atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
