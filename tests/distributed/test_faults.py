"""A rank that raises, dies, hangs or never comes is named, and a new launch continues exactly."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from distributed import launch, models
from mtf.checkpoint.format.manifest import verify

pytestmark = pytest.mark.timeout(400)  # several processes each import torch; every launch has a limit of its own


@pytest.mark.parametrize(
    ("kind", "strategy", "words"),
    [
        ("raise", "ddp", "rank 1 failed after 5 updates: ValueError: the sample is broken"),
        ("raise", "fsdp", "rank 1 failed after 5 updates: ValueError: the sample is broken"),
        ("kill", "ddp", "was killed or exited"),
        ("kill", "fsdp", "was killed or exited"),
        ("hang", "ddp", "doesn't answer"),
    ],
)
def test_a_bad_rank_is_named_and_a_new_launch_goes_on(kind: str, strategy: str, words: str, tmp_path: Path) -> None:
    ranks = launch.start(2, tmp_path / "bad", "fault_worker.py", kind, strategy, str(tmp_path / "run"))
    try:
        ranks.processes[0].wait(90)
    finally:
        run = ranks.wait(0.2 if kind == "hang" else 90)
    error = run.results[0]["error"]
    assert error.startswith("RankFailed: rank 0 stops after 5 updates, because rank 1"), run.output[0]
    assert words in error
    assert run.codes[0] == 1
    assert run.codes[1] == (1 if kind == "raise" else -signal.SIGKILL)
    if kind == "hang":
        assert run.seconds < 8 + 2 + 60  # timeout_s, the roll call, the start of the processes on a busy machine
        return
    if kind == "raise":
        assert run.results[1]["error"] == "ValueError: the sample is broken"
    # The save under way when a rank is killed counts on all ranks or on none.
    latest = tmp_path / "run" / "step-00000004"
    assert latest.exists() or kind == "kill"
    if latest.exists():
        assert verify(latest)["step"] == 4
    again = launch.run(2, tmp_path / "again", "fault_worker.py", "none", strategy, str(tmp_path / "run"), "12")
    assert again.codes == [0, 0], again.output
    whole = models.by_hand(12)
    for result in again.results:
        for name, value in whole.items():
            assert result["weights"][name] == pytest.approx(value.flatten().tolist(), abs=2e-7)


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    run = launch.run(2, tmp_path, "fault_worker.py", "absent", "ddp", str(tmp_path / "run"), timeout_s=90)
    assert run.codes == [1, 0]
    assert "RankFailed: the process group wasn't made within 8 s: ranks [1] never came" in run.output[0]


def test_a_loader_that_raises_on_one_rank_is_named_on_all(tmp_path: Path) -> None:
    run = launch.run(2, tmp_path, "fault_worker.py", "loader", "ddp", str(tmp_path / "run"), timeout_s=90)
    assert run.codes == [1, 1], run.output
    words = "loader 'b', pass 0, batch 2 (epoch 0, step 5): OSError: sample 30 can't be read"
    assert run.results[1]["error"] == f"SourceError: {words}"
    assert run.results[0]["error"].startswith("RankFailed: rank 0 stops after 5 updates, because rank 1 failed")
    assert words in run.results[0]["error"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_that_is_slow_and_began_with_other_weights_changes_nothing(strategy: str, tmp_path: Path) -> None:
    run = launch.run(2, tmp_path, "fault_worker.py", "slow", strategy, str(tmp_path / "run"), "12", timeout_s=90)
    assert run.codes == [0, 0], run.output
    for result in run.results:
        for name, value in models.by_hand(12).items():
            assert result["weights"][name] == pytest.approx(value.flatten().tolist(), abs=2e-7)


def test_a_signal_to_one_rank_stops_all_after_the_same_update(tmp_path: Path) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        f'#!/bin/sh\nif [ "$1" = show ]; then echo JobState=RUNNING; else echo "$@" >> {tmp_path}/requeued; fi\n'
    )
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    run = launch.run(
        2, tmp_path / "1", "fault_worker.py", "signal", "fsdp", str(tmp_path / "run"),
        PATH=f"{scontrol.parent}:/usr/bin:/bin", SLURM_JOB_ID="77",
    )  # fmt: skip
    assert run.codes == [75, 75], run.output
    assert [result["updates"] for result in run.results] == [8, 8]  # the next look after update 5
    marker = json.loads((tmp_path / "run" / "PREEMPTED").read_text())
    assert (marker["signal"], marker["step"]) == ("SIGTERM", 8)
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"  # by one rank
    again = launch.run(2, tmp_path / "2", "fault_worker.py", "none", "fsdp", str(tmp_path / "run"), "12")
    assert again.codes == [0, 0], again.output
    for name, value in models.by_hand(12).items():
        assert again.results[0]["weights"][name] == pytest.approx(value.flatten().tolist(), abs=2e-7)
    assert not (tmp_path / "run" / "PREEMPTED").exists()


def test_torchrun_starts_the_same_script_and_forwards_signals(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(Path(__file__).parent / "fault_worker.py"), "signal", "ddp", str(tmp_path / "run"),
    ]  # fmt: skip
    env = launch.environment(RESULT=str(tmp_path / "result"))
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1, done.stderr  # whatever the workers return
    assert "exitcode  : 75" in done.stderr
    assert json.loads((tmp_path / "run" / "PREEMPTED").read_text())["step"] == 8


def test_slurm_variables_make_the_group(tmp_path: Path) -> None:
    port = launch.free_port()
    processes = []
    for rank in range(2):
        env = launch.environment(
            SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS="2", SLURM_LOCALID=str(rank), SLURM_JOB_ID="5",
            SLURM_STEP_NODELIST="localhost", MASTER_PORT=str(port), RESULT=str(tmp_path / f"result-{rank}.json"),
        )  # fmt: skip
        worker = str(Path(__file__).parent / "fault_worker.py")
        args = [sys.executable, worker, "none", "ddp", str(tmp_path / "run"), "4"]
        processes.append(subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    assert [process.wait(60) for process in processes] == [0, 0]
    assert json.loads((tmp_path / "result-1.json").read_text())["updates"] == 4
