"""A limit on the time that a fetch in the main thread may take, and where every thread stood when it was over."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from mtf.errors import FetchTimeout

T = TypeVar("T")


def thread_stacks() -> str:
    """Where every Python thread stands, as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)


class FetchGuard:
    """Raises FetchTimeout inside a call that takes too long, by a timer whose signal also ends waiting system calls.

    It works in the main thread, and where nobody else uses SIGALRM; elsewhere calls aren't limited.

    Args:
        limit_s: Seconds that one call may take.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s

    def call(self, fetch: Callable[..., T], *arguments: Any) -> T:
        """``fetch(*arguments)``.

        Raises:
            FetchTimeout: It took longer than the limit; the message has the stacks of all threads.
        """
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL
        ):
            return fetch(*arguments)
        signal.signal(signal.SIGALRM, self._expire)
        signal.setitimer(signal.ITIMER_REAL, self.limit_s)
        try:
            return fetch(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _expire(self, number: int, frame: FrameType | None) -> None:
        raise FetchTimeout(f"no batch within fetch_timeout_s={self.limit_s}; the threads stood at:\n{thread_stacks()}")
