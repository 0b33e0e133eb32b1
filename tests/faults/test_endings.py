"""Every way in which an interpreter ends in the middle of training: at once, with its status, and without a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mtf
from mtf.checkpoint.manager import CheckpointManager

TRAINING = """
import os, signal, sys, threading, time, torch
import mtf
from torch.utils.data import DataLoader, TensorDataset

class Slow(torch.utils.data.Dataset):
    def __len__(self): return 400
    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.full((4,), float(index))

def hang(index):
    while True: time.sleep(0.1)

class Hanging(Slow):
    def __getitem__(self, index): return hang(index) if index > 3 else super().__getitem__(index)

class End(mtf.TrainerHooks):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 6:
            ENDING

net = torch.nn.Linear(4, 1)
config = mtf.TrainerConfig(
    logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
    checkpoint=mtf.CheckpointConfig(root_dir=sys.argv[1], save_every_n_steps=1, asynchronous=True),
)
loaders = {
    "workers": DataLoader(Slow(), 2, num_workers=1, persistent_workers=True),
    "hangs": DataLoader(Hanging(), 2, num_workers=1),
    "threads": mtf.ThreadLoader(Slow(), 2, num_threads=3),
    "arrays": mtf.ArrayLoader(torch.ones(400, 4), 2),
}
step = lambda trainer, batch, *_: net(batch).mean()
trainer = mtf.Trainer(config, net, torch.optim.SGD(net.parameters(), 0.01), training_step=step, hooks=[End()])
threading.excepthook = lambda args: None
trainer.fit(loaders, max_steps=100)
"""


@pytest.mark.parametrize(
    ("ending", "status", "words"),
    [
        ("sys.exit(4)", 4, ""),
        ("raise ValueError('uncaught')", 1, "ValueError: uncaught"),
        ("os._exit(4)", 4, ""),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
        ("[os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]", -signal.SIGINT, "KeyboardInterrupt"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 75, ""),
        ("[os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]", -signal.SIGTERM, ""),
    ],
)
@pytest.mark.timeout(100)
def test_the_interpreter_ends_in_the_middle_of_training(tmp_path: Path, ending: str, status: int, words: str) -> None:
    """With live workers, one of which hangs, threads inside the dataset, and a save under way."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    code = TRAINING.replace("ENDING", ending)
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    # Nobody is left to end the worker that hangs, which keeps the pipe of the errors open.
    is_abrupt = "os._exit" in ending or status == -signal.SIGTERM
    with child:
        try:
            child.wait(timeout=60)
        finally:
            leftover = _members(child.pid, 1.0 if is_abrupt else 10.0)
            for pid in leftover:
                os.kill(pid, signal.SIGKILL)
        assert child.stderr is not None
        errors = child.stderr.read()
    assert child.returncode == status, errors
    assert bool(leftover) == is_abrupt
    assert words in errors
    assert "terminate called" not in errors
    assert "Fatal Python error" not in errors
    if not words:
        assert errors == ""
    # In update 7: the save of update 6 was under way, and on a signal that isn't the second that of update 7 follows.
    saved = CheckpointManager(mtf.CheckpointConfig(root_dir=str(tmp_path))).latest()
    if "os._exit" not in ending and "range(2)" not in ending:
        assert saved is not None
        assert saved.name == ("step-00000007" if "os.kill" in ending else "step-00000006")


def _members(session: int, after_s: float) -> list[int]:
    """Processes of a session that are still there some seconds later."""
    deadline = time.monotonic() + after_s
    while True:
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _session(pid) == session]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


@pytest.mark.parametrize(("dataset", "error"), [("range(8)", "KeyboardInterrupt"), ("Streamed()", "OSError")])
def test_the_interpreter_ends_after_workers_could_not_all_start(dataset: str, error: str) -> None:
    script = f"""
import multiprocessing.process, time
import mtf
from torch.utils.data import DataLoader, IterableDataset

class Streamed(IterableDataset):
    def __iter__(self): return iter(range(8))

def start(process, begin=multiprocessing.process.BaseProcess.start, started=[]):
    started.append(process)
    if len(started) == 2:
        time.sleep(1)  # the first has begun to ignore signals
        raise {error}("no more processes")
    begin(process)

multiprocessing.process.BaseProcess.start = start
config = mtf.MultiDataLoaderConfig(epoch_length_policy="FIXED_NUM_STEPS", steps_per_epoch=2)
loader = mtf.MultiLoader([DataLoader({dataset}, num_workers=2)], config)
try:
    list(loader)
except (KeyboardInterrupt, mtf.SourceError) as raised:
    print(raised)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no more processes" in done.stdout
