"""Bars in a notebook: one place below the cell shows those that are open, and is empty once all are closed."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Mapping
from typing import Any

_REFRESH_S = 0.1


def in_notebook() -> bool:
    """Whether output goes below the cell of a notebook."""
    shell = sys.modules.get("IPython")
    instance = shell.get_ipython() if shell is not None else None
    return type(instance).__name__ == "ZMQInteractiveShell"


class NotebookBar:
    """A bar of plain HTML, which needs no widgets.

    All bars that a cell opens, one after the other, use one place. A notebook's file keeps what was shown last in
    each place, so nothing is left of bars that were closed.

    Args:
        title: what stands before the bar.
        total: batches in all, or None if unknown.
        done: batches done before.
    """

    _open: list[NotebookBar] = []  # noqa: RUF012  shared on purpose
    _place: tuple[object, Any] = (None, None)  # the cell's number, and IPython's handle

    def __init__(self, title: str, total: int | None, done: int) -> None:
        self._title, self._total, self._done = title, total, done
        self._facts = ""
        self._shown_at = 0.0
        NotebookBar._open.append(self)
        NotebookBar._show()

    def update(self, n: int = 1) -> None:
        """Notes n more batches; the page follows ten times a second."""
        self._done += n
        now = time.perf_counter()
        if now - self._shown_at > _REFRESH_S:
            self._shown_at = now
            NotebookBar._show()

    def set_postfix(self, ordered_dict: Mapping[str, object] | None = None, refresh: bool | None = True) -> None:
        """Shows facts behind the bar."""
        self._facts = ", ".join(f"{name}={value}" for name, value in (ordered_dict or {}).items())
        if refresh:
            NotebookBar._show()

    def close(self) -> None:
        """Removes the bar."""
        if self in NotebookBar._open:
            NotebookBar._open.remove(self)
            NotebookBar._show()

    @classmethod
    def _show(cls) -> None:
        from IPython.core.getipython import get_ipython  # imported: this is a notebook
        from IPython.display import display

        content = {
            "text/plain": "\n".join(bar._text() for bar in cls._open),
            "text/html": "<br>".join(bar._html() for bar in cls._open),
        }
        cell = getattr(get_ipython(), "execution_count", None)
        known, handle = cls._place
        if handle is None or known != cell:
            cls._place = cell, display(content, raw=True, display_id=True)
        else:
            handle.update(content, raw=True)

    def _text(self) -> str:
        of = f"/{self._total}" if self._total is not None else ""
        return f"{self._title}: batch {self._done}{of} {self._facts}".rstrip()

    def _html(self) -> str:
        size = f" value='{self._done}' max='{self._total}'" if self._total else ""
        return f"<progress{size}></progress> {html.escape(self._text())}"
