"""Turn the JSON of a benchmark run into a Markdown page and plots.

python benchmarks/report.py build/bench/run.json --out build/bench
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from tables import HEADER, Measurement, cells, from_run, grouped

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TITLES = {
    "A": "Scheduling",
    "B": "Shuffling",
    "C": "Delivery of batches",
    "D": "Overhead of the trainer per step",
    "E": "Resume",
    "F": "Start",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write `benchmarks.md` and its plots into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    run = json.loads(arguments.run.read_text(encoding="utf-8"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    measurements = from_run(run)
    plots = _plots(measurements, arguments.out)
    page = arguments.out / "benchmarks.md"
    page.write_text(_page(run, measurements, plots), encoding="utf-8")
    print(page)


def _page(run: dict[str, Any], measurements: list[Measurement], plots: dict[str, list[Path]]) -> str:
    machine = run["machine_info"]
    cpu = machine.get("cpu", {})
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench` and `benchmarks/report.py`, all figures of a row in one run. Times are the best of",
        "several rounds; the ratios are times too: smaller is better, and below 1 beside the best peer is faster.",
        "The bound is the same work in C++ (or by hand) on this machine. Elsewhere compare ratios, not figures.",
        "",
        f"- machine: {cpu.get('brand_raw', machine['processor'])}, {cpu.get('count', '?')} cores, {machine['system']}",
        f"- Python {machine['python_version']}; " + ", ".join(f"{k} {v}" for k, v in run["versions"].items()),
        f"- date: {run['datetime'][:10]}",
    ]
    for row, title in TITLES.items():
        groups = [group for key, group in grouped(measurements).items() if key[0] == row]
        if groups:
            lines += ["", f"## {row}. {title}", "", *_markdown(groups)]
            lines += [f"\n![{plot.stem}]({plot.name})" for plot in plots.get(row, [])]
    return "\n".join(lines) + "\n"


def _markdown(groups: list[list[Measurement]]) -> list[str]:
    lines = ["| " + " | ".join(HEADER[1:]) + " |", "| --- | --- | --- | ---: | ---: | ---: |"]
    for group in groups:
        for member in group:
            line = cells(group, member)[1:]
            name = f"**{line[2]}**" if member.ours else line[2]
            lines.append("| " + " | ".join([*line[:2], name, *line[3:]]) + " |")
    return lines


def _plots(measurements: list[Measurement], out: Path) -> dict[str, list[Path]]:
    """One plot for each piece of work that was measured at several sizes."""
    made: dict[str, list[Path]] = {}
    for row, work in dict.fromkeys((m.row, m.work) for m in measurements):
        mine = [m for m in measurements if (m.row, m.work) == (row, work) and _number(m.size) is not None]
        if len({m.size for m in mine}) < 2:
            continue
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for tool in dict.fromkeys(m.tool for m in mine):
            points = sorted((_number(m.size), m.ns) for m in mine if m.tool == tool)
            style = "o-" if tool.startswith("mtf") else "s--"
            axes.plot(*zip(*points, strict=True), style, label=tool, linewidth=2 if tool.startswith("mtf") else 1)
        bounds = sorted({(_number(m.size), m.bound_ns) for m in mine if m.bound_ns})
        if bounds:
            axes.plot(*zip(*bounds, strict=True), "k:", label="native bound")
        axes.set(xscale="log", yscale="log", xlabel="size", ylabel="ns per item")
        axes.set_title(work)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
        path = out / f"{row}-{re.sub(r'[^a-z0-9]+', '-', work.lower()).strip('-')}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        made.setdefault(row, []).append(path)
    return made


def _number(size: str) -> float | None:
    """The number in a size such as "n=64" or "of 10^8"."""
    found = re.search(r"(\d+)\^(\d+)|(\d+)", size)
    if found is None:
        return None
    return float(found[1]) ** float(found[2]) if found[1] else float(found[3])


if __name__ == "__main__":
    main()
