"""``verify_deterministic_resume``: sources that would not go on as they were are named before an update is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
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


def test_another_content_and_a_shorter_pass_are_noticed() -> None:
    settings = config(fault_tolerance=VERIFY)
    run = trainer(settings)
    run.fit([[rows(4, 1)], Iterable()], max_steps=4)
    state = run.get_state()
    other = trainer(settings)
    other.load_state(state)
    with pytest.raises(mtf.SourceError, match="loader 'dl0', pass 1, batch 0: its content is another: SHA-256 was"):
        other.fit([[rows(4, 2)], Iterable()], max_steps=5)


def test_it_costs_nothing_and_keeps_nothing_by_default() -> None:
    run = trainer()
    run.fit([loader(8, 1)])
    assert run.get_state().tree["multi"]["last_batches"] == {}
    with pytest.raises(mtf.ConfigError, match="needs a MultiLoader with remember_batches=True"):
        run.multi_loader_manager.check_last_batches()
