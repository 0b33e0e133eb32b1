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


def count_for(stream: Iterator[Any], seconds: float, least: int, most: int = 100_000) -> int:
    """How many batches come in about so many seconds; reads some of them to find out.

    `least` should be many times what a loader fetches ahead, or a round would find its batches made between the rounds.
    """
    count = least
    while count < most:
        started = time.perf_counter()
        take(stream, count)()
        needed = time.perf_counter() - started
        if needed > seconds / 4:
            return min(most, max(least, int(count * seconds / needed)))
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
