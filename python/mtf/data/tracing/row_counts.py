"""How many rows the sources of a blend had at each position: what the orders of past passes follow from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

NO_END = 1 << 62
"""Where a number of rows holds that hasn't changed since; behind every sample."""

Table = Sequence[tuple[str, int | None, bool]]
"""Name, rows and presence of each source by index, as ``Schedule.source_table`` gives them."""

PassesAt = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class RowCount:
    """The samples ``[begin, end)`` of a run, in which each source had one number of rows.

    Attributes:
        begin: The first sample.
        end: The sample to stop before, ``NO_END`` at most.
        table: The sources.
        begun: By index, the pass that was under way at ``begin``, and the rows that the source had when it began.
    """

    begin: int
    end: int
    table: Table
    begun: Mapping[int, tuple[int, int]]

    def has(self, index: int) -> bool:
        """Whether a source was there."""
        return index < len(self.table) and self.table[index][2]

    def of_pass(self, index: int, pass_: int) -> tuple[int, int]:
        """The rows that a source had when a pass began, which its order is of, and by how much the places of this pass
        are counted higher here than in that order, because the last place has one number in all passes."""
        length = self.table[index][1] or 0
        begun = self.begun.get(index)
        return (begun[1], length - begun[1]) if begun is not None and begun[0] == pass_ else (length, 0)


class RowCounts:
    """The numbers of rows over a run, from its first sample that can be computed on.

    Args:
        counts: One after the other, without a gap.
    """

    def __init__(self, counts: Sequence[RowCount]) -> None:
        self._counts = tuple(counts)

    @classmethod
    def at_start(cls, table: Table) -> RowCounts:
        """Of a run that begins."""
        return cls([RowCount(0, NO_END, list(table), {})])

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], rests: Mapping[int, tuple[int, int]], passes_at: PassesAt
    ) -> RowCounts:
        """Of a run that is loaded.

        Args:
            state: Of its schedule, as plain data.
            rests: By index, a pass that began with other rows than the source has now, and how many it had then.
            passes_at: Gives the pass of each source at a position.
        """
        setups, events = state["setups"], state["events"]
        if state.get("num_events", len(events)) > len(events):  # draws before the last of them are out of reach
            return cls([RowCount(0, NO_END, _table(setups[state["tail"]["setup"]]), dict(rests))])
        found = cls.at_start(_table(setups[state["opening"]["setup"]]))
        for event in events:
            if event["kind"].lower() == "edit":
                under_way = [rest["source"] for rest in event.get("rests", ())]
                passes = passes_at(event["step"]) if under_way else []
                found = found.edited(event["step"], _table(setups[event["setup"]]), {i: passes[i] for i in under_way})
        return found

    def edited(self, begin: int, table: Table, under_way: Mapping[int, int] | None = None) -> RowCounts:
        """With other sources from a position on.

        Args:
            begin: The first sample of the edit.
            table: The sources from there on.
            under_way: By index, the pass under way of each source that has other rows and finishes it with those that
                it had.
        """
        kept = [count for count in self._counts if count.begin <= begin]
        last = kept[-1]
        if [entry[1:] for entry in last.table] == [entry[1:] for entry in table] and not under_way:
            return RowCounts([*kept[:-1], replace(last, end=NO_END)])
        begun = dict(last.begun)
        for index, pass_ in (under_way or {}).items():
            begun[index] = pass_, last.of_pass(index, pass_)[0]
        return RowCounts([*kept[:-1], replace(last, end=begin), RowCount(begin, NO_END, list(table), begun)])

    def within(self, begin: int, end: int) -> list[RowCount]:
        """The parts of ``[begin, end)``, in their order."""
        parts = []
        for count in self._counts:
            first, stop = max(begin, count.begin), min(end, count.end)
            if first < stop:
                parts.append(replace(count, begin=first, end=stop))
        return parts

    def is_replaced_after(self, position: int, index: int) -> bool:
        """Whether a source was removed and came back later than a position, perhaps with other data."""
        later = [count for count in self._counts if count.end > position]
        are_there = [count.has(index) for count in later]
        return True in are_there[are_there.index(False) :] if False in are_there else False

    @property
    def now(self) -> RowCount:
        """The last of them."""
        return self._counts[-1]

    def most(self, index: int) -> int:
        """The most rows that a source had."""
        lengths = [count.table[index][1] or 0 for count in self._counts if index < len(count.table)]
        return max(lengths, default=0)


def _table(setup: Mapping[str, Any]) -> list[tuple[str, int | None, bool]]:
    return [(source["name"], source["length"], source["present"]) for source in setup["sources"]]
