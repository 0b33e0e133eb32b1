"""Batches move to the device whatever they are made of; on CUDA ahead of their use, with right stream semantics."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any

import pytest
import torch

from mtf.data.transfer import DeviceMover, device_prefetch, move_to

Pair = collections.namedtuple("Pair", ["first", "second"])

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    note: str
    computed: Any = dataclasses.field(init=False, default=None)


class Moves:
    def __init__(self, where: str = "nowhere") -> None:
        self.where = where

    def to(self, device: torch.device) -> Moves:
        return Moves(str(device))


def batch() -> dict[str, Any]:
    x = torch.arange(6.0)
    frozen = Frozen(x, "kept")
    object.__setattr__(frozen, "computed", x + 1)
    return {
        "tensor": x,
        "list": [x, (x, Pair(x, None))],
        "ordered": collections.OrderedDict(a=x, b=3),
        "proxy": types.MappingProxyType({"a": x}),
        "dataclass": frozen,
        "packed": torch.nn.utils.rnn.pack_sequence([x, x[:2]]),
        "moves": Moves(),
        "class": Moves,
        "plain": [1, 2.0, "three", b"four", None],
    }


def test_every_container_is_moved() -> None:
    given = batch()
    moved = move_to(given, "meta")
    assert moved["tensor"].device.type == "meta"
    assert isinstance(moved["list"][1][1], Pair)
    assert moved["list"][0].is_meta
    assert moved["list"][1][0].is_meta
    assert moved["list"][1][1].first.is_meta
    assert isinstance(moved["ordered"], collections.OrderedDict)
    assert moved["ordered"]["a"].is_meta
    assert moved["proxy"]["a"].is_meta
    assert isinstance(moved["dataclass"], Frozen)
    assert moved["dataclass"].x.is_meta
    assert moved["dataclass"].computed.is_meta
    assert moved["dataclass"].note == "kept"
    assert moved["packed"].data.is_meta
    assert moved["moves"].where == "meta"
    assert moved["class"] is Moves
    assert moved["plain"] == given["plain"]
    assert given["dataclass"].x.device.type == "cpu", "the batch itself isn't changed"
    assert given["ordered"]["a"].device.type == "cpu"


def test_nothing_is_copied_on_the_cpu() -> None:
    given = batch()
    for moved in (move_to(given, "cpu"), DeviceMover("cpu").send(given).wait()):
        assert moved["tensor"] is given["tensor"]
        assert moved["dataclass"].x is given["tensor"]


def test_on_the_cpu_nothing_is_read_ahead() -> None:
    drawn: list[int] = []

    def batches() -> Any:
        for number in range(5):
            drawn.append(number)
            yield torch.tensor(number)

    for expected, data in enumerate(device_prefetch(batches(), "cpu", depth=2)):
        assert int(data) == expected
        assert len(drawn) == expected + 1


@needs_cuda
@pytest.mark.parametrize("depth", [1, 2])
def test_cuda_batches_are_right_while_the_device_is_busy(depth: int) -> None:
    batches = [{"x": torch.full((1 << 20,), float(k)), "n": k} for k in range(20)]
    weights = torch.randn(2048, 2048, device="cuda")
    for number, data in enumerate(device_prefetch(iter(batches), "cuda", depth=depth)):
        for _ in range(10):
            weights = torch.tanh(weights @ weights)
        assert data["x"].device.type == "cuda"
        total = data["x"].sum()
        del data["x"]  # its memory may be given out again, but not before the sum has been taken
        assert float(total) == float(number) * (1 << 20)


@needs_cuda
def test_cuda_copies_run_on_their_own_stream() -> None:
    mover = DeviceMover("cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # the current stream is busy; a copy on it would wait
    transfer = mover.send(torch.ones(1 << 20))
    assert transfer._event is not None
    transfer._event.synchronize()
    assert not torch.cuda.current_stream().query()
    assert float(transfer.wait().sum()) == float(1 << 20)
