"""One run's checkpoints: names, lock, rotation, best, fallback from damage, frequencies, the background writer."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf.checkpoint.async_writer import BackgroundWriter
from mtf.checkpoint.format import layout
from mtf.checkpoint.format.naming import NameTemplate
from mtf.checkpoint.manager import CheckpointManager
from mtf.checkpoint.policy import SavePolicy
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.lock import LOCK_NAME, DirectoryLock, _start_time
from mtf.config.checkpoint import CheckpointConfig
from mtf.errors import CheckpointError, ConfigError


def manager(root: Path, saved: list[str] | None = None, **fields: Any) -> CheckpointManager:
    on_saved = None if saved is None else lambda path: saved.append(path.name)
    return CheckpointManager(CheckpointConfig(root_dir=str(root), **fields), on_saved)


def save(m: CheckpointManager, step: int, *, epoch: int = 0, value: int = 0, **fields: Any) -> Path | None:
    metrics = {"val/loss": fields.pop("loss")} if "loss" in fields else {}
    return m.save(
        step=step,
        epoch=epoch,
        model={"w": torch.full((3,), value)},
        state_tree={"v": value},
        schedule=b"",
        metrics=metrics,
        **fields,
    )


def names(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if name.startswith("step-"))


def flip(path: Path, name: str = "model.safetensors") -> None:
    raw = bytearray((path / name).read_bytes())
    raw[-1] ^= 1
    (path / name).write_bytes(raw)


# Rotation, latest, best


@pytest.mark.parametrize("asynchronous", [False, True])
def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path, asynchronous: bool) -> None:
    saved: list[str] = []
    m = manager(tmp_path, saved, max_checkpoints=2, monitor_metric="val/loss", asynchronous=asynchronous)
    for step, loss in enumerate([3.0, 1.0, 2.0, math.nan, 5.0], start=1):
        assert m.improves({"val/loss": loss}) == (step <= 2)
        save(m, step, loss=loss)
    m.close()
    assert saved == [f"step-0000000{i}" for i in range(1, 6)]
    assert names(tmp_path) == ["step-00000002", "step-00000005"]
    assert m.latest() == tmp_path / "step-00000005"
    assert m.best() == tmp_path / "step-00000002"
    assert os.readlink(tmp_path / "latest") == "step-00000005"
    assert os.readlink(tmp_path / "best") == "step-00000002"


@pytest.mark.parametrize("keep", [1, 3, None])
def test_number_of_checkpoints(tmp_path: Path, keep: int | None) -> None:
    m = manager(tmp_path, max_checkpoints=keep)
    for step in range(1, 7):
        save(m, step)
    assert len(names(tmp_path)) == (keep or 6)


def test_best_by_maximum_and_across_restarts(tmp_path: Path) -> None:
    m = manager(tmp_path, max_checkpoints=1, monitor_metric="val/loss", monitor_mode="max")
    for step, value in enumerate([0.5, 0.9, math.inf, 0.7], start=1):
        save(m, step, loss=value)
    m.close()
    later = manager(tmp_path, max_checkpoints=1, monitor_metric="val/loss", monitor_mode="max")
    assert later.best() == tmp_path / "step-00000003"
    assert not later.improves({"val/loss": 0.95})
    assert not later.improves({})
    save(later, 5, loss=0.1)
    assert names(tmp_path) == ["step-00000003", "step-00000005"]


def test_rotation_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-00000000.txt").write_text("mine")
    layout.write(tmp_path / "final", model={}, state_tree={}, schedule=b"", manifest={"step": 1})
    elsewhere = tmp_path.parent / "elsewhere"
    layout.write(elsewhere, model={}, state_tree={}, schedule=b"", manifest={"step": 0})
    (tmp_path / "step-00000000").symlink_to(elsewhere)
    m = manager(tmp_path, max_checkpoints=1)
    for step in (2, 3):
        save(m, step)
    assert names(tmp_path) == ["step-00000000", "step-00000000.txt", "step-00000003", "step-notes"]
    assert (tmp_path / "final").exists()
    assert layout.read(elsewhere).manifest["step"] == 0


def test_a_damaged_newest_is_reported_kept_and_passed_over(tmp_path: Path) -> None:
    m = manager(tmp_path, max_checkpoints=2)
    for step in (1, 2, 3):
        save(m, step, value=step)
    m.close()
    flip(tmp_path / "step-00000003")
    m = manager(tmp_path, max_checkpoints=2)
    with pytest.warns(local.CheckpointWarning, match=r"step-00000003/model.safetensors: is damaged.*SHA-256"):
        found = m.load_latest()
    assert found is not None
    assert found.state == {"v": 2}
    # Rotation counts valid ones only; the damaged one stays as evidence until the run reaches its step again.
    save(m, 4, value=4)
    save(m, 5, value=5)
    assert names(tmp_path) == ["step-00000003", "step-00000004", "step-00000005"]
    save(m, 3, value=33)
    assert layout.read(tmp_path / "step-00000003").state == {"v": 33}


def test_an_unreadable_manifest_is_reported_too(tmp_path: Path) -> None:
    m = manager(tmp_path)
    for step in (1, 2):
        save(m, step)
    (tmp_path / "step-00000002" / "manifest.json").write_bytes(b"")
    with pytest.warns(local.CheckpointWarning, match=r"step-00000002/manifest.json: is empty"):
        assert m.latest() == tmp_path / "step-00000001"


def test_checkpoints_of_which_none_is_valid_are_an_error(tmp_path: Path) -> None:
    m = manager(tmp_path)
    for step in (1, 2):
        save(m, step)
        flip(tmp_path / f"step-0000000{step}")
    with pytest.raises(CheckpointError, match=r"2 checkpoints and none can be used.*step-00000002.*step-00000001"):
        m.latest()


def test_an_empty_directory_of_our_name_is_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        manager(tmp_path).latest()


def test_no_checkpoints_at_all(tmp_path: Path) -> None:
    assert manager(tmp_path / "nowhere").latest() is None
    assert manager(tmp_path).load_latest() is None
    assert manager(tmp_path).best() is None
    assert os.listdir(tmp_path) == []


def test_newest_is_the_last_written_also_after_going_back(tmp_path: Path) -> None:
    first = manager(tmp_path, max_checkpoints=None)
    for step in (100, 200, 300):
        save(first, step)
    first.close()
    again = manager(tmp_path, max_checkpoints=None)
    save(again, 150)  # the user resumed from step 100 on purpose
    assert again.latest() == tmp_path / "step-00000150"


def test_a_checkpoint_saved_by_hand_counts_by_its_step(tmp_path: Path) -> None:
    m = manager(tmp_path)
    save(m, 100)
    layout.write(tmp_path / "by-hand", model={}, state_tree={}, schedule=b"", manifest={"step": 150})
    assert m.latest() == tmp_path / "by-hand"


# Names


def test_names() -> None:
    t = NameTemplate("run1-e{epoch:03d}-s{step}")
    assert t.name(12, 3) == "run1-e003-s12"
    assert t.step_of("run1-e003-s12") == 12
    for other in (
        "run1-e3-s12",
        "run1-e003-s012",
        "run1-e003-s12.bak",
        "xrun1-e003-s12",
        "run1-e003-s",
        "run1-e003-s-1",
    ):
        assert t.step_of(other) is None
    assert NameTemplate("{step:,}").step_of("1,234") == 1234
    assert NameTemplate("a.b{step}").step_of("axb1") is None


@pytest.mark.parametrize(
    "bad", ["fixed", "{epoch}", "{step}/x", ".{step}", "{step:x}", "{loss}-{step}", "{step", "{step!r}"]
)
def test_templates_that_make_no_good_names(bad: str) -> None:
    with pytest.raises(ConfigError, match="filename_template"):
        NameTemplate(bad)


# Lock and leftovers


def test_two_trainers_in_one_process(tmp_path: Path) -> None:
    a, b = manager(tmp_path), manager(tmp_path)
    save(a, 1)
    with pytest.raises(CheckpointError, match="another trainer in this process"):
        save(b, 2)
    a.close()
    save(b, 2)
    with pytest.raises(CheckpointError, match="another trainer"):
        save(a, 3)


def test_a_forgotten_trainer_gives_the_lock_back(tmp_path: Path) -> None:
    a = manager(tmp_path)
    save(a, 1)
    del a
    save(manager(tmp_path), 2)


def test_two_processes(tmp_path: Path) -> None:
    script = f"""
import sys
from mtf.checkpoint.storage.lock import DirectoryLock
lock = DirectoryLock({str(tmp_path)!r})
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    with child:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=rf"process {child.pid} on host .* delete "):
            save(manager(tmp_path), 1)
        child.kill()
        child.wait()
    assert (tmp_path / LOCK_NAME).exists()
    save(manager(tmp_path), 1)  # the holder was killed: taken over


@pytest.mark.parametrize(
    ("change", "job", "free"),
    [
        ({}, "", False),
        ({"started": "1"}, "", True),  # the process id belongs to a newer process
        ({"pid": 2**22 + 1}, "", True),  # no such process
        ({"host": "elsewhere"}, "", False),
        ({"host": "elsewhere", "job": "77"}, "77", True),  # requeued by Slurm on another node
        ({"host": "elsewhere", "job": "77"}, "78", False),
        ({"namespace": "pid:[1]", "pid": 2**22 + 1}, "", False),  # another container's ids say nothing here
    ],
)
def test_stale_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], job: str, free: bool
) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    holder = json.loads((tmp_path / LOCK_NAME).read_text())
    lock.release()
    parent = {"pid": os.getppid(), "started": _start_time(os.getppid())}
    (tmp_path / LOCK_NAME).write_text(json.dumps(holder | parent | change))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    if free:
        DirectoryLock(tmp_path).acquire()
    else:
        with pytest.raises(CheckpointError, match="writes its checkpoints here"):
            DirectoryLock(tmp_path).acquire()


def test_a_lock_of_another_host_is_taken_over_two_minutes_after_its_last_heartbeat(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    path = tmp_path / LOCK_NAME
    holder = json.loads(path.read_text())
    lock.release()
    path.write_text(json.dumps(holder | {"host": "elsewhere", "token": "t"}))
    new = DirectoryLock(tmp_path)
    waiting = new.waiting_for()
    assert waiting is not None
    assert "host elsewhere" in waiting
    os.utime(path)  # it beats once more: alive
    assert new.waiting_for() is None
    with pytest.raises(CheckpointError, match="on host elsewhere writes its checkpoints here"):
        new.acquire()
    then = path.stat().st_mtime - 130
    os.utime(path, (then, then))
    assert new.waiting_for() is None
    new.acquire()
    assert new.token == new.holder_token() != "t"


def test_a_held_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtf.checkpoint.storage.lock._BEAT_EVERY_S", 0.02)
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    path = tmp_path / LOCK_NAME
    os.utime(path, (1.0, 1.0))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 1.0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock.release()


def test_a_lock_of_an_older_version_has_no_heartbeat_and_is_never_taken_over(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    path = tmp_path / LOCK_NAME
    holder = json.loads(path.read_text())
    lock.release()
    del holder["heartbeat_s"]
    path.write_text(json.dumps(holder | {"host": "elsewhere"}))
    os.utime(path, (1.0, 1.0))
    with pytest.raises(CheckpointError, match="on host elsewhere"):
        DirectoryLock(tmp_path).acquire()


def test_a_lock_file_of_garbage_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_bytes(b"\x00garbage")
    DirectoryLock(tmp_path).acquire()


def test_leftovers_of_killed_saves_are_removed(tmp_path: Path) -> None:
    host = local.host_name()
    dead = 2**22 + 1
    for name in (
        f".step-00000001.mtf-tmp-{host}-{dead}-aa",
        f".step-00000001.mtf-trash-{host}-{dead}-aa",
        f".step-00000001.mtf-tmp-{host}-{os.getpid()}-aa",  # a container's first process has the same id each time
        ".step-00000001.mtf-tmp-elsewhere-5-aa",
        f".step-00000001.mtf-tmp-{host}-{os.getppid()}-aa",  # a living process: stays
        ".mine",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    save(manager(tmp_path), 2)
    left = {name for name in os.listdir(tmp_path) if name.startswith(".")} - {LOCK_NAME}
    assert left == {".mine", f".step-00000001.mtf-tmp-{host}-{os.getppid()}-aa"}


def test_a_checkpoint_moved_aside_is_put_back(tmp_path: Path) -> None:
    save(manager(tmp_path), 1, value=1)
    aside = tmp_path / f".step-00000001.mtf-old-{local.host_name()}-{2**22 + 1}-aa"
    os.rename(tmp_path / "step-00000001", aside)
    m = manager(tmp_path)
    assert m.latest() == aside
    save(m, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert layout.read(tmp_path / "step-00000001").state == {"v": 1}


def test_the_directory_removed_under_the_run(tmp_path: Path) -> None:
    import shutil

    m = manager(tmp_path / "run")
    save(m, 1)
    shutil.rmtree(tmp_path / "run")
    save(m, 2)
    assert m.latest() == tmp_path / "run" / "step-00000002"
    assert (tmp_path / "run" / LOCK_NAME).exists()


# Failures


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_loud_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    saved: list[str] = []
    m = manager(tmp_path, saved, asynchronous=asynchronous)
    save(m, 1)
    m.wait()
    real = os.fsync

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    def save_and_wait() -> None:
        save(m, 2)
        m.wait()

    with pytest.warns(local.CheckpointWarning, match=r"No space left on device.*The run continues"):
        save_and_wait()
    assert m.last_error is not None
    with pytest.raises(CheckpointError, match="No space left"):
        save(m, 3, required=True)
    monkeypatch.setattr(os, "fsync", real)
    assert m.latest() == tmp_path / "step-00000001"
    save(m, 4)
    m.wait()
    assert m.last_error is None
    assert saved == ["step-00000001", "step-00000004"]
    assert sorted(os.listdir(tmp_path)) == [LOCK_NAME, "latest", "step-00000001", "step-00000004"]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.filterwarnings("ignore:.*The run continues")
def test_a_best_that_could_not_be_saved_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    m = manager(tmp_path, monitor_metric="val/loss", asynchronous=asynchronous)
    save(m, 1, loss=5.0)
    m.wait()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        save(m, 2, loss=3.0)
        m.wait()
    assert m.improves({"val/loss": 4.0})
    assert not m.improves({"val/loss": 5.0})


def test_state_that_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    m = manager(tmp_path)
    with pytest.raises(CheckpointError, match=r"state\['x'\]"):
        m.save(step=1, epoch=0, model={}, state_tree={"x": object()}, schedule=b"")


def test_an_asynchronous_save_is_a_copy(tmp_path: Path) -> None:
    m = manager(tmp_path, asynchronous=True)
    weights = torch.zeros(200_000)
    m.save(step=1, epoch=0, model={"w": weights}, state_tree={"t": weights}, schedule=b"")
    weights += 1
    m.wait()
    back = layout.read(tmp_path / "step-00000001")
    assert back.model["w"].sum() == 0
    assert back.state["t"].sum() == 0


def test_asynchronous_saves_take_the_memory_of_the_copy_before(tmp_path: Path) -> None:
    model = {"w": torch.arange(6.0).reshape(2, 3), "gone": torch.ones(2)}
    first = layout.CheckpointPayload.take(model, {"t": torch.zeros(4)}, b"", copy=True)
    model = {"w": -torch.arange(6.0).reshape(3, 2).t(), "new": torch.ones(3)}
    second = layout.CheckpointPayload.take(model, {"t": torch.ones(5)}, b"", copy=True, spare=first)
    assert second.model["w"] is first.model["w"]
    assert torch.equal(second.model["w"], model["w"])
    assert torch.equal(second.tensors["state/t"], torch.ones(5))
    m = manager(tmp_path, asynchronous=True, max_checkpoints=None)
    for step in range(1, 6):
        save(m, step, value=step)
    m.close()
    for step in range(1, 6):
        back = layout.read(tmp_path / f"step-0000000{step}")
        assert (back.model["w"] == step).all()
        assert back.state == {"v": step}


def test_poll_never_waits(tmp_path: Path) -> None:
    saved: list[str] = []
    m = manager(tmp_path, saved, asynchronous=True)
    save(m, 1)
    deadline = time.monotonic() + 20
    while not saved and time.monotonic() < deadline:
        m.poll()
        time.sleep(0.001)
    assert saved == ["step-00000001"]


# Writer, frequencies


def test_the_writer_runs_one_job_at_a_time_and_gives_errors_back() -> None:
    writer = BackgroundWriter()
    gate = threading.Event()
    order: list[int] = []

    def slow() -> None:
        gate.wait(10)
        order.append(1)

    writer.submit(slow)
    assert writer.busy
    threading.Timer(0.05, gate.set).start()
    writer.submit(lambda: order.append(2))
    writer.wait()
    assert order == [1, 2]

    def failing() -> None:
        raise CheckpointError("disk gone")

    writer.submit(failing)
    with pytest.raises(CheckpointError, match="disk gone"):
        writer.wait()
    writer.wait()
    assert not writer.busy


def test_ctrl_c_while_the_writer_starts_leaves_one_that_can_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    start, done = threading.Thread.start, threading.Event()

    def interrupted(thread: threading.Thread) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start(thread)

    writer = BackgroundWriter()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.submit(done.set)
    writer.wait()
    assert done.is_set()


def test_exit_waits_for_the_writer_and_says_what_failed(tmp_path: Path) -> None:
    script = f"""
import sys, time
from mtf.checkpoint.async_writer import BackgroundWriter
writer = BackgroundWriter()
def job():
    time.sleep(0.2)
    open({str(tmp_path / "done")!r}, "w").close()
    raise OSError("disk gone")
writer.submit(job)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (tmp_path / "done").exists()
    assert "the last checkpoint was not written: disk gone" in done.stderr


def test_frequencies() -> None:
    now = [0.0]
    schedule = SavePolicy(every_n_steps=3, every_n_epochs=2, every_n_minutes=1.0, clock=lambda: now[0])
    assert [step for step in range(10) if schedule.due(step)] == [3, 6, 9]
    assert [epoch for epoch in range(6) if schedule.due_after_epoch(epoch)] == [2, 4]
    now[0] = 59.0
    assert schedule.due(1) is None
    now[0] = 60.0
    assert schedule.due(1) == "every 1 minutes"
    schedule.saved()
    assert schedule.due(1) is None
    assert not SavePolicy().enabled
    assert SavePolicy().due(100) is None


def test_no_warnings_in_a_healthy_run(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m = manager(tmp_path)
        save(m, 1)
        m.latest()
        m.close()
        m.close()
