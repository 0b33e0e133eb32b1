"""Worker processes of torch's iterators: their death is an error where their batch is due, and they always end.

torch raises the death of a worker from a handler of SIGCHLD, so wherever the main thread happens to be: in an optimizer
step as well, which would be torn apart. Here torch watches the workers only while a batch of theirs is waited for.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch._C import _error_if_any_worker_fails, _remove_worker_pids, _set_worker_pids
from torch.utils.data.dataloader import _BaseDataLoaderIter

from mtf.errors import FetchTimeout

_DEATH_S = 0.5  # a process closes its pipes a moment before it can be seen to be dead

_adopted: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # iterator -> its process


def iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """``iter(loader)``; should that fail or be interrupted, the worker processes that it had started are ended.

    They ignore the signal that Python's exit sends them, so that it would wait for them.
    """
    before = set(multiprocessing.active_children())
    try:
        return iter(loader)
    except BaseException:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        raise


def supervise(iterator: Iterator[Any]) -> Callable[[], Any]:
    """Takes the workers of an iterator over a DataLoader into care.

    Args:
        iterator: fresh from ``iterate(loader)``; one without worker processes is fine.

    Returns:
        What gives the next batch, in place of ``next(iterator)``. It raises what that raises; RuntimeError, which says
        how it ended, for a worker that is dead.
    """
    if not isinstance(iterator, _BaseDataLoaderIter) or not getattr(iterator, "_workers", None):
        return iterator.__next__
    of_torch: Any = iterator
    for worker in of_torch._workers:
        # torch ends a worker that doesn't react by SIGTERM, which workers of mtf ignore.
        worker.terminate = worker.kill
    _look_away(of_torch)
    _adopted[of_torch] = os.getpid()

    def take() -> Any:
        try:
            _watch(of_torch)
            try:
                _error_if_any_worker_fails()
                return next(of_torch)
            finally:
                _look_away(of_torch)
        except FetchTimeout:
            # Whoever closes the iterator would wait for each worker that hangs.
            for worker in of_torch._workers:
                worker.kill()
            of_torch._shutdown_workers()
            raise
        except (RuntimeError, OSError, EOFError) as error:
            ended = _how_workers_ended(of_torch, wait=not isinstance(error, RuntimeError))
            if not ended:
                raise
            of_torch._shutdown_workers()
            raise RuntimeError(ended) from error

    return take


def end_workers(iterator: Any) -> None:
    """Ends the workers of an adopted iterator; not those that its loader keeps for the next pass."""
    if _is_adopted(iterator) and not iterator._persistent_workers:
        iterator._shutdown_workers()


def end_kept_workers(loader: Any) -> None:
    """Ends the adopted workers that a loader keeps for its next pass, which starts new ones."""
    kept: Any = getattr(loader, "_iterator", None)
    if _is_adopted(kept):
        kept._shutdown_workers()
        loader._iterator = None


def forget_ended(loader: Any) -> None:
    """Lets a loader with persistent workers start new ones, if those that it keeps have ended."""
    kept = getattr(loader, "_iterator", None)
    if kept is not None and getattr(kept, "_shutdown", False):
        loader._iterator = None


def _is_adopted(iterator: Any) -> bool:
    return isinstance(iterator, _BaseDataLoaderIter) and _adopted.get(iterator) == os.getpid()


def _watch(iterator: Any) -> None:
    if not iterator._worker_pids_set and not iterator._shutdown:
        _set_worker_pids(id(iterator), tuple(worker.pid for worker in iterator._workers))
        iterator._worker_pids_set = True


def _look_away(iterator: Any) -> None:
    if iterator._worker_pids_set:
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _how_workers_ended(iterator: Any, *, wait: bool) -> str:
    """In words, for workers that ended by a signal or with a status; empty if none did."""
    deadline = time.monotonic() + _DEATH_S
    while True:
        ended = [(worker.pid, worker.exitcode) for worker in iterator._workers if worker.exitcode]
        if ended or not wait or time.monotonic() > deadline:
            return ", ".join(f"worker process {pid} {_reason(code)}" for pid, code in ended)
        time.sleep(0.01)


def _reason(code: int) -> str:
    if code >= 0:
        return f"exited unexpectedly with status {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", maybe for want of memory" if name == "SIGKILL" else "")


@atexit.register
def _end_all() -> None:
    """Before multiprocessing's own exit, which would send a signal that the workers ignore and wait for them."""
    for iterator, pid in list(_adopted.items()):
        if pid == os.getpid():
            iterator._shutdown_workers()
