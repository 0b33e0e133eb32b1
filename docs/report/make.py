"""Draws the pictures of docs/report.md: make demo, then python docs/report/make.py demo-report

They aren't compared with committed ones: what a run waits for is never the same twice.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import mtf
from mtf.report import read_run, shares, svg

HERE = Path(__file__).resolve().parent / "figures"
# The theme's colours where the picture is part of a page, else those of the system's light or dark mode.
STYLE = """<style>
.mtf-picture{color:var(--color-foreground-primary,#1c1e22);max-width:100%;height:auto}
@media (prefers-color-scheme:dark){.mtf-picture{color:var(--color-foreground-primary,#dfe2e8)}}
.mtf-picture image{image-rendering:pixelated}
</style>"""


def write(name: str, figure: Any) -> None:
    """One picture, as a file of its own that can also be put into a page."""
    text = re.sub(r' role="img" aria-label="[^"]*"', "", svg(figure, name), count=1)
    text = text.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" class="mtf-picture"', 1)
    text = re.sub(r"(<svg[^>]*>)", lambda head: head[1] + STYLE, text, count=1)
    (HERE / f"{name}.svg").write_text(text + "\n", encoding="utf-8")


def main(folder: str) -> None:
    """The pictures of the demonstration's run, and the certificate of an even mixture."""
    HERE.mkdir(exist_ok=True)
    for name, figure in read_run(folder).pictures().items():
        write(name, figure)
    even = mtf.MultiDataLoaderConfig(
        sampling_strategy=mtf.SamplingStrategy.WEIGHTED,
        weighted_order=mtf.WeightedOrder.EVEN,
        dataloader_names=["web", "code", "books"],
        dataloader_weights=[5, 3, 2],
        epoch_length_policy=mtf.EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=100,
    )
    write("even", shares(mtf.Schedule(even, [50, 40, 30]).plan(2)))


if __name__ == "__main__":
    main(*sys.argv[1:])
