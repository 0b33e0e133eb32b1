"""The demonstration's report: what was drawn against the weights, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class Drawn:
    """The source and the loss of every step, in order."""

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        self.names = list(names)
        self.weights = np.asarray(weights) / np.sum(weights)
        self._sources: list[int] = []
        self._losses: list[Tensor] = []

    def add(self, source: int, loss: Tensor) -> None:
        """Record one step; the loss stays a tensor, so that nothing waits for it."""
        self._sources.append(source)
        self._losses.append(loss.detach())

    @property
    def sources(self) -> np.ndarray:
        """Source per step, [num_steps]."""
        return np.asarray(self._sources)

    @property
    def losses(self) -> np.ndarray:
        """Loss per step, [num_steps]."""
        return np.asarray([float(loss) for loss in self._losses])

    def counts(self) -> np.ndarray:
        """Draws of each source after every step, [num_steps, num_sources]."""
        return np.cumsum(self.sources[:, None] == np.arange(len(self.names)), axis=0)


def write_report(
    folder: Path,
    drawn: Drawn,
    metrics: Mapping[str, float],
    differences: Sequence[str],
    *,
    stopped_at: int,
    num_updates: int,
    seconds: float,
) -> str:
    """Write report.md and drawn.png into `folder`.

    Returns:
        The text of the report's tables.
    """
    _plot(folder / "drawn.png", drawn)
    total = drawn.counts()[-1]
    lines = ["| source | weight | drawn | share | difference |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, weight, count in zip(drawn.names, drawn.weights, total, strict=True):
        share = count / total.sum()
        lines.append(f"| {name} | {weight:.3f} | {count} | {share:.3f} | {share - weight:+.3f} |")
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


def _plot(path: Path, drawn: Drawn) -> None:
    counts = drawn.counts()
    steps = np.arange(1, len(counts) + 1)
    figure, (raster, share, loss) = plt.subplots(3, 1, figsize=(9, 9), sharex=True, layout="constrained")
    for index, name in enumerate(drawn.names):
        color = f"C{index}"
        mine = drawn.sources == index
        raster.vlines(steps[mine], index - 0.4, index + 0.4, color=color, linewidth=0.6)
        share.plot(steps, counts[:, index] / steps, color=color, label=f"{name} drawn")
        share.axhline(drawn.weights[index], color=color, linestyle="--", linewidth=1)
        loss.plot(steps[mine], drawn.losses[mine], color=color, linewidth=0.8, label=name)
    raster.set_yticks(range(len(drawn.names)), drawn.names)
    raster.set_title("which source each step drew")
    share.set_ylim(0, 1)
    share.set_title("share drawn so far (dashed: weights)")
    share.legend(loc="upper right")
    loss.set_yscale("log")
    loss.set_title("training loss")
    loss.set_xlabel("step")
    loss.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
