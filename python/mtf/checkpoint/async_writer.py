"""One background thread that writes checkpoints, one at a time. Imports no torch."""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Callable

from mtf.call_site import user_level
from mtf.checkpoint.storage.local import CheckpointWarning
from mtf.checkpoint.storage.signals import defer_signals


class BackgroundWriter:
    """Runs one job at a time on a thread; the next job, :meth:`wait` and the interpreter's exit wait for it.

    Not thread-safe: one owner submits and waits. In a forked child it is idle.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._pid = os.getpid()

    @property
    def busy(self) -> bool:
        """Whether a job is still running."""
        return self._thread is not None and self._thread.is_alive() and self._pid == os.getpid()

    def submit(self, job: Callable[[], None]) -> None:
        """Starts a job, after the one before has ended.

        Raises:
            BaseException: what the job before raised, unless it was taken by :meth:`wait` already.
        """
        self.wait()
        if self._thread is None:
            _live.add(self)

        def run() -> None:
            try:
                job()
            except BaseException as error:  # it belongs to the owner, who gets it from wait()
                self._error = error

        self._pid = os.getpid()
        # Not a daemon: the interpreter must not tear modules down under a half-written checkpoint.
        thread = threading.Thread(target=run, name="mtf-checkpoint-writer", daemon=False)
        with defer_signals():  # a second Ctrl-C between the two would leave a thread that can't be waited for
            thread.start()
            self._thread = thread

    def wait(self) -> None:
        """Returns when no job is running.

        Raises:
            BaseException: what the job raised; once.
        """
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error


_live: weakref.WeakSet[BackgroundWriter] = weakref.WeakSet()


def _report_at_exit() -> None:
    """A job that failed after the last wait() must not fail in silence."""
    for writer in list(_live):
        try:
            writer.wait()
        except BaseException as error:  # the interpreter is ending: saying it is all that is left
            warnings.warn(
                f"the last checkpoint was not written: {error}; a resume continues from the one before",
                CheckpointWarning,
                stacklevel=user_level(),
            )


atexit.register(_report_at_exit)
