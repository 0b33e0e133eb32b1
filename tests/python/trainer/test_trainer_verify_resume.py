"""``verify_deterministic_resume``: sources that would not go on as they were are named before an update is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from trainer_tools import config, loader, rows, trainer

import mtf

pytestmark = pytest.mark.filterwarnings("ignore:loader '(c|dl1)' can't be opened at a position")

VERIFY = mtf.FaultToleranceConfig(verify_deterministic_resume=True)


class Unpredictable(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise that no seed reaches."""

    def __init__(self, num: int) -> None:
        self._x, self._y = rows(num, 3)

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self._x[i] + os.urandom(1)[0] / 7 + int.from_bytes(os.urandom(4), "big") / 2**32, self._y[i]


class Augmented(Unpredictable):
    """Samples with noise from torch's generator, which each batch finds seeded."""

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self._x[i] + torch.randn(3), self._y[i]


class Iterable:
    """Batches that can only be produced from the start."""

    def __iter__(self) -> Iterator[Any]:
        x, y = rows(16, 4)
        return iter(list(zip(x.split(4), y.split(4), strict=True)))

    def __len__(self) -> int:
        return 4


class Stateful:
    """Batches in another order in each pass, with a state of its own."""

    def __init__(self) -> None:
        self._passes, self._given, self._is_resumed = 0, 0, False

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        if not self._is_resumed:
            self._passes, self._given = self._passes + 1, 0
        self._is_resumed = False
        order = torch.randperm(16, generator=torch.Generator().manual_seed(self._passes)).split(4)
        x, y = rows(16, 6)
        while self._given < 4:
            self._given += 1
            yield x[order[self._given - 1]], y[order[self._given - 1]]

    def state_dict(self) -> dict[str, int]:
        return {"passes": self._passes, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._passes, self._given, self._is_resumed = state["passes"], state["given"], True


def sources(bad: bool) -> dict[str, Any]:
    return {
        "a": loader(16, 1, shuffle=True),
        "b": DataLoader(Unpredictable(16) if bad else Augmented(16), batch_size=4),
        "c": Iterable(),
        "d": mtf.ArrayLoader(rows(16, 5), batch_size=4, shuffle=True),
        "e": Stateful(),
    }


@pytest.mark.parametrize("cut", [1, 2, 7, 20, 23])
def test_a_source_that_is_not_deterministic_is_named(tmp_path: Path, cut: int) -> None:
    path = str(tmp_path / "one")
    settings = config(fault_tolerance=VERIFY)
    for bad in (False, True):
        run = trainer(settings)
        run.fit(sources(bad), max_steps=cut)
        run.save_checkpoint(path)
        fresh = trainer(settings)
        fresh.load_checkpoint(path)
        if bad and cut > 1:
            with pytest.raises(
                mtf.SourceError, match=r"loader 'b', pass \d, batch \d: its content is another"
            ) as caught:
                fresh.fit(sources(bad), max_steps=25)
            assert all(f"loader {name!r}" not in str(caught.value) for name in "acde")
            assert fresh.global_step == cut, "no update was made"
            continue
        fresh.fit(sources(bad), max_steps=25)
        if not bad:
            run.fit(sources(bad), max_steps=25)
            assert fresh.get_state().diff(run.get_state()) == []


def test_another_content_is_noticed() -> None:
    settings = config(fault_tolerance=VERIFY)
    run = trainer(settings)
    run.fit([[rows(4, 1)], Iterable()], max_steps=4)
    state = run.get_state()
    other = trainer(settings)
    other.load_state(state)
    with pytest.raises(mtf.SourceError, match="loader 'dl0', pass 0, batch 0: its content is another: SHA-256 was"):
        other.fit([[rows(4, 2)], Iterable()], max_steps=5)


def test_it_costs_nothing_and_keeps_nothing_by_default() -> None:
    run = trainer()
    run.fit([loader(8, 1)])
    assert run.get_state().tree["multi"]["last_batches"] == {}
    with pytest.raises(mtf.ConfigError, match="needs a MultiLoader with remember_batches=True"):
        run.multi_loader_manager.verify_recent_batches()


class Pairs:
    """Batches of two rows, in order; ``changed`` is the batch that has another content than it should.

    Args:
        num: batches in a pass.
        has_len: whether ``len`` says so.
    """

    def __init__(self, num: int, changed: int | None = None, has_len: bool = True) -> None:
        self.x, self.y = (part[: 2 * num].clone() for part in rows(64, 8))
        if changed is not None:
            self.x[2 * changed + 1, 2] += 2.0**-20
        if has_len:
            self._num = num

    def __len__(self) -> int:
        if not hasattr(self, "_num"):
            raise TypeError("unknown")
        return self._num

    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(self.x.split(2), self.y.split(2), strict=True)))


class StatefulPairs(Pairs):
    """The same with a state of its own."""

    def __init__(self, num: int, changed: int | None = None) -> None:
        super().__init__(num, changed)
        self._given = 0

    def __iter__(self) -> Iterator[Any]:
        while self._given < len(self):
            self._given += 1
            yield self.x[2 * self._given - 2 : 2 * self._given], self.y[2 * self._given - 2 : 2 * self._given]
        self._given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._given = state["given"]


def pairs(kind: str, num: int, changed: int | None = None) -> Any:
    if kind == "stateful":
        return StatefulPairs(num, changed)
    plain = Pairs(num, changed)
    if kind == "iterable":
        return plain
    if kind == "arrays":
        return mtf.ArrayLoader((plain.x, plain.y), batch_size=2)
    return DataLoader(TensorDataset(plain.x, plain.y), batch_size=2)


@pytest.mark.filterwarnings("ignore:.*are produced again", "ignore:loader 'dl0' can't be opened at a position")
@pytest.mark.filterwarnings("ignore:.*the last one before the resume")  # the error says more
@pytest.mark.parametrize("kind", ["torch", "arrays", "iterable", "stateful"])
@pytest.mark.parametrize(("num", "cut"), [(16, 11), (5, 12)])
def test_each_of_the_last_batches_is_compared(kind: str, num: int, cut: int) -> None:
    """After 11 or 12 batches 7 or 8 are remembered; in the second case they reach over the ends of passes."""
    settings = config(
        multi=mtf.MultiDataLoaderConfig(
            epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=20, seed=4
        ),
        fault_tolerance=VERIFY,
    )
    run = trainer(settings)
    run.fit(pairs(kind, num), max_steps=cut)
    state = run.get_state()
    remembered = [(entry["pass"], entry["batch"]) for entry in state["multi"]["last_batches"]["dl0"]]
    assert remembered == [divmod(step, num) for step in range(4, cut)]
    for changed in (*range(num), None):
        other = trainer(settings)
        other.load_state(state)
        first = next((place for place in remembered if place[1] == changed), None)
        if first is None:
            other.fit(pairs(kind, num, changed), max_steps=cut + 1)
            continue
        with pytest.raises(mtf.SourceError, match=rf"loader 'dl0', pass {first[0]}, batch {first[1]}: its content"):
            other.fit(pairs(kind, num, changed), max_steps=cut + 1)
        assert other.global_step == cut, "no update was made"


def test_what_is_remembered_is_bounded() -> None:
    run = trainer(config(fault_tolerance=VERIFY))
    for step in range(1, 30):
        run.fit({"a": loader(16, 1), "e": Stateful()} if step == 1 else run._parts.data.given, max_steps=2 * step)
        for entries in run.get_state()["multi"]["last_batches"].values():
            assert min(step, 5) <= len(entries) <= 8
            assert sum(entry["before"] is not None for entry in entries) <= 2


@pytest.mark.filterwarnings("ignore:.*are produced again", "ignore:loader 'dl0' can't be opened at a position")
def test_a_pass_that_has_become_shorter_is_noticed() -> None:
    settings = config(
        multi=mtf.MultiDataLoaderConfig(epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=20),
        fault_tolerance=VERIFY,
    )
    run = trainer(settings)
    run.fit(Pairs(8, has_len=False), max_steps=6)
    other = trainer(settings)
    other.load_state(run.get_state())
    with pytest.raises(mtf.SourceError, match="loader 'dl0', pass 0, batch 4: the pass now has 4 batches only"):
        other.fit(Pairs(4, has_len=False), max_steps=7)


def test_a_removed_loader_is_not_compared_with_one_that_got_its_name() -> None:
    class Exchange(mtf.TrainerHooks):
        def on_epoch_end(self, trainer: mtf.Trainer, epoch: int) -> None:
            if epoch == 0:
                trainer.remove_dataloader("b")
            if epoch == 1:
                assert list(trainer.get_state()["multi"]["last_batches"]) == ["a"]
                trainer.add_dataloader(new, "b")

    settings, new = config(["a", "b"], fault_tolerance=VERIFY), loader(8, 9)
    run = trainer(settings, hooks=[Exchange()])
    run.fit({"a": loader(8, 1), "b": loader(8, 2)}, max_steps=8)  # epochs of 4, 2 and 4 steps
    other = trainer(settings)
    other.load_state(run.get_state())
    other.fit({"a": loader(8, 1), "b": loader(8, 9)}, max_steps=10)
    run.fit({"a": loader(8, 1), "b": new}, max_steps=10)
    assert other.get_state().diff(run.get_state()) == []


class Longer(Pairs):
    """Gives more batches than ``len`` says."""

    def __len__(self) -> int:
        return 3


@pytest.mark.filterwarnings("ignore:.*are produced again", "ignore:loader 'b' can't be opened at a position")
def test_an_end_that_came_late_is_told_once_also_where_it_is_fetched_again() -> None:
    def given() -> dict[str, Any]:
        return {"a": loader(32, 1), "b": Longer(4)}

    settings = config(["a", "b"], fault_tolerance=VERIFY)
    whole, first, second = (trainer(settings) for _ in range(3))
    for run, max_steps in ((whole, 11), (first, 7)):
        with pytest.warns(UserWarning, match="b: pass 0 went on after 3 batches, where len") as told:
            run.fit(given(), max_steps=max_steps)
        assert len(told) == 1
    second.load_state(first.get_state())
    second.fit(given(), max_steps=11)  # a second warning would be an error
    assert second.get_state().diff(whole.get_state()) == []
