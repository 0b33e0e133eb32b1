"""The random generator that belongs to the batch being fetched, the same on every thread, process and resume."""

from __future__ import annotations

import threading

import numpy as np

from mtf.errors import ConfigError


class _Current(threading.local):
    key: int | None = None
    rng: np.random.Generator | None = None


_current = _Current()


def batch_rng() -> np.random.Generator:
    """The generator of the batch that this thread is fetching; for datasets and collate functions.

    It starts at the batch's own key and runs through the samples of the batch in their order, so what is drawn from
    it depends neither on threads nor on worker processes nor on a resume. Process-wide generators (``torch.rand``,
    ``numpy.random.rand``, ``random.random``) are shared by all threads and can't promise that: a dataset for
    ``ThreadLoader`` draws from this one. It works in a ``DataLoader``'s datasets as well, where it gives the same
    numbers.

    Raises:
        ConfigError: No batch is being fetched on this thread, or ``seed_each_batch`` is off.
    """
    if _current.rng is None:
        if _current.key is None:
            raise ConfigError(
                "batch_rng() has a generator only while a batch is fetched, on the thread that fetches it, and with "
                "seed_each_batch: call it in the dataset's __getitem__ or in collate_fn"
            )
        _current.rng = np.random.Generator(np.random.Philox(key=_current.key))
    return _current.rng


def begin_batch(key: int) -> None:
    """From now on this thread fetches the batch with this key."""
    _current.key, _current.rng = key, None


def end_batch() -> None:
    """This thread fetches no batch any more."""
    _current.key = _current.rng = None
