"""Progress for people: a bar in a terminal or notebook, one line per interval anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any


class Progress:
    """One bar. Without a terminal it prints a line at every ``describe``.

    Args:
        total: steps in all, or None if unknown.
        done: steps done before.
        is_shown: False makes every method do nothing.
    """

    def __init__(self, title: str, total: int | None, done: int = 0, *, is_shown: bool = True) -> None:
        self._title = title
        self._total = total
        self._done = done
        self._started = (time.perf_counter(), done)
        self._is_shown = is_shown
        self._bar = _bar(title, total, done) if is_shown else None
        self.advance = self._bar.update if self._bar is not None else self._count
        """``advance(n)`` notes n more steps; cheap enough for every step."""

    def _count(self, n: int = 1) -> None:
        self._done += n

    def describe(self, facts: Mapping[str, str]) -> None:
        """Shows short facts, such as the loss; called at logging intervals."""
        if not self._is_shown:
            return
        if self._bar is not None:
            self._bar.set_postfix(dict(facts), refresh=False)
            return
        began, start = self._started
        rate = (self._done - start) / max(time.perf_counter() - began, 1e-9)
        of = f"/{self._total}" if self._total is not None else ""
        text = " ".join(f"{name}={value}" for name, value in facts.items())
        print(f"{self._title}: {self._done}{of} [{rate:.1f} steps/s] {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._is_shown = False


def _bar(title: str, total: int | None, done: int) -> Any:
    """A tqdm bar fit for where the output goes; None where lines are better."""
    if _in_notebook():
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar(desc=title, total=total, initial=done, unit="step")
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    return tqdm(desc=title, total=total, initial=done, unit="step", dynamic_ncols=True, leave=False)


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    instance = shell.get_ipython() if shell is not None else None
    return type(instance).__name__ == "ZMQInteractiveShell"
