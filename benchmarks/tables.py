"""Measurements side by side: figure, ratio to the native bound, ratio to the best peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Tools that are neither ours nor a library: the same work written by hand, or a scale to read other figures by.
REFERENCES = ("raw loop", "plain loop", "by hand", "an empty interpreter", "import numpy", "import torch")


@dataclass(frozen=True)
class Measurement:
    """One tool at one piece of work.

    Attributes:
        row: Letter of the group: A scheduling, B shuffling, C delivery, D overhead, E resume, F start, G token corpora,
            H checkpoints.
        work: What is done, in words.
        size: What the figure varies with, e.g. "n=64"; "" if nothing.
        tool: Who does it; names that begin with "mtf" are ours, those in `REFERENCES` are nobody's, others are peers.
        value: Nanoseconds per item (the median of the rounds), bytes or a count, as `unit` says. Less is better.
        bound: The same work in C++ or by hand on this machine, in the same unit; None where there is no such figure.
        unit: "ns", "bytes" or "count".
        per_second: Show items per second instead of a time.
        spread: Distance between the quartiles of the rounds over their median; None where there was one round.
    """

    row: str
    work: str
    size: str
    tool: str
    value: float
    bound: float | None = None
    unit: str = "ns"
    per_second: bool = False
    spread: float | None = None

    @property
    def ours(self) -> bool:
        return self.tool.startswith("mtf")

    @property
    def is_peer(self) -> bool:
        return not self.ours and not self.tool.startswith(REFERENCES)

    def show(self, value: float) -> str:
        """A value in this measurement's unit as a person reads it."""
        if self.unit == "bytes":
            return readable_bytes(value)
        if self.unit == "count":
            return f"{value:,.4g}"
        return f"{1e9 / value:,.0f} /s" if self.per_second else readable(value)

    @property
    def figure(self) -> str:
        return self.show(self.value)


@dataclass
class Group:
    """Everything measured at one piece of work and one size: ours first, then the others from fast to slow."""

    row: str
    work: str
    size: str
    members: list[Measurement] = field(default_factory=list)

    @property
    def bound(self) -> float | None:
        """The best bound that a member brought."""
        return min((m.bound for m in self.members if m.bound is not None), default=None)

    @property
    def best_peer(self) -> Measurement | None:
        return min((m for m in self.members if m.is_peer), key=lambda m: m.value, default=None)

    def tool(self, name: str) -> Measurement | None:
        """The measurement of one tool."""
        return next((m for m in self.members if m.tool == name), None)


def readable(ns: float) -> str:
    """A time with a unit that suits it."""
    for limit, scale, unit in ((1e3, 1.0, "ns"), (1e6, 1e3, "us"), (1e9, 1e6, "ms")):
        if ns < limit:
            return f"{ns / scale:,.3g} {unit}" if ns / scale < 100 else f"{ns / scale:,.0f} {unit}"
    return f"{ns / 1e9:,.3g} s"


def readable_bytes(value: float) -> str:
    """A size with a unit that suits it."""
    for limit, scale, unit in ((2**10, 1, "B"), (2**20, 2**10, "KiB"), (2**30, 2**20, "MiB")):
        if abs(value) < limit:
            return f"{value / scale:,.3g} {unit}" if value / scale < 100 else f"{value / scale:,.0f} {unit}"
    return f"{value / 2**30:,.3g} GiB"


def from_run(run: Mapping[str, Any]) -> list[Measurement]:
    """From the JSON of a run: what was timed, and what was measured in another way and handed on."""
    found = [Measurement(**given) for given in run["handed_on"]]
    for entry in run["benchmarks"]:
        info = dict(entry["extra_info"])
        if "row" not in info:
            continue
        items, stats = info.pop("items"), entry["stats"]
        spread = stats["iqr"] / stats["median"] if stats["rounds"] > 1 else None
        found.append(Measurement(value=stats["median"] * 1e9 / items, spread=spread, **info))
    return found


def grouped(measurements: Iterable[Measurement]) -> list[Group]:
    """By row, work and size, in order of rows."""
    groups: dict[tuple[str, str, str], Group] = {}
    for m in measurements:
        groups.setdefault((m.row, m.work, m.size), Group(m.row, m.work, m.size)).members.append(m)
    for group in groups.values():
        group.members.sort(key=lambda m: (not m.ours, m.value))
    return sorted(groups.values(), key=lambda group: group.row)


def ratio(value: float, other: float | None) -> str:
    """`value` over `other`, "" where there is no other or it is nothing."""
    return f"{value / other:.3g}" if other else ""


HEADER = ["row", "work", "size", "tool", "figure", "x bound", "x best peer"]


def text(measurements: Iterable[Measurement]) -> str:
    """A table for a terminal; the last two columns are this figure over the other, so below 1 is better."""
    lines = [HEADER]
    for group in grouped(measurements):
        peer = group.best_peer
        for m in group.members:
            ratios = [ratio(m.value, group.bound), ratio(m.value, peer.value if peer else None)]
            lines.append([m.row, m.work, m.size, m.tool, m.figure, *ratios])
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
