"""Streams of batches: taking a number of them, choosing that number, and joining streams."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def take(stream: Iterator[Any], count: int) -> Callable[[], None]:
    """A function that takes `count` batches from a stream and does nothing with them."""

    def run() -> None:
        for _ in itertools.islice(stream, count):
            pass

    return run


def again(passes: Iterable[Any]) -> Iterator[Any]:
    """One pass after the other, without end."""
    while True:
        yield from passes


def round_robin(streams: list[Iterator[Any]]) -> Iterator[Any]:
    """One of each stream in turn."""
    return (next(stream) for stream in itertools.cycle(streams))


def count_for(stream: Iterator[Any], seconds: float, most: int) -> int:
    """How many batches come in about so many seconds, at least 4; reads some of them to find out."""
    count = 4
    while count < most:
        started = time.perf_counter()
        take(stream, count)()
        needed = time.perf_counter() - started
        if needed > seconds / 4:
            return min(most, max(4, int(count * seconds / needed)))
        count *= 2
    return most


def time_per_item(run: Callable[[], object], items: int, rounds: int = 3) -> float:
    """Nanoseconds per item of the best round, after one that isn't counted."""
    times = []
    for _ in range(rounds + 1):
        begin = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begin)
    return min(times[1:]) / items
