"""Batches to the device: any nesting of containers, and for CUDA ahead of their use on a stream of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from mtf.data.nested import map_leaves


@runtime_checkable
class Movable(Protocol):
    """Anything that moves itself, such as a packed sequence or a tokenizer's output."""

    def to(self, device: torch.device) -> Any: ...


def move_to(data: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """The batch with its tensors on ``device``.

    Args:
        data: Tensors, dicts, lists, tuples, named tuples and dataclasses in any nesting, and anything with a ``.to``
            method; everything else is passed through. What is there already isn't copied.
        device: Where to.
        non_blocking: Return before copies from pinned memory have ended; the current stream waits for them.
    """
    target = torch.device(device)
    return _map(data, lambda tensor: tensor.to(target, non_blocking=non_blocking), lambda other: other.to(target))


class DeviceMover:
    """Starts copies before their batches are needed.

    On CUDA a copy runs on a side stream, from pinned memory, while the current stream computes; elsewhere a batch is
    moved when it is waited for. One thread sends and waits.
    """

    def __init__(self, device: torch.device | str, *, pin_memory: bool | None = None) -> None:
        """Sends to ``device``.

        Args:
            device: Where to.
            pin_memory: Copy what isn't there into pinned memory first; without it such a copy isn't ahead of anything.
                None: where CUDA is used.
        """
        self.device = torch.device(device)
        self._is_cuda = self.device.type == "cuda"
        self._pins = self._is_cuda if pin_memory is None else pin_memory and self._is_cuda
        self._stream: torch.cuda.Stream | None = torch.cuda.Stream(self.device) if self._is_cuda else None
        self._copying: deque[tuple[torch.cuda.Event, Any]] = deque()

    def send(self, data: Any) -> Transfer:
        """Starts the copy of a batch, in the order of the calls. Don't change ``data`` before it is waited for."""
        if self._stream is None:
            return Transfer(data, self.device, None, [])
        # Host memory lives until its copy has ended, wherever it was allocated: some allocators don't know the stream.
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        moved: list[torch.Tensor] = []
        hosts: list[torch.Tensor] = []

        def start(tensor: torch.Tensor) -> torch.Tensor:
            host = tensor
            if self._pins and tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_pinned():
                host = tensor.pin_memory()
            there = host.to(self.device, non_blocking=True)
            if there is not tensor:
                hosts.append(host)
                moved.append(there)
            return there

        with torch.cuda.stream(self._stream):
            data = _map(data, start, lambda other: other)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._copying.append((event, hosts))
        return Transfer(data, self.device, event, moved)


class Transfer:
    """A batch on its way to the device."""

    __slots__ = ("_data", "_device", "_event", "_moved")

    def __init__(
        self, data: Any, device: torch.device, event: torch.cuda.Event | None, moved: list[torch.Tensor]
    ) -> None:
        """``moved`` are the tensors that ``event`` completes; without an event nothing has begun."""
        self._data = data
        self._device = device
        self._event = event
        self._moved = moved

    def wait(self) -> Any:
        """The batch on the device, ready for the current stream; the host doesn't wait for a copy."""
        if self._event is None:
            return move_to(self._data, self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_event(self._event)
        for tensor in self._moved:
            # Its memory belongs to the side stream, which may use it again only after the current one is done with it.
            tensor.record_stream(current)
        return _map(self._data, lambda tensor: tensor, lambda other: other.to(self._device))


def device_prefetch(
    batches: Iterable[Any], device: torch.device | str, *, depth: int = 1, pin_memory: bool | None = None
) -> Iterator[Any]:
    """The batches on ``device``, copied up to ``depth`` batches ahead where that is CUDA.

    Args:
        batches: What ``move_to`` can move.
        device: Where to.
        depth: Batches on their way while one is in use. Elsewhere than on CUDA none is.
        pin_memory: As for ``DeviceMover``.
    """
    mover = DeviceMover(device, pin_memory=pin_memory)
    ahead = depth if mover.device.type == "cuda" else 0
    transfers: deque[Transfer] = deque()
    for data in batches:
        transfers.append(mover.send(data))
        if len(transfers) > ahead:
            yield transfers.popleft().wait()
    while transfers:
        yield transfers.popleft().wait()


def mover_to(
    device: torch.device | str | None, pin_memory: bool | None, device_prefetch: bool
) -> Callable[[Any], Any] | None:
    """What puts a batch on ``device``, ahead of its use where that is CUDA; None for no device."""
    if device is None:
        return None
    mover = DeviceMover(device, pin_memory=pin_memory)
    if mover.device.type == "cpu" or not device_prefetch:
        return lambda data: move_to(data, mover.device)
    return lambda data: mover.send(data).wait()


def _map(data: Any, on_tensor: Callable[[torch.Tensor], Any], on_other: Callable[[Movable], Any]) -> Any:
    """The same nesting with each tensor and each other movable object replaced."""

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return on_tensor(value)
        return on_other(value) if _moves_itself(value) else value

    return move(data) if isinstance(data, torch.Tensor) else map_leaves(move, data, _moves_itself)


def _moves_itself(value: Any) -> bool:
    return isinstance(value, Movable) and not isinstance(value, type)
