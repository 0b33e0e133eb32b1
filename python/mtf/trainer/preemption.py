"""Leaving a run on a signal: finish the window, save, exit with a code that says 'start me again'. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mtf.checkpoint.storage.local import replace_file
from mtf.checkpoint.storage.registry import open_storage

EXIT_CODE = 75  # EX_TEMPFAIL: a temporary failure, the caller is invited to try again
MARKER_NAME = "PREEMPTED"

_log = logging.getLogger("mtf.preemption")

# A launcher that gets a signal for the whole group passes it on, so each worker sees it twice within moments.
_FORWARDING_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")
_FORWARD_WINDOW_S = 1.0


class Preempted(SystemExit):
    """``fit`` left on a signal, after the state was saved. Uncaught, the process ends with ``exit_code``.

    Attributes:
        exit_code: also ``code``, which the interpreter exits with.
        signal: the signal that asked for it.
        checkpoint: where the state was saved.
    """

    def __init__(self, exit_code: int, signal_: signal.Signals, checkpoint: Path | str | None = None) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
        self.signal = signal_
        self.checkpoint = checkpoint

    def __str__(self) -> str:
        return f"preempted by {self.signal.name}, saved to {self.checkpoint}, exit code {self.exit_code}"


class PreemptionGuard:
    """While entered, the given signals and Ctrl-C only set :attr:`requested`; the loop looks at it after each window.

    A second signal ends the process at once: Ctrl-C by ``KeyboardInterrupt``, others by their default action. Handlers
    that were installed before are called as well, and are put back on leaving. Outside the main thread, where Python
    can't install handlers, one warning is given and nothing else happens.

    Usage::

        with PreemptionGuard(("SIGTERM",)) as guard:
            for window in windows:
                train(window)
                if guard.requested is not None:
                    guard.leave(save())
    """

    def __init__(
        self, signals: Iterable[str | signal.Signals] = ("SIGTERM", "SIGUSR1"), exit_code: int = EXIT_CODE
    ) -> None:
        """
        Args:
            signals: what asks the run to stop. Empty: no handlers are installed, for Ctrl-C neither.
            exit_code: of :class:`Preempted`.
        """
        wanted = [signal.Signals[s] if isinstance(s, str) else signal.Signals(s) for s in signals]
        self._signals = list(dict.fromkeys([*wanted, signal.SIGINT])) if wanted else []
        self._exit_code = exit_code
        self._previous: dict[signal.Signals, Any] = {}
        self._requested: signal.Signals | None = None
        self._requested_at_s = 0.0
        self._forwarded = any(os.environ.get(name) for name in _FORWARDING_LAUNCHERS)
        self._pid = 0

    @property
    def requested(self) -> signal.Signals | None:
        """The signal that asked the run to stop; None while there was none."""
        return self._requested

    def request(self, signal_: signal.Signals) -> None:
        """Asks the run to stop as the signal would: for a rank that learnt of it from another one."""
        if self._requested is None:
            self._requested_at_s = time.monotonic()
            self._requested = signal_

    def __repr__(self) -> str:
        """Signals, and which of them has come."""
        names = ", ".join(s.name for s in self._signals) or "no signals"
        return f"PreemptionGuard({names}; requested={None if self._requested is None else self._requested.name})"

    def leave(self, checkpoint: Path | str | None = None) -> None:
        """Ends the run after the save.

        Raises:
            KeyboardInterrupt: Ctrl-C had asked for it.
            Preempted: another signal had.
        """
        if self._requested is None:
            return
        if self._requested == signal.SIGINT:
            raise KeyboardInterrupt(f"stopped by Ctrl-C, saved to {checkpoint}")
        raise Preempted(self._exit_code, self._requested, checkpoint)

    def __enter__(self) -> PreemptionGuard:
        self._requested = None
        self._pid = os.getpid()
        if not self._signals:
            return self
        if threading.current_thread() is not threading.main_thread():
            names = ", ".join(s.name for s in self._signals)
            warnings.warn(
                f"fit runs outside the main thread, so {names} don't save before they stop the run; "
                "call fit in the main thread",
                stacklevel=3,
            )
            return self
        for number in self._signals:
            previous = signal.getsignal(number)
            if previous is None:
                warnings.warn(f"{number.name} has a handler that isn't Python's; it stays in charge", stacklevel=3)
            elif number == signal.SIGINT and previous is signal.SIG_IGN:
                continue  # a background job of a shell: Ctrl-C is meant for somebody else
            else:
                signal.signal(number, self._handle)
                self._previous[number] = previous
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._previous:
            number, previous = self._previous.popitem()
            # A handler that was installed meanwhile belongs to somebody else and stays.
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if os.getpid() != self._pid:
            return  # a forked worker: the signal was for the run, whose main process decides
        if self._requested is None:
            self.request(received)
        elif not self._is_forwarded_copy():
            self._exit_at_once(received)
        previous = self._previous.get(received)
        if callable(previous) and previous is not signal.default_int_handler:
            self._chain(previous, number, frame)

    def _is_forwarded_copy(self) -> bool:
        return self._forwarded and time.monotonic() - self._requested_at_s < _FORWARD_WINDOW_S

    def _exit_at_once(self, received: signal.Signals) -> None:
        if received == signal.SIGINT:
            raise KeyboardInterrupt("second signal: stopped without waiting for the save")
        signal.signal(received, signal.SIG_DFL)
        os.kill(os.getpid(), received)

    @staticmethod
    def _chain(previous: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
        """Calls the handler that was there before. Its exception would tear the step apart, so the run saves first."""
        try:
            previous(number, frame)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            # Where warnings are errors, this one must not tear the step apart either.
            with contextlib.suppress(UserWarning):
                warnings.warn(
                    f"the handler installed before raised {error!r}; the run saves and stops first", stacklevel=3
                )


def write_marker(root: Path | str, signal_: signal.Signals, step: int, checkpoint: Path | str | None) -> None:
    """Leaves ``PREEMPTED`` in the run's directory: torchrun exits with 1 whatever its workers return.

    Args:
        root: the run's directory, which exists, or its URL.
        signal_: what stopped the run.
        step: updates done.
        checkpoint: where the state was saved.

    A system that refuses it is a warning: the state is saved, and how the run leaves mustn't depend on a marker.
    """
    content = {
        "signal": signal_.name,
        "step": step,
        "checkpoint": None if checkpoint is None else str(checkpoint).rpartition("/")[2],
        "time_s": time.time(),
    }
    raw = json.dumps(content).encode() + b"\n"
    try:
        if isinstance(root, Path):
            replace_file(root / MARKER_NAME, raw)
        else:
            open_storage(root).write_atomic(MARKER_NAME, [raw])
    except OSError as error:  # not the run's end
        _warn_of_marker(root, "written", error)


def clear_marker(root: Path | str) -> None:
    """Removes the marker; for a run that goes on. A system that refuses it is a warning."""
    try:
        open_storage(root).delete(MARKER_NAME)
    except NotADirectoryError:
        return
    except OSError as error:
        _warn_of_marker(root, "removed", error)


def _warn_of_marker(root: Path | str, done: str, error: OSError) -> None:
    warnings.warn(
        f"{root}/{MARKER_NAME} can't be {done}: {error.strerror or error}. The checkpoints say where the run stands: "
        "a resume needs no marker",
        stacklevel=4,
    )


def requeue_slurm_job(timeout_s: float = 30.0) -> bool:
    """Asks Slurm to run this job again; for one process of the job.

    Returns:
        True if Slurm agreed. False without a job or ``scontrol``, and, with a warning, if it refused.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if os.environ.get("SLURM_ARRAY_JOB_ID") and os.environ.get("SLURM_ARRAY_TASK_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    scontrol = shutil.which("scontrol")
    if not job or scontrol is None:
        return False
    try:
        done = subprocess.run(
            [scontrol, "requeue", job], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        warnings.warn(f"scontrol requeue {job} failed, call it yourself: {error}", stacklevel=2)
        return False
    if done.returncode != 0:
        warnings.warn(
            f"scontrol requeue {job} failed, call it yourself: {(done.stderr or done.stdout).strip()}", stacklevel=2
        )
        return False
    _log.info("Slurm puts job %s back into its queue", job)
    return True
