"""Batches and weights don't depend on how Python starts worker processes. From 3.14 on, `forkserver` is the default."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

METHODS = ("fork", "forkserver")
SCRIPT = '''
import hashlib, multiprocessing, os, random, signal, sys

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import mtf


class Noisy(Dataset):
    """Rows with noise from each of the global generators; the id of the process that made them is told apart."""

    def __init__(self, size, deadly=None):
        self.size, self.deadly = size, deadly

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.deadly and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = torch.rand(2).tolist() + [random.random(), float(np.random.rand())]
        return torch.tensor([float(index), *noise])


def loaders(num_workers):
    settings = dict(batch_size=4, shuffle=True, num_workers=num_workers)
    persistent = DataLoader(Noisy(8), persistent_workers=num_workers > 0, **settings)
    return {"a": DataLoader(Noisy(16), **settings), "b": persistent}


def step(trainer, batch, *_):
    return trainer.model(batch).square().mean()


def train(num_workers, shared_workers=None):
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 1)
    root_dir = f"runs-{num_workers}-{shared_workers}"
    config = mtf.TrainerConfig(
        multi=mtf.MultiDataLoaderConfig(shared_workers=shared_workers),
        checkpoint=mtf.CheckpointConfig(root_dir=root_dir, asynchronous=True, save_at_end=True),
        logging=mtf.LoggingConfig(logger_type="none", progress_bar=False),
        seed=3,
    )
    trainer = mtf.Trainer(config, model, torch.optim.Adam(model.parameters(), lr=0.01), training_step=step)
    trainer.fit(loaders(num_workers), max_steps=9)
    return hashlib.sha256(model.weight.detach().numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    print(train(0), train(1), train(1, shared_workers=1))
    print(mtf.check_source(loaders(1)["a"]).ok)
    try:
        with mtf.MultiLoader({"deadly": DataLoader(Noisy(8, deadly=5), batch_size=2, num_workers=1)}) as batches:
            list(batches)
    except mtf.SourceError as error:
        print("killed by SIGKILL" in str(error), "deadly" in str(error))
'''


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the script prints under each start method."""
    found = {}
    for method in METHODS:
        folder = tmp_path_factory.mktemp(method)
        (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        # Without -W error, under which forkserver can't import the script ahead: each worker would import torch anew.
        command = [sys.executable, "script.py", method]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, f"{method}: {done.stderr}"
        assert done.stderr == "", method
        found[method] = done.stdout
    return found


@pytest.mark.timeout(300)
def test_weights_do_not_depend_on_the_start_method(printed: dict[str, str]) -> None:
    assert printed["fork"] == printed["forkserver"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method", METHODS)
def test_workers_give_the_same_and_a_dead_one_is_an_error(printed: dict[str, str], method: str) -> None:
    weights, exact, error = printed[method].splitlines()
    alone, workers, shared = weights.split()
    assert alone == workers == shared
    assert exact == "True"
    assert error == "True True"
