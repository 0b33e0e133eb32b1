"""One thread at a time trains in a process: its steps draw from generators that belong to the whole process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mtf.errors import ConfigError

_LOCK = threading.RLock()


@contextmanager
def only_this_thread() -> Iterator[None]:
    """Surrounds ``fit``, also one inside another's hooks.

    Raises:
        ConfigError: another thread is inside.
    """
    if not _LOCK.acquire(blocking=False):
        raise ConfigError(
            "another thread of this process is inside fit: random numbers of steps come from generators that all "
            "threads share, so neither run would be reproducible. Let them take turns, or use one process for each"
        )
    try:
        yield
    finally:
        _LOCK.release()
