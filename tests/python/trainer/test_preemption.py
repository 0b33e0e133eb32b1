"""Signals only set a flag, are chained and put back; a second one ends the process; markers and requeueing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import mtf
from mtf.trainer.preemption import (
    EXIT_CODE,
    PreemptionGuard,
    clear_marker,
    requeue_slurm_job,
    should_requeue,
    write_marker,
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_sets_a_flag_and_handlers_come_back(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    with PreemptionGuard() as guard:
        assert guard.requested is None
        guard.leave()
        os.kill(os.getpid(), number)
        assert guard.requested == number
    assert {n: signal.getsignal(n) for n in before} == before


def test_leaving_by_exit_code_or_by_keyboard_interrupt() -> None:
    guard = PreemptionGuard(("SIGTERM",), exit_code=99)
    guard.request(signal.SIGTERM)
    with pytest.raises(mtf.Preempted) as caught:
        guard.leave(Path("there"))
    assert isinstance(caught.value, SystemExit)
    assert (caught.value.code, caught.value.exit_code, caught.value.signal) == (99, 99, signal.SIGTERM)
    assert caught.value.checkpoint == Path("there")
    assert "preempted by SIGTERM, saved to there" in str(caught.value)
    interrupted = PreemptionGuard()
    interrupted.request(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted.leave()


def test_handlers_that_were_there_are_called_too() -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with PreemptionGuard(("SIGUSR1",)) as guard:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert guard.requested == signal.SIGUSR1
        assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_handler_that_raises_does_not_tear_the_step_apart() -> None:
    def leave(number: int, frame: Any) -> None:
        raise SystemExit(3)

    previous = signal.signal(signal.SIGUSR1, leave)
    try:
        with PreemptionGuard(("SIGUSR1",)) as guard:
            os.kill(os.getpid(), signal.SIGUSR1)
        assert guard.requested == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_handler_installed_meanwhile_stays() -> None:
    previous = signal.getsignal(signal.SIGUSR1)
    with PreemptionGuard(("SIGUSR1",)):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    signal.signal(signal.SIGUSR1, previous)


def test_no_signals_means_no_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    with PreemptionGuard(()):
        assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_there_is_one_warning() -> None:
    found: list[Any] = []

    def run() -> None:
        with pytest.warns(UserWarning, match="outside the main thread") as caught, PreemptionGuard() as guard:
            found.extend([len(caught), guard.requested])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [1, None]


SECOND = """
import os, signal, sys, time
from mtf.trainer.preemption import PreemptionGuard
with PreemptionGuard() as guard:
    for name in sys.argv[1:]:
        os.kill(os.getpid(), getattr(signal, name))
        print("still here", flush=True)
"""


@pytest.mark.parametrize(
    ("signals", "launcher", "status", "lines"),
    [
        (["SIGTERM"], "", 0, 1),
        (["SIGTERM", "SIGTERM"], "", -signal.SIGTERM, 1),
        (["SIGTERM", "SIGUSR1"], "", -signal.SIGUSR1, 1),
        (["SIGTERM", "SIGINT"], "", -signal.SIGINT, 1),
        (["SIGTERM", "SIGTERM"], "torchrun", 0, 2),  # the launcher's copy of a signal that the group got
    ],
)
def test_a_second_signal_exits_at_once(signals: list[str], launcher: str, status: int, lines: int) -> None:
    env = os.environ | ({"TORCHELASTIC_RUN_ID": "1"} if launcher else {})
    done = subprocess.run(
        [sys.executable, "-c", SECOND, *signals], capture_output=True, text=True, check=False, env=env, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.count("still here") == lines


def test_a_forked_worker_leaves_the_decision_to_the_run() -> None:
    with PreemptionGuard() as guard:
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if guard.requested is None else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_marker(tmp_path: Path) -> None:
    clear_marker(tmp_path)
    write_marker(tmp_path, signal.SIGUSR1, 17, tmp_path / "step-00000017")
    content = json.loads((tmp_path / "PREEMPTED").read_text())
    assert (content["signal"], content["step"], content["checkpoint"]) == ("SIGUSR1", 17, "step-00000017")
    clear_marker(tmp_path)
    assert list(tmp_path.iterdir()) == []
    clear_marker(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "requeue 12"),
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 10_3"),
    ],
)
def test_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], asked: str | None
) -> None:
    stand_in = tmp_path / "scontrol"
    stand_in.write_text(
        f'#!/bin/sh\nif [ "$1" = show ]; then echo "JobId=$4 JobState=RUNNING"; else echo "$@" > {tmp_path}/asked; fi\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert requeue_slurm_job() == (asked is not None)
    if asked is not None:
        assert (tmp_path / "asked").read_text().strip() == asked
        stand_in.write_text("#!/bin/sh\necho no such job >&2; exit 1\n")
        with pytest.warns(UserWarning, match="no such job"):
            assert not requeue_slurm_job()


def test_requeue_without_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert not requeue_slurm_job()


def test_the_usual_exit_code() -> None:
    assert EXIT_CODE == os.EX_TEMPFAIL


@pytest.mark.parametrize(
    ("state", "reason", "preempted", "again"),
    [
        ("RUNNING", "None", "None", True),
        ("COMPLETING", "TimeLimit", "None", True),
        ("COMPLETING", "None", "2026-11-30T16:00:00", True),
        ("COMPLETING", "None", "None", False),  # scancel
        ("PENDING", "None", "None", False),  # Slurm has requeued it
        ("CANCELLED", "None", "None", False),
    ],
)
def test_a_job_is_requeued_only_where_its_state_says_so(state: str, reason: str, preempted: str, again: bool) -> None:
    assert should_requeue({"JobState": state, "Reason": reason, "PreemptTime": preempted}) == again
    assert not should_requeue({})


def test_a_cancelled_job_stays_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "scontrol"
    said = "JobId=12 JobName=x JobState=COMPLETING Reason=None PreemptTime=None"
    stand_in.write_text(f'#!/bin/sh\nif [ "$1" = show ]; then echo "{said}"; else touch {tmp_path}/asked; fi\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert not requeue_slurm_job()
    assert not (tmp_path / "asked").exists()


def test_a_job_that_ends_while_it_is_requeued_was_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    stand_in = tmp_path / "scontrol"
    stand_in.write_text('#!/bin/sh\nif [ "$1" = show ]; then echo JobState=RUNNING; else kill -TERM $$; fi\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert requeue_slurm_job()
    assert not recwarn.list


_EARLY = """
import os, signal, sys
import mtf
mtf.preemption.install(("TERM",), exit_code=33)
print("ready", flush=True)
if sys.argv[1] == "before":
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit("not reached")
import torch
def make(step):
    net = torch.nn.Linear(2, 1)
    config = mtf.TrainerConfig(
        checkpoint=mtf.CheckpointConfig(root_dir=sys.argv[2]),
        fault_tolerance=mtf.FaultToleranceConfig(auto_resume=True),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        preemption=mtf.PreemptionConfig(exit_code=44),
    )
    return mtf.Trainer(config, net, torch.optim.SGD(net.parameters(), 0.1), training_step=step)
def step(trainer, batch, *rest):
    return trainer.model(batch[0]).sum()
def loader():
    return mtf.ArrayLoader((torch.ones(8, 2),), batch_size=2)
trainer = make(step)
trainer.fit({"a": loader()}, max_steps=3)
assert mtf.preemption.requested() is None
os.kill(os.getpid(), signal.SIGTERM)
assert mtf.preemption.requested() is signal.SIGTERM
trainer.fit({"a": loader()}, max_steps=6)
"""


@pytest.mark.parametrize(("when", "code"), [("before", 33), ("between", 44)])
def test_signals_before_fit_and_between_two(when: str, code: int, tmp_path: Path) -> None:
    args = [sys.executable, "-W", "ignore", "-c", _EARLY, when, str(tmp_path / "run")]
    done = subprocess.run(args, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == code, done.stderr
    assert [path.name for path in tmp_path.glob("run/step-*")] == ([] if when == "before" else ["step-00000003"])
    if when == "between":
        assert json.loads((tmp_path / "run" / "PREEMPTED").read_text())["step"] == 3


def test_install_checks_what_it_is_given() -> None:
    with pytest.raises(mtf.ConfigError, match="is no signal of this system"):
        mtf.preemption.install(("SIGNONE",))
    caught: list[BaseException] = []

    def call() -> None:
        try:
            mtf.preemption.install()
        except mtf.ConfigError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
