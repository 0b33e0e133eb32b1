"""Every way in which Slurm ends a job: it saves or continues, is requeued once where that is right, resumes exactly."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import hosts, runs
from cluster.slurm import Slurm

STEPS = 24
# Both tasks on different nodes; the job may be requeued.
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--requeue")
KEPT = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "PYTHONUNBUFFERED")
STEP = f"srun --kill-on-bad-exit=1 {shlex.quote(sys.executable)} {shlex.quote(str(runs.WORKER))}"


@pytest.fixture(scope="module")
def shared_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    with hosts.hosts(2, folder) as machines:
        made = Slurm(machines, folder / "slurm")
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def cluster(shared_slurm: Slurm) -> Iterator[Slurm]:
    """A Slurm of two nodes without jobs."""
    yield shared_slurm
    shared_slurm.cancel_all()


@pytest.fixture(scope="module")
def whole(shared_slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The weights of a job that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    job = submit(shared_slurm, folder, PAUSE="0")
    shared_slurm.wait(job, ["COMPLETED"], 120)
    runs.require_weights(folder, STEPS)
    return runs.weights(folder)


def submit(slurm: Slurm, folder: Path, *options: str, script: str = STEP, **env: str) -> str:
    """A job that trains; pauses leave time for what happens to it."""
    more = {
        **{name: value for name, value in hosts.environment().items() if name in KEPT},
        "ROOT": str(folder / "ckpt"), "NOTES": str(folder / "notes"), "STEPS": str(STEPS), "REQUEUE": "1",
        "PAUSE": "0.4", "TIMEOUT": "30", **env,
    }  # fmt: skip
    return slurm.submit(script, folder, *(options or TWO_NODES), env=more)


def until_update(folder: Path, update: int, timeout_s: float = 90.0, attempt: int = 1) -> None:
    """Waits until all ranks of the ``attempt``-th start are that far."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = runs.attempts(folder) if (folder / "notes").exists() else []
        if len(found) >= attempt and found[attempt - 1].batches and max(found[attempt - 1].batches) >= update:
            return
        log = folder / "job.log"
        assert time.monotonic() < deadline, log.read_text() if log.exists() else f"{found}"
        time.sleep(0.2)


def require_exact(folder: Path, whole: dict[str, list[float]], starts: int = 2) -> None:
    """The run was started ``starts`` times, saw the batches of one that isn't interrupted, and ends with its bits."""
    found = runs.require_same_batches(folder, STEPS)
    assert len(found) == starts, [(a.first, sorted(a.batches)) for a in found]
    assert runs.weights(folder) == whole


def log(folder: Path) -> str:
    return (folder / "job.log").read_text()


def ended(slurm: Slurm, job: str, folder: Path, states: list[str], timeout_s: float = 150) -> dict[str, str]:
    try:
        return slurm.wait(job, states, timeout_s)
    except TimeoutError as error:
        raise AssertionError(f"{error}\n{log(folder)}") from None


def test_a_signal_to_the_steps_saves_and_requeues_once(cluster: Slurm, whole: Any, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path)
    until_update(tmp_path, 6)
    cluster.call("scancel", "--signal=USR1", job)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "1"
    require_exact(tmp_path, whole)


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Slurm, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path)
    until_update(tmp_path, 6)
    cluster.call("scancel", job)
    ended(cluster, job, tmp_path, ["CANCELLED"])
    time.sleep(10)  # longer than the delay of a requeue
    fields = cluster.job(job)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0")
    marker = json.loads((tmp_path / "ckpt" / "PREEMPTED").read_text())
    assert (tmp_path / "ckpt" / marker["checkpoint"]).is_dir()


@pytest.mark.nightly
def test_preemption_by_a_higher_partition_requeues_once(cluster: Slurm, whole: Any, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, *TWO_NODES, "--partition=low")
    until_update(tmp_path, 6)
    high = cluster.submit("sleep 3", tmp_path / "high", "--partition=high", "--nodes=2", "--exclusive")
    cluster.wait(high, ["COMPLETED"], 90)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "1"
    assert "requeue" not in "\n".join(line for line in log(tmp_path).splitlines() if "Warning" in line)
    require_exact(tmp_path, whole)


@pytest.mark.nightly
def test_preemption_that_cancels_is_requeued_by_the_run(cluster: Slurm, whole: Any, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, *TWO_NODES, "--partition=cancelled")
    until_update(tmp_path, 6)
    high = cluster.submit("sleep 3", tmp_path / "high", "--partition=high", "--nodes=2", "--exclusive")
    cluster.wait(high, ["COMPLETED"], 90)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "1"
    require_exact(tmp_path, whole)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("limit", "warning", "pause_s"),
    [
        ("--time=2", ("--signal=USR1@15",), "6"),  # Slurm warns up to a minute earlier than it is asked to
        ("--time=1", (), "4"),
    ],
)
def test_the_time_limit_saves_and_requeues_once(
    cluster: Slurm, whole: Any, tmp_path: Path, limit: str, warning: tuple[str, ...], pause_s: str
) -> None:
    job = submit(cluster, tmp_path, *TWO_NODES, limit, *warning, PAUSE=pause_s)
    until_update(tmp_path, 1)
    deadline = time.monotonic() + 240
    while cluster.job(job)["Restarts"] == "0":
        assert time.monotonic() < deadline, log(tmp_path)
        time.sleep(0.5)
    cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    fields = ended(cluster, job, tmp_path, ["COMPLETED"], 300)
    assert fields["Restarts"] == "1"
    require_exact(tmp_path, whole)


@pytest.mark.nightly
def test_a_signal_before_fit_requeues_and_loses_nothing(cluster: Slurm, whole: Any, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, BEFORE=str(tmp_path / "early"))
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("early*"))) < 2:  # both tasks wait where other scripts read their data
        assert time.monotonic() < deadline, log(tmp_path)
        time.sleep(0.2)
    (tmp_path / "early-gone").touch()
    cluster.call("scancel", "--signal=USR1", job)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "1"
    require_exact(tmp_path, whole, starts=1)


_TRAP = f"""
trap 'scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
{STEP} &
while kill -0 $! 2> /dev/null; do wait $!; code=$?; done
exit $code
"""


@pytest.mark.nightly
def test_a_signal_to_the_batch_shell_reaches_the_run_by_its_trap(cluster: Slurm, whole: Any, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, script=_TRAP)
    until_update(tmp_path, 6)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "1"
    require_exact(tmp_path, whole)


def _requeue(cluster: Slurm, job: str) -> None:
    cluster.call("scontrol", "requeue", job)


def _requeuehold(cluster: Slurm, job: str) -> None:
    cluster.call("scontrol", "requeuehold", job)
    cluster.wait(job, ["PENDING", "SPECIAL_EXIT"], 60)
    time.sleep(8)
    assert cluster.job(job)["JobState"] == "PENDING"
    cluster.call("scontrol", "release", job)


@pytest.mark.nightly
@pytest.mark.parametrize("how", [_requeue, _requeuehold])
def test_requeued_by_a_person(cluster: Slurm, whole: Any, tmp_path: Path, how: Callable[[Slurm, str], None]) -> None:
    job = submit(cluster, tmp_path)
    until_update(tmp_path, 6)
    how(cluster, job)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "1"
    require_exact(tmp_path, whole)


@pytest.mark.nightly
def test_suspended_for_longer_than_the_timeout(cluster: Slurm, whole: Any, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, TIMEOUT="10")
    until_update(tmp_path, 6)
    cluster.call("scontrol", "suspend", job)
    time.sleep(15)
    assert cluster.job(job)["JobState"] == "SUSPENDED"
    cluster.call("scontrol", "resume", job)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "0"
    require_exact(tmp_path, whole, starts=1)


@pytest.mark.nightly
def test_a_task_of_an_array_is_requeued_alone(cluster: Slurm, tmp_path: Path) -> None:
    own = f"export ROOT=$ROOT/$SLURM_ARRAY_TASK_ID NOTES={tmp_path}/$SLURM_ARRAY_TASK_ID/notes\n{STEP}"
    job = submit(
        cluster, tmp_path, "--nodes=1", "--ntasks=2", "--requeue", "--array=0-1",
        f"--output={tmp_path}/job-%a.log", script=own,
    )  # fmt: skip
    for task in ("0", "1"):
        until_update(tmp_path / task, 6)
    cluster.call("scancel", "--signal=USR1", f"{job}_1")
    for task in ("0", "1"):
        cluster.wait(f"{job}_{task}", ["COMPLETED"], 150)
        found = runs.require_same_batches(tmp_path / task, STEPS)
        assert len(found) == 1 + int(task)
        assert cluster.job(f"{job}_{task}")["Restarts"] == task
    assert runs.weights(tmp_path / "0") == runs.weights(tmp_path / "1")


@pytest.mark.nightly
def test_torchrun_inside_a_step(cluster: Slurm, tmp_path: Path) -> None:
    script = f"""
srun --ntasks-per-node=1 {sys.executable} -m torch.distributed.run --nnodes=$SLURM_NNODES --nproc-per-node=2 \\
  --rdzv-backend=c10d --rdzv-endpoint=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1):29500 \\
  --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 {runs.WORKER}
"""
    job = submit(cluster, tmp_path, script=script)
    until_update(tmp_path, 6)
    cluster.call("scancel", "--signal=USR1", job)
    fields = ended(cluster, job, tmp_path, ["COMPLETED"])
    assert fields["Restarts"] == "1"
    found = runs.require_same_batches(tmp_path, STEPS)
    assert [attempt.ranks for attempt in found] == [4, 4]
    runs.require_weights(tmp_path, STEPS)


def test_an_error_of_the_run_is_not_requeued_and_its_cause_is_the_last_line(cluster: Slurm, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, f"--error={tmp_path}/job.log", *TWO_NODES, FAULT="0:6:raise", PAUSE="0")
    ended(cluster, job, tmp_path, ["FAILED"])
    assert cluster.job(job)["Restarts"] == "0"
    assert "ValueError: the sample is broken" in log(tmp_path)
    assert "rank 1 stops after 6 updates, because rank 0 failed after 6 updates: ValueError" in log(tmp_path)


@pytest.mark.nightly
def test_a_node_that_is_lost(shared_slurm: Slurm, cluster: Slurm, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "--nodes=1", "--ntasks=2", "--requeue")
    until_update(tmp_path, 7)
    name = cluster.job(job)["NodeList"]
    machine = cluster.machines[name]
    machine.power_off()
    fields = ended(cluster, job, tmp_path, ["COMPLETED"], 240)
    assert fields["Restarts"] == "1"
    assert fields["NodeList"] != name
    runs.require_same_batches(tmp_path, STEPS)
    again = hosts.make_host(int(name[-1]), shared_slurm.folder.parent)
    shared_slurm.start_node(again)
