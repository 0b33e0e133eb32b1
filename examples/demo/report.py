"""The demonstration's report: what was drawn against the weights, as tables, a picture and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mtf.report import read_run


def write_report(
    folder: Path,
    metrics: Mapping[str, float],
    differences: Sequence[str],
    *,
    stopped_at: int,
    num_updates: int,
    seconds: float,
) -> str:
    """Write report.md, drawn.png and report.html into `folder`, where the run has logged.

    Returns:
        The text of the report's tables.
    """
    run = read_run(folder)
    run.save(folder / "report.html")
    run.pictures()["shares"].savefig(folder / "drawn.png")
    lines = ["| source | weight | drawn | share | difference |", "| --- | ---: | ---: | ---: | ---: |"]
    for source in run.sources:
        share, weight = source.share or 0.0, source.weight or 0.0
        lines.append(f"| {source.name} | {weight:.3f} | {source.num_batches} | {share:.3f} | {share - weight:+.3f} |")
    lines += ["", "| metric on held-out data | value |", "| --- | ---: |"]
    lines += [f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items())]
    verdict = "bit-identical" if not differences else "DIFFERENT: " + "; ".join(differences)
    lines += [
        "",
        f"Interrupted after update {stopped_at}, resumed in a fresh trainer, compared at {num_updates}: {verdict}.",
    ]
    lines += [f"All three runs took {seconds:.1f} s."]
    text = "\n".join(lines)
    (folder / "report.md").write_text(
        f"# What the demonstration did\n\n{text}\n\n![drawn](drawn.png)\n", encoding="utf-8"
    )
    return text
