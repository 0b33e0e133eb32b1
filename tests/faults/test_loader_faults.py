"""A loader that breaks in the middle of training is named; mended, the run continues as if nothing had happened."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken_loaders as broken
import pytest
import torch
import trainer_tools as tools
from broken_loaders import Batches
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import mtf
from mtf.data.workers import fetch_timeout

MAX_STEPS = 14  # both passes of the broken loader meet the bad row, in one window or in two
HANGS_FOR_S = 3.0  # longer than a busy machine takes to start workers


class Trace(mtf.TrainerHooks):
    """Which rows of the broken loader each batch had."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[float]]] = []

    def on_train_batch_start(self, trainer: Any, batch: Any, batch_idx: int, loader: int, name: str) -> None:
        self.batches.append((name, batch[:, 0].tolist() if name == "broken" else []))


def step(trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str) -> Any:
    rows = batch / 14 if dataloader_name == "broken" else batch[0]
    return trainer.model(rows).square().mean()


def make(kind: str, window: int = 1, fetch_timeout_s: float | None = None) -> mtf.Trainer:
    settings = tools.config(
        ["broken", "well"],
        multi=mtf.MultiDataLoaderConfig(
            dataloader_names=["broken", "well"],
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
            steps_per_epoch=9,
            shared_workers=2 if kind == "shared workers" else None,
        ),
        performance=mtf.PerformanceConfig(gradient_accumulation_steps=window, fetch_timeout_s=fetch_timeout_s),
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    return tools.trainer(settings, model=model, training_step=step)


def given(kind: str, fault: broken.Fault) -> dict[str, Any]:
    num_workers = 2 if kind == "shared workers" else 0
    return {"broken": broken.KINDS[kind](fault), "well": tools.loader(20, 2, 2, shuffle=True, num_workers=num_workers)}


CASES = [
    (kind, fault) for kind in broken.KINDS for fault in broken.FAULTS if fault != "killed" or kind in broken.HAS_WORKERS
]
KINDS_OF_ERRORS = {"shape": RuntimeError, "hangs": mtf.errors.FetchTimeout}
TWICE = ("raises", "none")  # also in windows of two batches


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For each kind of loader and window: the trace and the state of a run in which nothing breaks; made once."""
    nowhere = broken.Fault("raises", tmp_path_factory.mktemp("none") / "off")
    known: dict[tuple[str, int], tuple[list[tuple[str, list[float]]], mtf.TrainerState]] = {}

    def run(kind: str, window: int) -> tuple[list[tuple[str, list[float]]], mtf.TrainerState]:
        if (kind, window) not in known:
            trainer, trace = make(kind, window), Trace()
            trainer.add_hook(trace)
            trainer.fit(given(kind, nowhere), max_steps=MAX_STEPS // window)
            known[kind, window] = trace.batches, trainer.get_state()
            trainer.multi_loader_manager.close()
        return known[kind, window]

    return run


@pytest.fixture(autouse=True)
def files_that_torch_leaves_open() -> Iterator[None]:
    """After a failed fetch torch opens files to see whether there are too many; they live as long as the traceback."""
    yield
    gc.collect()


@pytest.mark.filterwarnings(
    "ignore:.*are produced again", "ignore:.set_vital", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    ("kind", "fault", "window"),
    [(*case, window) for case in CASES for window in (1, 2) if window == 1 or case[1] in TWICE],
)
def test_it_is_named_and_mended_the_run_goes_on(
    kind: str, fault: str, window: int, tmp_path: Path, undisturbed: Any
) -> None:
    trace, expected = undisturbed(kind, window)
    switch = tmp_path / "switch"
    switch.touch()
    loaders = given(kind, broken.Fault(fault, switch))
    trainer = make(kind, window, HANGS_FOR_S if fault == "hangs" else None)
    before = time.monotonic()
    with pytest.raises(KINDS_OF_ERRORS.get(fault, mtf.SourceError)) as caught:
        trainer.fit(loaders, max_steps=MAX_STEPS // window)
    assert time.monotonic() - before < 40
    # Where it is in the schedule.
    at = next(i for i, (name, rows) in enumerate(trace) if name == "broken" and broken.BAD in rows)
    batch = sum(name == "broken" for name, _ in trace[:at])
    place = f"loader 'broken', pass 0, batch {batch} (epoch 0, step {at})"
    shown = "".join(traceback.format_exception(caught.value))
    # A killed worker may have had a batch of later.
    assert (re.search(r"loader '\w+', pass 0, batch \d+ \(epoch 0, step \d+\)", shown) if fault == "killed"
            else place in shown), shown  # fmt: skip
    words = {"raises": "row 7 is missing", "none": "gave None", "shape": "shapes cannot be multiplied",
             "hangs": "broken_loaders.py" if kind not in broken.HAS_WORKERS else "thread MainThread",
             "killed": "was killed by SIGKILL"}  # fmt: skip
    assert re.search(words[fault], shown), shown
    if fault == "raises":
        assert "in at" in shown, "the original traceback"
    # The state is that of the last update before it, and continues in this trainer and in another one.
    state = trainer.get_state()
    assert trainer.num_batches % window == 0
    assert trainer.num_batches == trainer.global_step * window
    assert fault == "killed" or trainer.num_batches == at - at % window
    switch.unlink()
    trainer.fit(loaders, max_steps=MAX_STEPS // window)
    assert trainer.get_state().diff(expected) == []
    trainer.multi_loader_manager.close()
    fresh = make(kind, window)
    fresh.load_state(state)
    fresh.fit(given(kind, broken.Fault(fault, switch)), max_steps=MAX_STEPS // window)
    assert fresh.get_state().diff(expected) == []
    fresh.multi_loader_manager.close()


def test_a_workers_death_does_not_tear_an_update_apart(tmp_path: Path) -> None:
    """torch would raise it from a signal handler, wherever the main thread is."""
    died_at: list[int] = []

    class Kill(mtf.TrainerHooks):
        def on_before_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            if trainer.global_step == 2:
                for worker in multiprocessing.active_children():
                    os.kill(worker.pid or 0, signal.SIGKILL)
                time.sleep(0.3)
                died_at.append(trainer.global_step)

        def on_after_optimizer_step(self, trainer: Any, optimizer_idx: int) -> None:
            if trainer.global_step == 2:
                died_at.append(trainer.global_step)

    trainer = make("workers")
    trainer.add_hook(Kill())
    with pytest.raises(mtf.SourceError, match=r"(was|is) killed by"):
        trainer.fit(given("workers", broken.Fault("raises", tmp_path / "off")), max_steps=MAX_STEPS)
    assert died_at == [2, 2]
    assert trainer.global_step >= 3
    trainer.multi_loader_manager.close()


VALIDATION = {
    "in the process": lambda fault: DataLoader(broken.Rows(fault), 3, collate_fn=fault.collate),
    "workers": lambda fault: DataLoader(broken.Rows(fault), 3, collate_fn=fault.collate, num_workers=1),
    "persistent workers": lambda fault: DataLoader(
        broken.Rows(fault), 3, collate_fn=fault.collate, num_workers=1, persistent_workers=True
    ),
    "threads": lambda fault: mtf.ThreadLoader(broken.Rows(fault), 3, collate_fn=fault.collate),
    "own iterable": Batches,
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "fault"),
    [(k, f) for k in VALIDATION for f in ("raises", "none", "hangs", "killed") if f != "killed" or "worker" in k],
)
def test_a_validation_loader_is_named_and_mended_the_run_goes_on(kind: str, fault: str, tmp_path: Path) -> None:
    def run(loader: Any, limit_s: float | None = None) -> tuple[mtf.Trainer, Any]:
        trainer = make("in the process", fetch_timeout_s=limit_s)
        trainer.set_validation_step(lambda trainer, batch, *_: {"loss": trainer.model(batch / 14).square().mean()})
        return trainer, {"rows": loader}

    nowhere = broken.Fault("raises", tmp_path / "off")
    whole, validation = run(VALIDATION[kind](nowhere))
    whole.fit(given("in the process", nowhere), validation, max_epochs=2)
    switch = tmp_path / "switch"
    switch.touch()
    trainer, validation = run(VALIDATION[kind](broken.Fault(fault, switch)), HANGS_FOR_S if fault == "hangs" else None)
    train = given("in the process", nowhere)
    words = {"raises": "row 7 is missing", "none": "gave None", "hangs": "no batch within", "killed": "SIGKILL"}[fault]
    expected = mtf.errors.FetchTimeout if fault == "hangs" else mtf.SourceError
    with pytest.raises(expected, match=rf"(?s)validation loader 'rows', batch [12]: .*{words}"):
        trainer.fit(train, validation, max_epochs=2)
    switch.unlink()
    trainer.fit(train, validation, max_epochs=2)
    assert trainer.get_state().diff(whole.get_state()) == []
    trainer.multi_loader_manager.close()
    whole.multi_loader_manager.close()


class Counting(Dataset[Tensor]):
    """Rows that take a while, and how many were read."""

    num_read = 0

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.num_read += 1
        time.sleep(0.005)
        return torch.zeros(3), torch.zeros(1)


def test_the_other_loaders_threads_stop_within_a_second(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    switch.touch()
    rows, before = Counting(), len(os.listdir("/proc/self/task"))
    loaders = {
        "broken": broken.KINDS["in the process"](broken.Fault("raises", switch)),
        "well": mtf.ThreadLoader(rows, 2, num_threads=3),
    }
    trainer = make("threads")
    with pytest.raises(mtf.SourceError, match="row 7 is missing"):
        trainer.fit(loaders, max_steps=MAX_STEPS)
    time.sleep(1.0)
    num_read = rows.num_read
    time.sleep(0.3)
    assert rows.num_read == num_read
    trainer.multi_loader_manager.close()
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Hanging(Batches):
    """Batches of which one hangs for seconds when told to."""

    seconds = 0.0

    def batch(self, indices: range) -> Any:
        time.sleep(self.seconds)
        return super().batch(indices)


def limited(tmp_path: Path) -> tuple[Hanging, Iterator[Any], mtf.MultiLoader]:
    """A loader, batches of a mixture of it alone, whose fetches are limited, and the mixture; one has been taken."""
    loader = Hanging(broken.Fault("raises", tmp_path / "off"))
    mixture = mtf.MultiLoader({"a": loader}, fetch_timeout_s=0.3)
    batches = iter(mixture)
    next(batches)
    return loader, batches, mixture


@pytest.mark.parametrize("closes_first", [False, True])
def test_each_of_several_mixtures_keeps_its_limit(tmp_path: Path, closes_first: bool) -> None:
    """Also while others come and go; then what was in charge of the signal before is so again."""
    before = signal.getsignal(fetch_timeout._SIGNAL)
    first, second, third = limited(tmp_path), limited(tmp_path), limited(tmp_path)
    gone, rest = (first, (second, third)) if closes_first else (third, (first, second))
    gone[2].close()
    for loader, batches, mixture in rest:
        loader.seconds = 10.0
        with pytest.raises(mtf.errors.FetchTimeout, match=r"loader 'a', pass 0, batch 1"):
            next(batches)
        mixture.close()
    assert signal.getsignal(fetch_timeout._SIGNAL) == before


def test_a_fetch_in_another_thread_is_not_limited_and_disturbs_nobody(tmp_path: Path) -> None:
    loader, batches, mixture = limited(tmp_path)
    found: list[Any] = []

    def go_on() -> None:
        try:
            found.append(next(batches))
            mixture.close()
        except BaseException as error:  # whatever it is, the test looks at it
            found.append(error)

    loader.seconds = 1.0
    thread = threading.Thread(target=go_on)
    thread.start()
    while thread.is_alive():  # an exception inside join would end it for good
        time.sleep(0.01)
    assert [batch.batch for batch in found] == [1]


def test_a_generator_that_has_raised_is_over() -> None:
    """It would look as if its pass had ended."""

    def batches() -> Iterator[Any]:
        yield broken.row(1)[None]
        raise OSError("the line is down")

    trainer = make("generator")
    loaders = {"broken": batches(), "well": tools.loader(20, 2, 2)}
    with pytest.raises(mtf.SourceError, match="the line is down"):
        trainer.fit(loaders, max_steps=5)
    with pytest.raises(mtf.ConfigError, match="loader 'broken' is a generator that has raised, and so it is over"):
        trainer.fit(loaders, max_steps=5)
