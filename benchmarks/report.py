"""Turn the JSON of a benchmark run into the page docs/benchmarks.md and its plots.

python benchmarks/report.py build/bench/run.json --docs docs
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plots import Plot, draw
from tables import Group, Measurement, from_run, grouped, ratio
from targets import NOT_RUN, TARGETS, Verdict, judge, unmeasured

TITLES = {
    "A": "Scheduling: which source comes next",
    "B": "Shuffling",
    "C": "Delivery of batches",
    "D": "Overhead of the trainer per step",
    "E": "Resume",
    "F": "Start",
    "G": "Token corpora",
    "H": "Checkpoints",
}
FORMS = {
    "full": "Made by `make bench`",
    "quick": "**A quick run** (`make bench-quick`: smaller sizes, few rounds, so ratios are rough)",
    "smoke": "**A smoke run**: its figures mean nothing",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write `benchmarks.md` and `benchmarks/*.svg` into the folder given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", type=Path, required=True, help="folder for the page")
    arguments = parser.parse_args(argv)
    run = json.loads(arguments.run.read_text(encoding="utf-8"))
    measurements = from_run(run)
    plots = draw(measurements, arguments.docs / "benchmarks")
    path = arguments.docs / "benchmarks.md"
    path.write_text(page(run, measurements, plots), encoding="utf-8")
    verdicts = judge(grouped(measurements))
    missed = [verdict for verdict in verdicts if verdict.met is False]
    print(f"{path}: {sum(bool(v.met) for v in verdicts)} of {len(verdicts)} targets met")
    for verdict in missed:
        if not verdict.target.in_the_way:
            print(f"say in targets.py what is in the way of: {_what(verdict)}", file=sys.stderr)


def page(run: dict[str, Any], measurements: list[Measurement], plots: Iterable[Plot]) -> str:
    """The whole page as Markdown."""
    groups = grouped(measurements)
    verdicts = judge(groups)
    lines = [
        "# Benchmarks",
        "",
        f"{FORMS[run['form']]} and turned into this page by `benchmarks/report.py`.",
        "All figures of a row are from one run; a figure is the median of several rounds. The bound is the same work",
        "in C++, or by hand, on the same machine. Elsewhere compare ratios, not figures.",
        "",
        *_machine(run),
        "",
        *_summary(groups, verdicts),
    ]
    drawn = list(plots)
    for row, title in TITLES.items():
        mine = [group for group in groups if group.row == row]
        if not mine:
            continue
        lines += ["", f"## {row}. {title}", ""]
        lines += _targets([verdict for verdict in verdicts if verdict.group.row == row])
        for plot in drawn:
            if plot.row == row:
                lines += ["", f"![{plot.title}](benchmarks/{plot.file})"]
        lines += ["", f"### Every figure of {row}"]
        for work in dict.fromkeys(group.work for group in mine):
            lines += ["", *_figures(work, [group for group in mine if group.work == work])]
    lines += ["", "## Not run", "", *(f"- {name}: {reason}." for name, reason in NOT_RUN.items())]
    return "\n".join(lines) + "\n"


def _machine(run: dict[str, Any]) -> list[str]:
    machine = run["machine_info"]
    cpu = machine.get("cpu", {})
    packages = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    commit = (run.get("commit_info") or {}).get("id") or "unknown"
    command = {"full": "make bench", "quick": "make bench-quick"}.get(run["form"], "pytest benchmarks --smoke")
    return [
        f"- machine: {cpu.get('brand_raw', machine['processor'])}, {cpu.get('count', '?')} cores, "
        f"{machine['system']} {machine['release'].split('-')[0]} ({machine['machine']})",
        f"- compiler: {run['compiler'] or 'the native programs were not built'}; "
        f"{machine['python_implementation']} {machine['python_version']}",
        f"- packages: {packages}",
        f"- date: {run['datetime'][:10]}; command: `{command}`; commit: {commit[:10]}",
    ]


def _summary(groups: list[Group], verdicts: list[Verdict]) -> list[str]:
    met = [verdict for verdict in verdicts if verdict.met]
    missed = [verdict for verdict in verdicts if verdict.met is False]
    lines = [f"**{len(met)} of {len(met) + len(missed)} targets are met.**"]
    if missed:
        lines += ["", "Not met:", "", *(f"- {_what(verdict)}: {_judged(verdict)}" for verdict in missed)]
    left_out = unmeasured(groups)
    if left_out:
        names = "; ".join(f"{target.row}, {target.work}" for target in left_out)
        lines += ["", f"Not measured in this run ({len(left_out)} of {len(TARGETS)}): {names}."]
    return lines


def _what(verdict: Verdict) -> str:
    parts = [f"{verdict.group.row}, {verdict.group.work}", verdict.group.size, verdict.measurement.tool]
    return ", ".join(part for part in parts if part)


def _judged(verdict: Verdict) -> str:
    m, allowed = verdict.measurement, verdict.target.limit.of(verdict.group)
    wanted = "" if allowed is None or verdict.target.limit.absolute else f" ({m.show(allowed)})"
    reason = f" {verdict.target.in_the_way}" if verdict.target.in_the_way else ""
    return f"{m.figure}, the target is {verdict.target.limit.text}{wanted}.{reason}"


def _targets(verdicts: list[Verdict]) -> list[str]:
    if not verdicts:
        return ["No target was measured in this run."]
    lines = _header(["what", "size", "tool", "figure", "bound", "x bound", "best peer", "ahead of it", "target", "met"])
    for verdict in verdicts:
        m, group = verdict.measurement, verdict.group
        peer, bound = group.best_peer, group.bound
        lines.append(
            _row(
                [
                    group.work,
                    group.size,
                    m.tool,
                    f"**{m.figure}**",
                    "" if bound is None else m.show(bound),
                    ratio(m.value, bound),
                    "" if peer is None else f"{peer.tool}: {peer.figure}",
                    f"{ratio(peer.value, m.value)} x" if peer is not None and m.value else "",
                    verdict.target.limit.text,
                    {True: "yes", False: "**no**", None: "?"}[verdict.met],
                ]
            )
        )
    return lines


def _figures(work: str, groups: list[Group]) -> list[str]:
    """One piece of work: a line for each tool, a column for each size."""
    tools = dict.fromkeys(m.tool for group in groups for m in group.members)
    ordered = sorted(tools, key=lambda tool: not tool.startswith("mtf"))
    lines = _header([work, *(group.size or "figure" for group in groups)])
    for tool in ordered:
        cells = [_cell(group.tool(tool)) for group in groups]
        lines.append(_row([f"**{tool}**" if tool.startswith("mtf") else tool, *cells]))
    if any(group.bound is not None for group in groups):
        bounds = ["" if group.bound is None else group.members[0].show(group.bound) for group in groups]
        lines.append(_row(["*bound*", *bounds]))
    return lines


def _cell(m: Measurement | None) -> str:
    if m is None:
        return ""
    return m.figure if m.spread is None or m.spread < 0.2 else f"{m.figure} (spread {m.spread:.0%})"


def _header(names: list[str]) -> list[str]:
    return [_row(names), _row(["---"] * len(names))]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    main()
