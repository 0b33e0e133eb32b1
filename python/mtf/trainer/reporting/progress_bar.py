"""Progress for people: a bar in a terminal or notebook, one line per interval anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from mtf.trainer.reporting.notebook_bar import NotebookBar, in_notebook

_REFRESH_S = 0.1


class Bar(Protocol):
    """What a library's bar has to offer."""

    def update(self, n: int = 1) -> Any:
        """Notes n more batches."""

    def set_postfix(self, ordered_dict: Mapping[str, object] | None = None, refresh: bool | None = True) -> Any:
        """Shows facts behind the bar."""

    def close(self) -> Any:
        """Removes the bar."""


class Progress:
    """One bar. Without a terminal it prints a line at every ``describe``.

    Args:
        title: what stands before the bar.
        total: batches in all, or None if unknown.
        done: batches done before.
        facts: shown from the start, such as the latest validation loss.
        is_shown: False makes every method do nothing.
        has_lines: whether ``describe`` prints lines without a terminal.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        done: int = 0,
        facts: Mapping[str, str] | None = None,
        *,
        is_shown: bool = True,
        has_lines: bool = True,
    ) -> None:
        self._title = title
        self._total = total
        self._done = done
        self._started = (time.perf_counter(), done)
        self._is_shown = is_shown
        self._has_lines = has_lines
        self._bar = _bar(title, total, done) if is_shown else None
        self.advance = self._bar.update if self._bar is not None else self._count
        """``advance(n)`` notes n more batches; cheap enough for every batch."""
        if self._bar is not None and facts:
            self._bar.set_postfix(dict(facts), refresh=False)

    def _count(self, n: int = 1) -> None:
        self._done += n

    def describe(self, facts: Mapping[str, str]) -> None:
        """Shows short facts, such as the loss; called at logging intervals."""
        if not self._is_shown:
            return
        if self._bar is not None:
            self._bar.set_postfix(dict(facts), refresh=False)
            return
        if not self._has_lines:
            return
        began, start = self._started
        rate = (self._done - start) / max(time.perf_counter() - began, 1e-9)
        of = f"/{self._total}" if self._total is not None else ""
        text = " ".join(f"{name}={value}" for name, value in facts.items())
        print(f"{self._title}: batch {self._done}{of} [{rate:.1f} batches/s] {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Removes the bar; lines stay."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._is_shown = False


def print_line(line: str) -> None:
    """Prints a line for people to standard error, above a bar where there is one.

    In a notebook it goes to standard output, because notebooks show the other in red, and out of order with the first.
    """
    rich_bar = _RichBar.shown
    if in_notebook():
        print(line, flush=True)
    elif rich_bar is not None:
        rich_bar.print(line)
    elif "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


def _bar(title: str, total: int | None, done: int) -> Bar | None:
    """A bar fit for where the output goes; None where lines are better."""
    if in_notebook():
        return NotebookBar(title, total, done)
    if not sys.stderr.isatty():
        return None
    try:
        return _RichBar(title, total, done)
    except ImportError:
        from tqdm import tqdm

        return tqdm(desc=title, total=total, initial=done, unit="batch", leave=False, dynamic_ncols=True)


class _RichBar:
    """A bar of ``rich``, which people have where they installed it."""

    shown: _RichBar | None = None

    def __init__(self, title: str, total: int | None, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("batch"),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(title, total=total, completed=done, facts="")
        self._pending, self._shown_at = 0, 0.0
        self._progress.start()
        _RichBar.shown = self

    def update(self, n: int = 1) -> None:
        """Notes n more batches; the screen follows ten times a second."""
        self._pending += n
        now = time.perf_counter()
        if now - self._shown_at > _REFRESH_S:
            self._shown_at = now
            self._flush()

    def _flush(self) -> None:
        self._progress.advance(self._task, self._pending)
        self._pending = 0

    def set_postfix(self, ordered_dict: Mapping[str, object] | None = None, refresh: bool | None = True) -> None:
        """Shows facts behind the bar."""
        self._flush()
        text = ", ".join(f"{name}={value}" for name, value in (ordered_dict or {}).items())
        self._progress.update(self._task, facts=text, refresh=bool(refresh))

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Removes the bar."""
        self._flush()
        self._progress.stop()
        _RichBar.shown = None
