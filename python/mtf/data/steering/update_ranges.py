"""Ranges of updates, whose data a run leaves out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from mtf.errors import ConfigError

Range: TypeAlias = tuple[int, int]


def check_ranges(given: Any) -> list[Range]:
    """The ranges in order.

    Raises:
        ConfigError: One isn't a pair of update numbers, is empty or reversed, or overlaps another.
    """
    if given is None:
        return []
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise ConfigError(f"skip must be a list of ranges [(first update, end), ...], but is {given!r}")
    ranges: list[Range] = []
    for number, entry in enumerate(given):
        where = f"skip[{number}]"
        if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) != 2:
            raise ConfigError(f"{where} must be a pair (first update, end), but is {entry!r}")
        begin, end = entry
        for value in entry:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{where} must have whole numbers of updates of at least 0, but is {entry!r}")
        if begin >= end:
            raise ConfigError(
                f"{where} must end after it begins, but is ({begin}, {end}): (100, 120) leaves out the data of updates "
                "100 to 119, counted from 0"
            )
        ranges.append((begin, end))
    ranges.sort()
    for before, after in itertools.pairwise(ranges):
        if after[0] < before[1]:
            raise ConfigError(f"skip: the ranges {before} and {after} overlap, so an update would be left out twice")
    return ranges


class UpdateRanges:
    """The updates of a run whose data are left out.

    Update ``u`` is the one that takes ``global_step`` from ``u`` to ``u + 1``. One that is left out counts like one
    whose loss wasn't finite: its batches are passed over, no weight, optimizer or scheduler changes.

    Attributes:
        ranges: ``(first update, end)``, in order.
    """

    def __init__(self) -> None:
        self.ranges: list[Range] = []

    def add(self, given: Sequence[Range], global_step: int) -> None:
        """More ranges; those that are known already change nothing.

        Raises:
            ConfigError: One begins before ``global_step``, or overlaps a known one.
        """
        new = [(begin, end) for begin, end in given if not any(a <= begin and end <= b for a, b in self.ranges)]
        for begin, end in new:
            if begin < global_step:
                raise ConfigError(
                    f"skip: the range ({begin}, {end}) begins before update {global_step}, where the run stands, so "
                    "its data were trained on: resume from a checkpoint of an earlier update, or give a later range"
                )
            for known in self.ranges:
                if begin < known[1] and known[0] < end:
                    raise ConfigError(
                        f"skip: the range ({begin}, {end}) overlaps {known}, which the run leaves out already"
                    )
        self.ranges = sorted([*self.ranges, *new])

    def extend(self, begin: int, end: int) -> None:
        """Leaves out ``[begin, end)`` as well, whatever is left out already."""
        touching = [known for known in self.ranges if begin <= known[1] and known[0] <= end]
        whole = (min(begin, *(a for a, _ in touching), begin), max(end, *(b for _, b in touching), end))
        self.ranges = sorted([*(known for known in self.ranges if known not in touching), whole])

    def due(self, global_step: int) -> int:
        """Updates to leave out now."""
        step = global_step
        for begin, end in self.ranges:
            if begin <= step < end:  # ranges that follow one another are one
                step = end
        return step - global_step

    def next_begin(self, global_step: int) -> int | None:
        """The next update that begins a range."""
        return next((begin for begin, _ in self.ranges if begin > global_step), None)

    def state_dict(self) -> dict[str, Any]:
        """The ranges."""
        return {"ranges": [list(entry) for entry in self.ranges]}

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """Whether it has ranges."""
        try:
            check_ranges(state["ranges"])
        except (ConfigError, KeyError, TypeError) as error:
            return [f"skips: it is malformed: {error}"]
        return []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the ranges over."""
        self.ranges = check_ranges(state["ranges"])
