"""Runs that are steered: another mixture at a resume, and updates whose data are left out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainer_tools import Trace, config, loader, model, rows, same_weights, step, trainer
from torch.utils.data import DataLoader, TensorDataset

import mtf
from mtf.errors import ConfigError, StateMismatch

NAMES = ["a", "b"]


def settings(tmp_path: Path | None = None, *, window: int = 1, weights: Any = None, names: Any = None) -> Any:
    mixture = mtf.MultiDataLoaderConfig(
        dataloader_names=names or NAMES, sampling_strategy="weighted", dataloader_weights=weights or [2.0, 1.0],
        weighted_order="shuffled",
    )  # fmt: skip
    options: dict[str, Any] = {}
    if tmp_path is not None:
        options["checkpoint"] = mtf.CheckpointConfig(root_dir=str(tmp_path), save_at_end=True)
    return config(multi=mixture, performance=mtf.PerformanceConfig(gradient_accumulation_steps=window), **options)


def loaders(sizes: tuple[int, int] = (26, 17), batch_size: int = 4) -> dict[str, Any]:
    """Loaders whose corpora grow at their ends."""
    sets = {
        name: TensorDataset(*(part[:size] for part in rows(99, i)))
        for i, (name, size) in enumerate(zip(NAMES, sizes, strict=True))
    }
    return {name: DataLoader(data, batch_size, shuffle=True) for name, data in sets.items()}


def by_hand(batches: list[list[Any]], ranges: list[tuple[int, int]]) -> Any:
    """The weights of a loop that takes windows of ``batches`` but those of ``ranges``."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for update, window in enumerate(batches):
        if any(a <= update < b for a, b in ranges):
            continue
        optimizer.zero_grad()
        for x, y in window:
            (torch.nn.functional.mse_loss(net(x), y) / len(window)).backward()
        optimizer.step()
    return net


def windows_of(trace: Trace, window: int, epoch_length: int) -> list[list[Any]]:
    """Accumulation windows, which end with an epoch."""
    batches = [batch for _, batch in trace.batches]
    found = []
    for begin in range(0, len(batches), epoch_length):
        epoch = batches[begin : begin + epoch_length]
        found += [epoch[k : k + window] for k in range(0, len(epoch), window)]
    return found


EPOCH = 7 + 5


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("ranges", [[(2, 4)], [(0, 1)], [(1, 6)], [(1, 2), (4, 5)], [(3, 4), (4, 8)]])
def test_the_data_of_updates_are_left_out(window: int, ranges: list[tuple[int, int]]) -> None:
    trace = Trace()
    trainer(settings(window=window), hooks=trace).fit(loaders(), max_epochs=4)
    windows = windows_of(trace, window, EPOCH)
    there = trainer(settings(window=window))
    there.fit(loaders(), max_epochs=4, skip=ranges)
    assert there.global_step == len(windows)
    assert there.num_batches == 4 * EPOCH
    assert same_weights(there.model, by_hand(windows, ranges))


@pytest.mark.parametrize("stop", [2, 4, 6, 8, 9, 13])
def test_a_resume_keeps_the_ranges(tmp_path: Path, stop: int) -> None:
    ranges = [(3, 7), (9, 13)]
    whole = trainer(settings())
    whole.fit(loaders(), max_steps=20, skip=ranges)
    first = trainer(settings(tmp_path))
    first.fit(loaders(), max_steps=stop, skip=ranges)
    assert first.global_step == stop
    for again in (None, ranges):
        resumed = trainer(settings(tmp_path / "no saves"))
        path = tmp_path / f"step-{stop:08d}"
        resumed.fit(loaders(), max_steps=20, resume_from=str(path), skip=again)
        assert resumed.get_state() == whole.get_state()


def test_update_numbers_mean_the_same_data_in_several_calls_of_fit(caplog: pytest.LogCaptureFixture) -> None:
    whole = trainer(settings())
    whole.fit(loaders(), max_steps=20, skip=[(3, 7), (9, 13)])
    parts, data = trainer(settings()), loaders()
    caplog.set_level(logging.INFO, "mtf")
    parts.fit(data, max_steps=5, skip=[(3, 7)])
    parts.fit(data, max_steps=20, skip=[(9, 13)])
    assert parts.get_state() == whole.get_state()
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == [
        "left out the data of updates 3 to 4: batches 3 to 4 of epoch 0",
        "left out the data of updates 5 to 6: batches 5 to 6 of epoch 0",
        "left out the data of updates 9 to 11: batches 9 to 11 of epoch 0",
        "left out the data of updates 12 to 12: batches 0 to 0 of epoch 1",
    ]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(5, 3)], r"skip\[0\] must end after it begins, but is \(5, 3\)"),
        ([(4, 4)], r"skip\[0\] must end after it begins"),
        ([(1, 5), (4, 8)], r"the ranges \(1, 5\) and \(4, 8\) overlap"),
        ([(-1, 5)], r"skip\[0\] must have whole numbers of updates of at least 0"),
        ([(1.0, 5)], r"skip\[0\] must have whole numbers"),
        ([7], r"skip\[0\] must be a pair"),
        ("3-5", "skip must be a list of ranges"),
        ((3, 5), r"skip\[0\] must be a pair"),
    ],
)
def test_ranges_that_cannot_be_are_refused_before_any_work(ranges: Any, message: str) -> None:
    there = trainer(settings())
    with pytest.raises(ConfigError, match=message):
        there.fit(loaders(), max_steps=3, skip=ranges)
    assert there.global_step == 0


def test_ranges_that_are_passed_or_overlap_known_ones_are_refused() -> None:
    there, data = trainer(settings()), loaders()
    there.fit(data, max_steps=6, skip=[(8, 10)])
    with pytest.raises(ConfigError, match=r"\(4, 7\) begins before update 6, where the run stands"):
        there.fit(data, max_steps=12, skip=[(4, 7)])
    with pytest.raises(ConfigError, match=r"\(9, 12\) overlaps \(8, 10\), which the run leaves out already"):
        there.fit(data, max_steps=12, skip=[(9, 12)])
    there.fit(data, max_steps=12, skip=[(8, 10)])
    assert there.global_step == 12


def saved(tmp_path: Path, steps: int = 5) -> tuple[str, list[Any]]:
    trace = Trace()
    trainer(settings(tmp_path), hooks=trace).fit(loaders(), max_steps=steps)
    return str(tmp_path / f"step-{steps:08d}"), trace.batches


def test_another_mixture_is_refused_with_the_way_out_and_edited_where_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = saved(tmp_path)
    other = settings(tmp_path / "other", weights=[1.0, 5.0])
    refused = trainer(other)
    with pytest.raises(StateMismatch, match="on_other_mixture='edit'"):
        refused.fit(loaders(), max_steps=9, resume_from=path)
    caplog.set_level(logging.INFO, "mtf")
    there = trainer(other)
    there.fit(loaders(), max_steps=9, resume_from=path, on_other_mixture="edit")
    assert there.global_step == 9
    assert there.multi_loader_config.dataloader_weights == [1.0, 5.0]
    assert "another mixture from batch 5 of epoch 0 on: dataloader_weights: a 2, b 1 -> a 1, b 5" in caplog.text
    again = trainer(settings(tmp_path / "again", weights=[1.0, 5.0]))
    again.fit(loaders(), max_steps=12, resume_from=str(tmp_path / "other/step-00000009"))
    assert len(again.multi_loader_manager.state_dict()["edits"]) == 1


def test_nothing_is_lost_in_training_where_batch_size_and_corpus_change(tmp_path: Path) -> None:
    path, first = saved(tmp_path)
    trace = Trace()
    there = trainer(settings(tmp_path / "other"), hooks=trace)
    there.fit(loaders((31, 17), 3), max_epochs=2, resume_from=path, on_other_mixture="edit")
    seen = torch.cat([x for name, (x, _) in first + trace.batches if name == "a"])
    assert seen[:26].sort(0).values.equal(rows(99, 0)[0][:26].sort(0).values)


def test_what_cannot_be_edited_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    there = trainer(settings(tmp_path / "other"))
    before = {name: value.clone() for name, value in there.model.state_dict().items()}
    with pytest.raises(StateMismatch, match="25 samples here and 26 in the state"):
        there.fit(loaders((25, 17)), max_steps=9, resume_from=path, on_other_mixture="edit")
    assert same_weights(there.model, before)
    assert there.global_step == 0
    with pytest.raises(ConfigError, match="on_other_mixture must be 'refuse' or 'edit', but is 'merge'"):
        there.fit(loaders(), max_steps=9, on_other_mixture="merge")  # type: ignore[arg-type]


def test_load_checkpoint_before_fit_is_edited_too(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    there = trainer(settings(tmp_path / "other", weights=[1.0, 5.0]))
    there.load_checkpoint(path)
    there.fit(loaders(), max_steps=9, on_other_mixture="edit")
    assert there.multi_loader_config.dataloader_weights == [1.0, 5.0]


def test_a_loader_is_added_and_one_removed(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    trace = Trace()
    there = trainer(settings(tmp_path / "other", names=["b", "c"]), hooks=trace)
    data = {"b": loaders()["b"], "c": loader(8, 9, 4)}
    there.fit(data, max_steps=12, resume_from=path, on_other_mixture="edit")
    assert {name for name, _ in trace.batches} == {"b", "c"}


def test_the_step_function_is_called_for_no_batch_that_is_left_out() -> None:
    calls: list[int] = []

    def counted(there: Any, batch: Any, *place: Any) -> Any:
        calls.append(there.global_step)
        return step(there, batch, *place)

    trainer(settings(), training_step=counted).fit(loaders(), max_steps=9, skip=[(2, 5)])
    assert calls == [0, 1, 5, 6, 7, 8]
