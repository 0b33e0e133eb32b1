"""Measurements side by side: figure, ratio to the native bound, ratio to the best peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One tool at one piece of work.

    Attributes:
        row: Letter of the group: A scheduling, B shuffling, C delivery, D overhead, E resume, F start.
        work: What is done, in words.
        size: What the figure varies with, e.g. "n=64"; "" if nothing.
        tool: Who does it; names that begin with "mtf" are ours.
        ns: Nanoseconds per item, the best round.
        bound_ns: The same work in C++ or by hand on this machine, None where there is no such figure.
        per_second: Show items per second instead of a time.
    """

    row: str
    work: str
    size: str
    tool: str
    ns: float
    bound_ns: float | None = None
    per_second: bool = False

    @property
    def ours(self) -> bool:
        return self.tool.startswith("mtf")

    @property
    def figure(self) -> str:
        """The figure as a person reads it."""
        return f"{1e9 / self.ns:,.0f} /s" if self.per_second else readable(self.ns)


def readable(ns: float) -> str:
    """A time with a unit that suits it."""
    for limit, scale, unit in ((1e3, 1.0, "ns"), (1e6, 1e3, "us"), (1e9, 1e6, "ms")):
        if ns < limit:
            return f"{ns / scale:,.3g} {unit}" if ns / scale < 100 else f"{ns / scale:,.0f} {unit}"
    return f"{ns / 1e9:,.3g} s"


def from_run(run: Mapping[str, Any]) -> list[Measurement]:
    """From the JSON of a run: what was timed, and what native programs handed on."""
    timed = [entry for entry in run["benchmarks"] if "row" in entry["extra_info"]]
    found = [Measurement(**given) for given in run["handed_on"]]
    for entry in timed:
        info = dict(entry["extra_info"])
        items = info.pop("items")
        found.append(Measurement(ns=entry["stats"]["min"] * 1e9 / items, **info))
    return found


def grouped(measurements: Iterable[Measurement]) -> dict[tuple[str, str, str], list[Measurement]]:
    """By (row, work, size), in order of rows; ours first, then the peers from fast to slow."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.row, measurement.work, measurement.size), []).append(measurement)
    for members in groups.values():
        members.sort(key=lambda m: (not m.ours, m.ns))
    return dict(sorted(groups.items(), key=lambda item: item[0][0]))


def cells(group: list[Measurement], measurement: Measurement) -> list[str]:
    """One line of a table: row, work, size, tool, figure, time over the bound's, time over the best peer's."""
    peers = [m.ns for m in group if not m.ours]
    bounds = [m.bound_ns for m in group if m.bound_ns]
    return [
        measurement.row,
        measurement.work,
        measurement.size,
        measurement.tool,
        measurement.figure,
        f"{measurement.ns / bounds[0]:.2f}" if bounds else "",
        f"{measurement.ns / min(peers):.3g}" if peers else "",
    ]


HEADER = ["row", "work", "size", "tool", "figure", "x bound", "x best peer"]


def text(measurements: Iterable[Measurement]) -> str:
    """A table for a terminal; the last two columns are times, so smaller is better and below 1 is faster."""
    lines = [HEADER]
    lines += [cells(group, member) for group in grouped(measurements).values() for member in group]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
