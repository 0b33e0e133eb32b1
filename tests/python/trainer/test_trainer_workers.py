"""Worker processes of training and validation loaders end with their pass, or with ``fit``, and don't pile up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from trainer_tools import config, trainer

import mtf


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        return torch.full((3,), float(index)), torch.zeros(1)


class Streamed(IterableDataset[Any]):
    def __len__(self) -> int:
        return 24

    def __iter__(self) -> Iterator[Any]:
        return iter([Rows()[index] for index in range(24)])


class OwnIter(DataLoader[Any]):
    def __iter__(self) -> Any:
        yield from super().__iter__()


def make(kind: str) -> tuple[Any, dict[str, Any]]:
    persistent = {"num_workers": 1, "persistent_workers": True}
    if kind == "shared":
        return DataLoader(Rows(), 4, num_workers=1), {"shared_workers": 1}
    if kind == "map":
        return DataLoader(Rows(), 4, shuffle=True, num_workers=1), {}
    if kind == "persistent":
        return DataLoader(Rows(), 4, shuffle=True, **persistent), {}
    if kind == "own_iter":
        return OwnIter(Rows(), 4, **persistent), {}
    if kind == "stateful":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(Rows(), 4, num_workers=1), {}
    return DataLoader(Streamed(), 4, num_workers=1, persistent_workers=kind == "stream_persistent"), {}


def children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def make_trainer(**options: Any) -> mtf.Trainer:
    return trainer(config(multi=mtf.MultiDataLoaderConfig(**options)))


KINDS = ["map", "persistent", "shared", "own_iter", "stream", "stream_persistent"]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("kind", [*KINDS, "stateful"])
def test_no_process_is_left_after_fit_over_whole_passes(kind: str) -> None:
    if kind == "stateful":
        pytest.importorskip("torchdata")
    before, kept = children(), []
    loader, options = make(kind)
    for _ in range(3):
        kept.append(make_trainer(**options))
        kept[-1].fit(loader, max_epochs=2)
        assert children() <= before


@pytest.mark.parametrize("kind", ["map", "persistent", "shared"])
def test_no_process_is_left_after_fit_inside_a_pass_which_continues_exactly(kind: str) -> None:
    before = children()
    loader, options = make(kind)
    whole, parts = make_trainer(**options), make_trainer(**options)
    whole.fit(loader, max_steps=16)
    loader, options = make(kind)
    for steps in (1, 3, 6, 7, 13, 16):
        parts.fit(loader, max_steps=steps)
        assert children() <= before
    assert parts.get_state() == whole.get_state()


@pytest.mark.parametrize("kind", ["own_iter", "stream_persistent"])
def test_trainings_in_a_loop_that_stop_inside_a_pass_keep_one_set_at_most(kind: str) -> None:
    """Of a loader without a position, whose batches would have to be produced again, for a ``fit`` that may follow."""
    before = children()
    for _ in range(4):
        loader, options = make(kind)
        one = make_trainer(**options)
        one.fit(loader, max_steps=4)
        assert len(children() - before) <= 1
    one.fit(loader, max_steps=5)  # continues without producing batches again, of which there would be a warning
    one.multi_loader_manager.close()


@pytest.mark.parametrize("kind", ["own_iter", "stream"])
def test_workers_that_stay_inside_a_pass_are_named_and_can_be_ended_and_the_next_fit_continues_exactly(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mtf")
    before = children()
    whole = make_trainer()
    whole.fit(make(kind)[0], max_steps=9)
    whole.multi_loader_manager.close()
    (text,) = [record.message for record in caplog.records if "worker processes" in record.message]
    assert "the worker processes of 'dl0' stay after fit" in text
    caplog.clear()
    loader, _ = make(kind)
    parts = make_trainer()
    parts.fit(loader, max_steps=4)
    assert parts.multi_loader_manager.end_workers() == ["dl0"]
    assert parts.multi_loader_manager.end_workers(replay=True) == []
    assert children() <= before
    with pytest.warns(UserWarning, match="the 4 batches before it are produced again"):
        parts.fit(loader, max_steps=9)
    assert parts.get_state() == whole.get_state()
    parts.multi_loader_manager.end_workers(replay=True)
    assert children() <= before


def test_persistent_workers_false_frees_them_at_the_end_of_the_pass() -> None:
    before = children()
    seen: list[tuple[str, int]] = []

    class Look(mtf.TrainerHooks):
        def on_train_batch_end(self, trainer: Any, batch: Any, batch_idx: int, index: int, name: str, _: Any) -> None:
            seen.append((name, len(children() - before)))

    first, second = (DataLoader(Rows(), 4, num_workers=1) for _ in range(2))
    one = make_trainer(sampling_strategy="SEQUENTIAL", dataloader_names=["first", "second"])
    one.add_hook(Look())
    one.fit({"first": first, "second": second}, max_epochs=1)
    assert max(number for _, number in seen) <= 2
    assert seen[6:] == [("second", 1)] * 5 + [("second", 0)]  # those of the first are gone
    assert children() <= before


def test_persistent_workers_of_validation_loaders_end_with_fit_but_not_those_of_the_user() -> None:
    before = children()
    ours, theirs = (DataLoader(Rows(), 4, num_workers=1, persistent_workers=True) for _ in range(2))
    list(theirs)
    users = children() - before
    assert len(users) == 1
    during: list[int] = []

    class Look(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            during.append(len(children() - before))

    one = make_trainer()
    one.add_hook(Look())
    one.fit(DataLoader(Rows(), 4), {"ours": ours, "theirs": theirs}, max_epochs=2)
    assert during == [2, 2]
    assert children() - before == users
    assert len(list(theirs)) == 6
    del theirs
