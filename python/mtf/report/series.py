"""Values over updates with bounded memory, whatever a run has logged."""

from __future__ import annotations

import math
from array import array

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 2048


class Series:
    """One metric over updates. Beyond ``MAX_POINTS`` neighbours are averaged; first and last value stay exact.

    Attributes:
        first: the first finite value, None without one.
        last: the last finite value.
        num_values: how many were added.
        num_bad: how many of them are NaN or infinite; these are in no mean and no point.
        total: sum of the finite ones.
        last_update: of the last value.
        lowest: update and value of the smallest finite one, the first of equal ones; None without one.
        highest: likewise of the largest.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.num_values = 0
        self.num_bad = 0
        self.total = 0.0
        self.last_update = 0
        self.lowest: tuple[int, float] | None = None
        self.highest: tuple[int, float] | None = None
        self._updates, self._values = array("d"), array("d")
        self._stride = 1  # values in a point
        self._open: list[tuple[float, float]] = []  # of the point that isn't full yet

    def __repr__(self) -> str:
        return f"Series({self.num_values} values, first {self.first}, last {self.last} at update {self.last_update})"

    @property
    def mean(self) -> float | None:
        """Of the finite values; None without one."""
        num = self.num_values - self.num_bad
        return self.total / num if num else None

    def add(self, update: int, value: float) -> None:
        """Adds a value; updates don't decrease."""
        self.num_values += 1
        self.last_update = update
        if not math.isfinite(value):
            self.num_bad += 1
            return
        self.first = value if self.first is None else self.first
        self.last = value
        self.total += value
        if self.lowest is None or value < self.lowest[1]:
            self.lowest = update, value
        if self.highest is None or value > self.highest[1]:
            self.highest = update, value
        self._open.append((update, value))
        if len(self._open) == self._stride:
            self._close()
            if len(self._values) > MAX_POINTS:
                self._halve()

    def points(self, max_points: int = MAX_POINTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Updates and values, at most ``max_points`` of them (and one for the rest): means of equally many values."""
        x, y = np.array(self._updates), np.array(self._values)
        if len(x) > max_points:
            size = -(-len(x) // max_points)
            cut = len(x) // size * size
            tail = [x[cut:].mean(keepdims=True), y[cut:].mean(keepdims=True)] if cut < len(x) else [x[:0], y[:0]]
            x = np.concatenate([x[:cut].reshape(-1, size).mean(1), tail[0]])
            y = np.concatenate([y[:cut].reshape(-1, size).mean(1), tail[1]])
        if self._open:
            x = np.append(x, np.mean([update for update, _ in self._open]))
            y = np.append(y, np.mean([value for _, value in self._open]))
        return x, y

    def _close(self) -> None:
        self._updates.append(sum(update for update, _ in self._open) / len(self._open))
        self._values.append(sum(value for _, value in self._open) / len(self._open))
        self._open.clear()

    def _halve(self) -> None:
        even = len(self._values) // 2 * 2
        x, y = np.array(self._updates[:even]), np.array(self._values[:even])
        rest = (self._updates[even:], self._values[even:])
        self._updates, self._values = array("d", x.reshape(-1, 2).mean(1)), array("d", y.reshape(-1, 2).mean(1))
        if rest[0]:  # an odd one opens the next point
            self._open = [(rest[0][0], rest[1][0])] * self._stride
        self._stride *= 2
