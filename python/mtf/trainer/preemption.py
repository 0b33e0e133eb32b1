"""Leaving a run on a signal: finish the window, save, exit with a code that says 'start me again'. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mtf.call_site import user_level
from mtf.checkpoint.storage.local import replace_file
from mtf.checkpoint.storage.registry import open_storage
from mtf.config.execution import PreemptionConfig
from mtf.errors import ConfigError
from mtf.formatting import shown_alone

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
            raise shown_alone(KeyboardInterrupt(f"stopped by Ctrl-C, saved to {checkpoint}"))
        raise Preempted(self._exit_code, self._requested, checkpoint)

    def __enter__(self) -> PreemptionGuard:
        self._requested, _early.requested = _early.requested, None
        _early.has_fitted = True
        self._pid = os.getpid()
        if not self._signals:
            return self
        if threading.current_thread() is not threading.main_thread():
            names = ", ".join(s.name for s in self._signals)
            warnings.warn(
                f"fit runs outside the main thread, so {names} don't save before they stop the run; "
                "call fit in the main thread",
                stacklevel=user_level(),
            )
            return self
        for number in self._signals:
            previous = signal.getsignal(number)
            if previous is None:
                warnings.warn(
                    f"{number.name} has a handler that isn't Python's; it stays in charge", stacklevel=user_level()
                )
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
            # guard: second signal
            self._exit_at_once(received)
        previous = self._previous.get(received)
        if previous == _early.handle:
            return
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
                    f"the handler installed before raised {error!r}; the run saves and stops first",
                    stacklevel=user_level(),
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
    # guard: marker
    except OSError as error:  # not the run's end
        _warn_of_marker(root, "written", error)


def clear_marker(root: Path | str) -> None:
    """Removes the marker; for a resumed run. A system that refuses it is a warning."""
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
        stacklevel=user_level(),
    )


def requeue_slurm_job(timeout_s: float = 30.0) -> bool:
    """Asks Slurm to run this job again; for one process of the job.

    A job that a person cancels gets the same signal as one that is preempted, and Slurm would revive it. So Slurm is
    asked first why it ends the job (see :func:`should_requeue`).

    Returns:
        True if Slurm agreed. False without a job or ``scontrol``, where the job isn't to be run again, and, with a
        warning, if Slurm refused.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if os.environ.get("SLURM_ARRAY_JOB_ID") and os.environ.get("SLURM_ARRAY_TASK_ID"):
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    scontrol = shutil.which("scontrol")
    if not job or scontrol is None:
        return False
    try:
        said = _call([scontrol, "show", "job", "-o", job], timeout_s)
        fields = dict(_FIELD.findall(said.splitlines()[0])) if said.strip() else {}
        if not should_requeue(fields):
            why = {name: fields.get(name) for name in ("JobState", "Reason", "PreemptTime")}
            _log.info("job %s isn't put back: it is being cancelled, or Slurm runs it again by itself (%s)", job, why)
            return False
        _call([scontrol, "requeue", job], timeout_s)
    except subprocess.CalledProcessError as error:
        # Slurm may end this job, and scontrol with it, before scontrol has heard that it does.
        if error.returncode >= 0 or error.cmd[1] != "requeue":
            text = (error.stderr or error.stdout or "").strip()
            warnings.warn(f"scontrol requeue {job} failed, call it yourself: {text or error}", stacklevel=user_level())
            return False
    except (OSError, subprocess.TimeoutExpired) as error:
        warnings.warn(f"scontrol requeue {job} failed, call it yourself: {error}", stacklevel=user_level())
        return False
    _log.info("Slurm puts job %s back into its queue", job)
    return True


_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")


def should_requeue(fields: Mapping[str, str]) -> bool:
    """Whether a job that got a signal is to be run again, by what ``scontrol show job`` says of it.

    ==================================== ============= ============ ============== =======
    what happened                        ``JobState``  ``Reason``   ``PreemptTime`` requeue
    ==================================== ============= ============ ============== =======
    a signal (``--signal``, ``scancel``) RUNNING       None         None           yes
    the time limit                       COMPLETING    TimeLimit    None           yes
    preemption that cancels              COMPLETING    None         a time         yes
    preemption that requeues, requeue    PENDING, ...                              Slurm has
    ``scancel``                          COMPLETING    None         None           no
    ==================================== ============= ============ ============== =======
    """
    state = fields.get("JobState", "")
    if state in ("RUNNING", "SUSPENDED"):
        return True
    if state != "COMPLETING":
        return False
    return fields.get("Reason") == "TimeLimit" or fields.get("PreemptTime", "None") not in (
        "None",
        "Unknown",
        "N/A",
        "",
    )


def _call(command: list[str], timeout_s: float) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True).stdout


# Before the first fit, and between two


class _EarlyHandlers:
    """What signals do while no ``fit`` runs."""

    def __init__(self) -> None:
        self.signals: list[signal.Signals] = []
        self.exit_code = EXIT_CODE
        self.requeue_job = False
        self.requested: signal.Signals | None = None
        self.has_fitted = False
        self._pid = 0

    def install(self) -> None:
        self._pid = os.getpid()
        for number in self.signals:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked worker: its parent decides
        received = signal.Signals(number)
        signal.signal(received, signal.SIG_DFL)  # a second one ends the process
        if self.has_fitted:
            self.requested = received
            return
        # There is nothing to save yet. The state is that of the last checkpoint, or of none.
        if self.requeue_job and _is_first_rank():
            requeue_slurm_job()
        raise Preempted(self.exit_code, received)


_early = _EarlyHandlers()


def install(
    signals: Iterable[str | signal.Signals] = ("SIGTERM", "SIGUSR1"),
    *,
    exit_code: int = EXIT_CODE,
    requeue_job: bool = False,
) -> None:
    """Handles signals from now on, also where no ``fit`` runs: while modules are imported, data is read, or between
    two calls of ``fit``. Call it in the main thread, first thing in the script.

    Before the first ``fit`` there is nothing to save, so the process puts its job back into the queue and ends at once.
    After it, the signal is remembered: the next ``fit`` saves and leaves before its first update; :func:`requested`
    says so to a script that does something else first. A second signal ends the process by its default action.

    Args:
        signals: as ``PreemptionConfig.signals``.
        exit_code: as ``PreemptionConfig.exit_code``.
        requeue_job: as ``PreemptionConfig.requeue_job``.

    Raises:
        ConfigError: an unknown signal, or a call outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("mtf.preemption.install must be called in the main thread: Python handles signals only there")
    config = PreemptionConfig(signals=tuple(signals), exit_code=exit_code, requeue_job=requeue_job)  # type: ignore[arg-type]
    config.require_valid()
    _early.signals = [signal.Signals[name] for name in config.signals]
    _early.exit_code, _early.requeue_job = config.exit_code, config.requeue_job
    _early.install()


def requested() -> signal.Signals | None:
    """The signal that came since the last ``fit`` and that the next one will obey; None: there was none, or
    :func:`install` wasn't called."""
    return _early.requested


def _is_first_rank() -> bool:
    from mtf.distributed.launch import find_launch

    try:
        launch = find_launch()
    except ConfigError:
        return True
    return launch is None or launch.rank == 0
