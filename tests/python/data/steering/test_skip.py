"""Batches that are left out without being read, in a loop of one's own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

import mtf
from mtf.errors import ConfigError


class Watched(Dataset[int]):
    """Numbers, and which were read."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


class Lines:
    """An iterable without a length."""

    def __iter__(self) -> Any:
        return iter(range(7))


def multi(*, unknown: bool = False, watched: Watched | None = None) -> mtf.MultiLoader:
    blend = mtf.Blend({"x": np.arange(50), "y": np.arange(100, 120)}, weights=[2, 1], global_batch_size=4)
    loaders: dict[str, Any] = {
        "rows": mtf.ArrayLoader(np.arange(31), batch_size=3, shuffle=True),
        "map": DataLoader(watched or Watched(23), batch_size=2, shuffle=True),
        "blend": blend,
    }
    if unknown:
        loaders["lines"] = Lines()
    config = mtf.MultiDataLoaderConfig(
        sampling_strategy="weighted", weighted_order="shuffled", epoch_length_policy="fixed_num_steps",
        steps_per_epoch=70, dataloader_weights=[1.0] * len(loaders), prefetch_workers=0,
    )  # fmt: skip
    return mtf.MultiLoader(loaders, config, seed=3)


def plain(batches: Any) -> list[Any]:
    return [(b.name, b.step, b.pass_, b.batch, np.asarray(b.data).tolist()) for b in batches]


@pytest.mark.filterwarnings("ignore:loader .lines. can.t be opened at a position")  # the resume
@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize(("first", "num"), [(0, 5), (7, 40), (30, 1), (11, 0), (60, 30)])
def test_the_rest_is_what_it_would_have_been(unknown: bool, first: int, num: int) -> None:
    with multi(unknown=unknown) as whole:
        want = plain(itertools.islice(whole, 70)) + plain(itertools.islice(whole, 20))
    with multi(unknown=unknown) as there:
        found = plain(itertools.islice(there, first))
        assert there.skip(num) == min(num, 70 - first)
        state = there.state_dict()
        left = max(0, 70 - first - num)
        found += plain(itertools.islice(there, left)) + plain(itertools.islice(there, 20))
    assert found == want[:first] + want[min(first + num, 70) :]
    with multi(unknown=unknown) as resumed:
        resumed.load_state_dict(state)
        assert plain(itertools.islice(resumed, 10)) == found[first : first + min(10, left or 10)]


def test_nothing_that_is_left_out_is_read() -> None:
    with multi() as whole:
        drawn = [(b.name, b.data) for b in whole]
    wanted = [row for name, data in drawn[:10] + drawn[50:] if name == "map" for row in data.tolist()]
    watched = Watched(23)
    with multi(watched=watched) as there:
        list(itertools.islice(there, 10))
        there.skip(40)
        list(there)
    assert watched.read == wanted


def test_an_edit_after_a_skip_holds_from_there() -> None:
    def blend() -> mtf.Blend:
        return mtf.Blend({"x": np.zeros(50), "y": np.ones(50)}, weights=[1, 0], global_batch_size=4, seed=0)

    there = blend()
    with mtf.MultiLoader(there) as one:
        next(iter(one))
        one.skip(6)
        there.update_weights([0, 1])
        state = one.state_dict()
        assert next(iter(one)).data.sum() == 4
    assert there.samples(6).source.tolist() == [0] * 4
    assert there.samples(7).source.tolist() == [1] * 4
    with mtf.MultiLoader(blend()) as resumed:
        resumed.load_state_dict(state)
        assert next(iter(resumed)).data.sum() == 4


def test_a_skip_that_is_not_committed_is_taken_back() -> None:
    with multi() as there:
        list(itertools.islice(there, 3))
        there.commit()
        want = plain(itertools.islice(there, 5))
        there.rewind()
        there.skip(9)
        there.rewind()
        assert plain(itertools.islice(there, 5)) == want


@pytest.mark.parametrize("num", [-1, 1.5, True, "3"])
def test_a_number_that_is_none_is_refused(num: Any) -> None:
    with multi() as there, pytest.raises(ConfigError, match=r"num_batches must be (a whole number of )?at least 0"):
        there.skip(num)
