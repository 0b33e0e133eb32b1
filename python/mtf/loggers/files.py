"""Shared by loggers that append rows to a text file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from mtf.call_site import user_level

SET_ASIDE = "previous-"
_PATTERNS = ("metrics.jsonl", "metrics.csv", "run.jsonl", "events.out.tfevents.*")


def set_aside(directories: Iterable[Path]) -> None:
    """Before a new run writes its log: moves that of another run into a folder beside it, ``previous-1`` and so on,
    and says so. Nothing is deleted; `mtf report` reads the folder.

    A directory that the system refuses to change is left: the loggers say what they can't write.
    """
    for directory in dict.fromkeys(directories):
        found = [path for pattern in _PATTERNS for path in sorted(directory.glob(pattern)) if path.is_file()]
        if not found:
            continue
        number = 1
        while (place := directory / f"{SET_ASIDE}{number}").exists():
            number += 1
        try:
            place.mkdir()
            for path in found:
                path.rename(place / path.name)
        except OSError as error:
            warnings.warn(
                f"{directory} holds the log of another run, which can't be moved ({error}): give this run a log_dir of "
                "its own",
                stacklevel=user_level(),
            )
            continue
        warnings.warn(
            f"{directory} held the log of another run, which is in {place} now: give each run an experiment_name or "
            "log_dir of its own; to continue that run, use fit(resume_from='latest')",
            stacklevel=user_level(),
        )


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
