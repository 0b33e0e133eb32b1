"""Worker processes of torch's iterators: their death is an error where their batch is due, and they always end.

torch raises the death of a worker from a handler of SIGCHLD, so wherever the main thread happens to be: in an optimizer
step as well, which would be torn apart. Here torch watches the workers only while a batch of theirs is waited for.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch._C import _error_if_any_worker_fails, _remove_worker_pids, _set_worker_pids
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter

from mtf.errors import FetchTimeout

# What a process group is sent at Ctrl-C and at preemption: the training process decides what it means, and stops the
# workers itself once the last step is done.
_IGNORED_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)

_DEATH_S = 0.5  # a process closes its pipes a moment before it can be seen to be dead

_adopted: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # iterator -> its process
# Other iterators (a DataLoader subclass's generator, a library's own) -> the worker processes that they started.
_started: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
_workers: weakref.WeakSet[Any] = weakref.WeakSet()  # all worker processes started while mtf iterated a loader


class _Starting(threading.local):
    """While entered, processes that ``multiprocessing`` forks on this thread ignore the signals for the run.

    A library's own workers don't know mtf, and a signal to the whole group would end them in the middle of a window,
    which then can't be finished and saved. Processes that are spawned start anew and aren't reached.
    """

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


_starting = _Starting()
_num_forks = 0  # of this process, by anything


def _count_fork() -> None:
    global _num_forks
    _num_forks += 1


def ignore_signals() -> None:
    """Lets this process, a worker, ignore what is sent to its whole group."""
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _prepare_worker(starting: _Starting) -> None:
    """In a process that ``multiprocessing`` has forked, before it does anything."""
    if not starting.depth:
        return
    starting.depth = 0
    ignore_signals()
    of_torch: Any = signal_handling
    set_handlers = of_torch._set_worker_signal_handlers

    def set_others() -> None:  # torch's workers call it first, and it has a handler of SIGTERM
        set_handlers()
        ignore_signals()

    of_torch._set_worker_signal_handlers = set_others


os.register_at_fork(after_in_parent=_count_fork)
multiprocessing.util.register_after_fork(_starting, _prepare_worker)


def iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """``iter(loader)``; should that fail or be interrupted, the worker processes that it had started are ended.

    They ignore the signal that Python's exit sends them, so that it would wait for them.
    """
    before = set(multiprocessing.active_children())
    try:
        with _starting:
            iterator = iter(loader)
    except BaseException:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()
        raise
    _note_workers(iterator, before)
    return iterator


def _note_workers(iterator: Any, before: set[Any]) -> None:
    """Remembers the processes that an iterator has started, so that they end with it or at the interpreter's exit."""
    new: set[Any] = set(multiprocessing.active_children()) - before
    if not new:
        return
    for worker in new:
        worker.terminate = worker.kill  # they may ignore SIGTERM
    _workers.update(new)
    try:
        _started[iterator] = [worker for worker in _started.get(iterator, ()) if worker.is_alive()] + list(new)
    except TypeError:  # no weak reference to it can be made; the interpreter's exit ends its workers
        return


def supervise(iterator: Iterator[Any]) -> Callable[[], Any]:
    """Takes the workers of an iterator over a DataLoader into care.

    Args:
        iterator: fresh from ``iterate(loader)``; one without worker processes is fine.

    Returns:
        What gives the next batch, in place of ``next(iterator)``. It raises what that raises; RuntimeError, which says
        how it ended, for a worker that is dead.
    """
    if not isinstance(iterator, _BaseDataLoaderIter):
        return _supervise_other(iterator)
    if not getattr(iterator, "_workers", None):
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
            # Closing the iterator would wait for each worker that hangs.
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


def _supervise_other(iterator: Iterator[Any]) -> Callable[[], Any]:
    """For iterators that aren't torch's own: notes the processes that appear with the first batch, or later."""
    seen = -1
    before: set[Any] = set()

    def take() -> Any:
        nonlocal seen, before
        if seen != _num_forks:
            before, seen = set(multiprocessing.active_children()), _num_forks
        try:
            with _starting:
                return next(iterator)
        finally:
            if seen != _num_forks:
                _note_workers(iterator, before)

    return take


def has_workers(iterator: Any) -> bool:
    """Whether worker processes that an iterator has started are alive."""
    started = getattr(iterator, "_workers", ()) if isinstance(iterator, _BaseDataLoaderIter) else ()
    if not started and _can_be_key(iterator):
        started = _started[iterator]
    return any(worker.is_alive() for worker in started)


def end_workers(iterator: Any) -> None:
    """Ends the workers of an iterator; not those that its loader keeps for the next pass."""
    if isinstance(iterator, _BaseDataLoaderIter):
        of_torch: Any = iterator
        if _is_adopted(iterator) and not of_torch._persistent_workers:
            of_torch._shutdown_workers()
        return
    workers = _started[iterator] if _can_be_key(iterator) else []
    inner = _torch_iterators_of(workers)
    if any(one._persistent_workers for one in inner):
        return
    for one in inner:
        _look_away(one)
        one._shutdown_workers()
    for mapper in _owners_of(workers, _torchdata_mappers()):
        mapper._shutdown()


def _can_be_key(iterator: Any) -> bool:
    try:
        return iterator in _started
    except TypeError:
        return False


def _torch_iterators_of(workers: Iterable[Any]) -> list[Any]:
    """torch's iterators, wherever they are, that own some of these processes."""
    return _owners_of(workers, (_BaseDataLoaderIter,))


def _owners_of(workers: Iterable[Any], kinds: tuple[type, ...]) -> list[Any]:
    """Objects of some kinds, wherever they are, that have some of these processes as ``_workers``."""
    wanted = {id(worker) for worker in workers}
    found = []
    for thing in gc.get_objects() if wanted and kinds else ():
        if issubclass(type(thing), kinds) and any(id(w) in wanted for w in getattr(thing, "_workers", None) or ()):
            found.append(thing)
    return found


def _torchdata_mappers() -> tuple[type, ...]:
    """What holds the processes and threads of torchdata's nodes, which have no public way to end them."""
    module = sys.modules.get("torchdata.nodes.map")
    names = ("_ParallelMapperIter", "_SingleThreadedMapper")
    return tuple(kind for name in names if (kind := getattr(module, name, None)) is not None)


def collect_left_behind() -> None:
    """Ends workers of loaders that only a reference cycle holds, such as that of a trainer that was dropped.

    The garbage collector would find them when it looks next, which may be many trainings later.
    """
    if any(not iterator._shutdown for iterator in _adopted) or any(_workers):
        gc.collect()


def end_kept_workers(loader: Any) -> None:
    """Ends the workers that a loader keeps for its next pass, which starts new ones; not those that a user started."""
    found: Any = getattr(loader, "_iterator", None)
    if not isinstance(found, _BaseDataLoaderIter) or getattr(found, "_shutdown", False):
        return
    kept: Any = found
    is_ours = any(worker in _workers and _is_mine(worker) for worker in getattr(kept, "_workers", ()))
    if is_ours:
        _look_away(kept)
        kept._shutdown_workers()
        loader._iterator = None


def _is_mine(worker: Any) -> bool:
    return bool(worker._parent_pid == os.getpid())


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
    # guard: death of a worker
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
    return f"was killed by {name}" + (", maybe because memory ran out" if name == "SIGKILL" else "")


@atexit.register
def _end_all() -> None:
    """Before multiprocessing's own exit, which would send a signal that the workers ignore and wait for them."""
    for iterator, pid in list(_adopted.items()):
        if pid == os.getpid():
            iterator._shutdown_workers()
    _end_threads_of_torchdata()
    alive = [worker for worker in list(_workers) if _is_mine(worker) and worker.is_alive()]
    for iterator in _torch_iterators_of(alive):
        _look_away(iterator)
        iterator._shutdown_workers()
    for worker in alive:
        worker.kill()


def _end_threads_of_torchdata() -> None:
    """Daemon threads that are inside torch when the interpreter ends would abort the process."""
    kinds = _torchdata_mappers()
    for thing in gc.get_objects() if kinds else ():
        if issubclass(type(thing), kinds):
            thing._shutdown()
