"""The plots of the page, as small SVG files whose colours can be read on a light and on a dark ground."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import matplotlib
from tables import Measurement

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from tables import readable, readable_bytes

# Grey of a middle lightness: enough contrast on white and on black.
_INK = "#7d8590"
_OURS = ("#2f81f7", "#1b9aaa", "#6f7cf0", "#0f8f6b", "#58a6ff")
_PEERS = ("#d9822b", "#c2456b", "#9a6dd7", "#a3723d", "#d4a017", "#e0645c", "#7b9e3c", "#b06fb0", "#8c8c5c")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mtf",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Plot:
    """One plot: figures of one piece of work against the number in their size.

    Attributes:
        row: Letter of the group.
        work: `Measurement.work`.
        across: What the sizes count.
        title: Above the plot.
    """

    row: str
    work: str
    across: str
    title: str

    @property
    def file(self) -> str:
        return f"{self.row}-{re.sub(r'[^a-z0-9]+', '-', self.title.lower()).strip('-')}.svg"


PLOTS = (
    Plot("A", "weighted random, array of 10^6", "sources", "Weighted random: time of a decision"),
    Plot("A", "weighted even, array of 10^5", "sources", "Weighted even: time of a decision"),
    Plot("A", "weighted random, 64 sources, array", "steps", "Weighted random: time of a decision by steps"),
    Plot("A", "one random access", "sources", "Time of one random access"),
    Plot("A", "memory of 10^6 decisions", "sources", "Memory of 10^6 decisions"),
    Plot("B", "first batch of 256", "samples", "Time to the first shuffled batch"),
    Plot("B", "whole permutation, per index", "samples", "Whole permutation: time of an index"),
    Plot("B", "memory of the first batch of 256 of a shuffled pass", "samples", "Memory of the first shuffled batch"),
    Plot("C", "bytes held ahead, batches of 32 KiB, budget of 20 batches", "sources", "Memory held ahead"),
    Plot("E", "resume to the first batch", "step", "Time from a saved state to the first batch"),
)


def number(size: str) -> float | None:
    """The number in a size such as "n=64" or "of 10^8"."""
    found = re.search(r"(\d+)\^(\d+)|(\d[\d,]*)", size)
    if found is None:
        return None
    return float(found[1]) ** float(found[2]) if found[1] else float(found[3].replace(",", ""))


def draw(measurements: Sequence[Measurement], folder: Path) -> list[Plot]:
    """Writes every plot for which there are at least two sizes, and returns these."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    drawn = []
    with matplotlib.rc_context(_STYLE):
        for plot in PLOTS:
            mine = [m for m in measurements if (m.row, m.work) == (plot.row, plot.work)]
            if len({number(m.size) for m in mine} - {None}) > 1:
                _draw(plot, mine, folder / plot.file)
                drawn.append(plot)
    return drawn


def _tick(size: str) -> str:
    """The number in a size as it stands under an axis."""
    found = re.search(r"(\d+)\^(\d+)|\d[\d,]*", size)
    if found is None:
        return ""
    return f"$10^{{{found[2]}}}$" if found[1] == "10" else found[0]


def _draw(plot: Plot, mine: list[Measurement], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.6, 3.5), layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    # Where colours come again, another marker tells the lines apart.
    looks = {True: iter(product("o^D", _OURS)), False: iter(product("sXP", _PEERS))}
    for tool in sorted(dict.fromkeys(m.tool for m in mine), key=lambda name: not name.startswith("mtf")):
        ours = tool.startswith("mtf")
        points = sorted((number(m.size) or 0, max(m.value, 1e-3)) for m in mine if m.tool == tool)
        if len(points) < 2:
            continue
        marker, colour = next(looks[ours])
        axes.plot(
            *zip(*points, strict=True),
            marker=marker,
            markersize=5 if ours else 4,
            linestyle="-" if ours else "--",
            linewidth=2.2 if ours else 1.2,
            color=colour,
            label=tool,
        )
    bounds = sorted({(number(m.size) or 0, m.bound) for m in mine if m.bound})
    if bounds:
        lowest = {size: min(bound for other, bound in bounds if other == size) for size, _ in bounds}
        axes.plot(list(lowest), list(lowest.values()), ":", color=_INK, label="bound", linewidth=1.6)
    axes.set(xscale="log", yscale="log", xlabel=plot.across)
    sizes = {number(m.size): m.size for m in mine}
    axes.set_xticks([size for size in sizes if size], [_tick(text) for size, text in sizes.items() if size])
    if mine[0].unit == "bytes":
        values = [m.value for m in mine]
        axes.yaxis.set_major_locator(LogLocator(base=32 if max(values) > 100 * min(values) else 2))
    show = readable_bytes if mine[0].unit == "bytes" else readable
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25, which="major", color=_INK, linewidth=0.6)
    axes.set_title(plot.title, loc="left", fontsize=11)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, labelcolor=_INK)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
