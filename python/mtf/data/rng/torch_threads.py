"""Keeps torch on one thread inside a fetch, as worker processes do: sums on several threads differ in their bits."""

from __future__ import annotations

import threading

import torch

_engine_thread = threading.local()
_starting = threading.Lock()


class OneThread:
    """Keeps torch's operations inside a fetch on the thread that fetches.

    Where the consumer itself fetches, its setting comes back afterwards. A thread of the engine keeps the setting for
    good: it does nothing but fetch, and going back and forth on several threads would race, since torch remembers the
    last number for threads that start later.
    """

    __slots__ = ("_consumer", "_num_threads")

    def __init__(self) -> None:
        self.called_by_consumer()

    def called_by_consumer(self) -> None:
        """Notes the calling thread and its number of torch threads; not to be called inside a fetch."""
        self._consumer = threading.get_ident()
        self._num_threads = torch.get_num_threads()

    def enter(self) -> None:
        """On the thread that fetches, before it does."""
        if threading.get_ident() == self._consumer:
            self._num_threads = torch.get_num_threads()  # the user may have changed it since
            if self._num_threads != 1:
                torch.set_num_threads(1)
        elif not getattr(_engine_thread, "is_set", False):
            self._set_for_good()

    def exit(self) -> None:
        """On the same thread, after the fetch."""
        if self._num_threads != 1 and threading.get_ident() == self._consumer:
            torch.set_num_threads(self._num_threads)

    def _set_for_good(self) -> None:
        with _starting:
            torch.get_num_threads()  # a thread takes over what torch remembers when it first needs it: now, not later
            torch.set_num_threads(1)
            # What torch remembers for threads that start later is set back where no other thread's own number changes.
            restoring = threading.Thread(target=torch.set_num_threads, args=(self._num_threads,))
            restoring.start()
            restoring.join()
        _engine_thread.is_set = True
