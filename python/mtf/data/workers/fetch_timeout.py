"""A limit on the time that a fetch in the main thread may take, and where every thread stood when it was over."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from mtf.errors import FetchTimeout

T = TypeVar("T")

# A signal that nobody else uses: it ends waiting system calls, and Python then runs the handler in the main thread.
_SIGNAL = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2


def thread_stacks() -> str:
    """Where every Python thread stands, as text."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)


class FetchGuard:
    """Raises FetchTimeout inside a call in the main thread that takes too long, also while it waits in a system call.

    A thread looks at the clock; the call itself costs little more than two assignments. In other threads calls aren't
    limited.

    Args:
        limit_s: Seconds that one call may take.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._deadline: float | None = None
        self._closed = threading.Event()
        self._watch: threading.Thread | None = None

    def call(self, fetch: Callable[..., T], *arguments: Any) -> T:
        """``fetch(*arguments)``.

        Raises:
            FetchTimeout: It took longer than the limit; the message has the stacks of all threads.
        """
        # guard: limit in the main thread
        if threading.get_ident() != threading.main_thread().ident:
            return fetch(*arguments)
        if self._watch is None:
            _listen(self)
            self._watch = threading.Thread(
                target=_watch, args=(weakref.ref(self), self._closed, self.limit_s), name="mtf fetch guard", daemon=True
            )
            self._watch.start()
        self._deadline = time.monotonic() + self.limit_s
        try:
            return fetch(*arguments)
        finally:
            self._deadline = None

    @property
    def is_overdue(self) -> bool:
        """Whether a call is running that should have ended."""
        deadline = self._deadline
        return deadline is not None and time.monotonic() > deadline

    def abandon_fetch(self) -> None:
        """Called in the main thread, inside the call.

        Raises:
            FetchTimeout: The call is overdue; it may have ended since the signal was sent.
        """
        if self.is_overdue:
            self._deadline = None
            raise FetchTimeout(
                f"no batch within fetch_timeout_s={self.limit_s}; the threads stood at:\n{thread_stacks()}"
            )

    def close(self) -> None:
        """Ends the thread, and with the last guard puts the signal's handler back. May be called several times."""
        watch, self._watch = self._watch, None
        if watch is not None:
            self._closed.set()
            watch.join()
            self._closed.clear()
            _stop_listening(self)


# One handler for the guards of all mixtures, as there is one signal.
_listening: weakref.WeakSet[FetchGuard] = weakref.WeakSet()
_previous: Any = signal.SIG_DFL


def _listen(guard: FetchGuard) -> None:
    global _previous
    if signal.getsignal(_SIGNAL) is not _expire:
        _previous = signal.signal(_SIGNAL, _expire)
    _listening.add(guard)


def _stop_listening(guard: FetchGuard) -> None:
    _listening.discard(guard)
    # Handlers can be put back in the main thread only; without a guard that listens ours does nothing.
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and not _listening and signal.getsignal(_SIGNAL) is _expire:
        signal.signal(_SIGNAL, _previous)


def _expire(number: int, frame: FrameType | None) -> None:
    for guard in list(_listening):
        guard.abandon_fetch()


def _watch(guard_ref: weakref.ref[FetchGuard], closed: threading.Event, limit_s: float) -> None:
    main = threading.main_thread().ident
    assert main is not None
    while not closed.wait(min(1.0, limit_s / 4)):
        guard = guard_ref()
        if guard is None:
            return
        if guard.is_overdue:
            signal.pthread_kill(main, _SIGNAL)
        del guard
