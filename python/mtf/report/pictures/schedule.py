"""Pictures of a schedule: each takes a plan or a history of draws and returns a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mtf.report.history import History, plan_history
from mtf.report.pictures.hover import name_line
from mtf.report.pictures.style import (
    DASHED,
    GRID,
    INK,
    MUTED,
    Palette,
    drawing,
    legend,
    percent,
    shorten,
    thousands,
)
from mtf.schedule.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_EPOCH_LINES = 40
_MAX_TALL_ROWS = 16


def palette_of(drawn: Plan | History) -> Palette:
    """The colours that pictures of this plan or history have."""
    history = _history(drawn)
    return Palette(history.names, history.totals.tolist())


def schedule_raster(drawn: Plan | History) -> Figure:
    """Which source gives the batch of which step: a row per source, a mark per step.

    Where there are more steps than marks fit, a mark is the darker the more of its steps the source gave, the
    darkest mark of each row being full.
    """
    history = _history(drawn)
    with drawing(_raster_height(history)) as (figure, (axes,)):
        _draw_raster(axes, history, palette_of(history))
        _steps(axes, history)
    return figure


def shares(drawn: Plan | History) -> Figure:
    """Share of each source in the steps so far, against what its weight lets expect, and the distance in batches.

    The distance counts from each epoch's start; under EVEN the certificate is the band that it never leaves.
    """
    history = _history(drawn)
    colors = palette_of(history)
    with drawing(*([2.3, 1.5] if history.is_weighted else [2.3])) as (figure, panels):
        _draw_shares(panels[0], history, colors)
        if history.is_weighted:
            _draw_distance(panels[1], history, colors)
        _steps(panels[-1], history)
    return figure


def weights(drawn: Plan | History) -> Figure:
    """What the weights promise each source at each step: constant, or as a curve and edits have changed them."""
    history = _history(drawn)
    with drawing(1.9) as (figure, (axes,)):
        _draw_weights(axes, history, palette_of(history))
        _steps(axes, history)
    return figure


def passes(drawn: Plan | History) -> Figure:
    """How often each source has been run through by each step; sources of unknown length are left out and named."""
    history = _history(drawn)
    with drawing(2.2) as (figure, (axes,)):
        _draw_passes(axes, history, palette_of(history))
        _steps(axes, history)
    return figure


def plan_overview(plan: Plan) -> Figure:
    """Raster, shares and passes of a plan on one sheet."""
    history = plan_history(plan)
    colors = palette_of(history)
    with drawing(_raster_height(history), 2.0, 2.0) as (figure, panels):
        _draw_raster(panels[0], history, colors)
        _draw_shares(panels[1], history, colors)
        _draw_passes(panels[2], history, colors)
        _steps(panels[-1], history)
    return figure


def _history(drawn: Plan | History) -> History:
    return plan_history(drawn) if isinstance(drawn, Plan) else drawn


def _line(axes: Axes, x: Any, y: Any, colors: Palette, index: int, width: float = 1.6) -> None:
    if index in colors.shown:
        (line,) = axes.plot(x, y, color=colors[index], linewidth=width)
        name_line(line, colors.names[index])
    else:  # in the background, with a point in four
        keep = np.unique(np.append(np.arange(0, len(x), 4), len(x) - 1))
        axes.plot(x[keep], y[keep], color=colors[index], linewidth=0.7, alpha=0.5)


def _raster_height(history: History) -> float:
    num = len(history.names)
    return max((0.34 if num <= _MAX_TALL_ROWS else 0.17) * num, 0.5)


def _draw_raster(axes: Axes, history: History, colors: Palette) -> None:
    from matplotlib.colors import to_rgb

    num = len(history.names)
    per_bin = np.diff(history.counts, axis=1) / np.diff(history.edges)
    strength = per_bin / np.maximum(per_bin.max(axis=1, keepdims=True), 1e-12)
    # Each row is drawn thick, with a gap to the next; no mark is so faint that it can't be seen.
    thick = 5
    pixels = np.zeros((num * (thick + 1), strength.shape[1], 4))
    for row in range(num):
        lines = slice(row * (thick + 1), row * (thick + 1) + thick)
        pixels[lines, :, :3] = to_rgb(colors[row])
        pixels[lines, :, 3] = np.where(strength[row] > 0, 0.15 + 0.85 * strength[row], 0)
    extent = (0, history.num_steps, num - 0.5 + 1 / 12, -0.5 + 1 / 12)
    axes.imshow(pixels, aspect="auto", interpolation="none", extent=extent)
    size, limit = (9, 18) if num <= _MAX_TALL_ROWS else (8, 20)
    axes.set_yticks(range(num), [shorten(name, limit) for name in history.names])
    axes.tick_params(axis="y", length=0, labelsize=size)
    beside: Any = {"va": "center_baseline", "fontsize": size, "annotation_clip": False}
    for row, share in enumerate(history.shares):
        axes.annotate(f"{share:.1%}", (1.015, row), xycoords=("axes fraction", "data"), **beside)
    axes.annotate("share", (1.015, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", color=MUTED)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(num - 0.45, -0.55)
    _mark_epochs(axes, history, on_top=True)
    width = history.num_steps / strength.shape[1]
    axes.set_title(
        "Which source gives the batch of each step"
        if width <= 1
        else f"Which source gives when: about {width:,.0f} steps in a mark, darker where it gives more"
    )


def _draw_shares(axes: Axes, history: History, colors: Palette) -> None:
    from matplotlib.lines import Line2D

    keep = history.edges > 0
    x, counts, expected = history.edges[keep], history.counts[:, keep], history.expected[:, keep]
    for i in [*colors.others, *colors.shown]:
        _line(axes, x, counts[i] / x, colors, i)
        if history.is_weighted and i in colors.shown:
            axes.plot(x, expected[i] / x, color=colors[i], linewidth=1.2, linestyle=DASHED, alpha=0.75)
    settled = len(x) // 20  # what the first few draws happen to be needs no room
    top = max((counts / x)[:, settled:].max(), (expected / x)[:, settled:].max())
    axes.set_ylim(0, 1.15 * top if top < 0.85 else 1.02)
    axes.set_ylabel("share of steps so far")
    percent(axes.yaxis)
    order = np.argsort(-history.shares, kind="stable").tolist()
    handles, labels = colors.entries(lambda c: Line2D([], [], color=c), order)
    if history.is_weighted:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.2, linestyle=DASHED))
        labels.append("by weight")
        axes.set_title("Share of each source: drawn (solid) and by weight (dashed)")
    else:
        axes.set_title("Share of each source in the steps so far")
    legend(axes, handles, labels)
    _mark_epochs(axes, history)


def _draw_distance(axes: Axes, history: History, colors: Palette) -> None:
    """Draws minus expected draws since each epoch's start, with the certificates as bands."""
    edges, starts = history.edges, history.epoch_starts
    difference = history.counts - history.expected
    # Where no edge lies at an epoch's start, a straight line between its neighbours tells it.
    at_start = np.array([np.interp(starts, edges, row) for row in difference])
    epoch = np.clip(np.searchsorted(starts, edges, side="left") - 1, 0, len(starts) - 2)
    distance = difference - at_start[:, epoch]
    for i in [*colors.others, *colors.shown]:
        _line(axes, edges, distance[i], colors, i, 1.0)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    if np.isfinite(history.bounds).any():
        x, y = np.repeat(starts, 2)[1:-1], np.repeat(history.bounds, 2)
        axes.fill_between(x, -y, y, color=GRID, alpha=0.25, linewidth=0, zorder=0)
        axes.set_title("Distance from what the weights promise; band: EVEN's certificate")
    else:
        axes.set_title("Distance from what the weights promise, since each epoch's start")
    axes.set_ylabel("batches")
    _mark_epochs(axes, history)


def _draw_weights(axes: Axes, history: History, colors: Palette) -> None:
    from matplotlib.lines import Line2D

    promised = np.diff(history.expected, axis=1) / np.diff(history.edges)
    x = np.repeat(history.edges, 2)[1:-1]
    for i in [*colors.others, *colors.shown]:
        _line(axes, x, np.repeat(promised[i], 2), colors, i, 1.4)
    axes.set_ylim(0, 1.1 * max(float(promised.max()), 1e-9))
    percent(axes.yaxis)
    axes.set_ylabel("share by weight")
    axes.set_title("Weights over time")
    order = np.argsort(-promised[:, -1], kind="stable").tolist()
    handles, labels = colors.entries(lambda c: Line2D([], [], color=c), order)
    legend(axes, handles, labels)
    _mark_epochs(axes, history)


def _draw_passes(axes: Axes, history: History, colors: Palette) -> None:
    from matplotlib.lines import Line2D

    known = [i for i, length in enumerate(history.lengths) if length]
    lines = {i: history.counts[i] / (history.lengths[i] or 1) for i in known}
    for i in [*(i for i in colors.others if i in lines), *(i for i in colors.shown if i in lines)]:
        _line(axes, history.edges, lines[i], colors, i)
    axes.axhline(1, color=MUTED, linewidth=1, linestyle=":")
    axes.set_ylim(0, 1.08 * max([1.0, *(float(line[-1]) for line in lines.values())]))
    axes.set_ylabel("passes")
    unknown = [shorten(history.names[i]) for i, length in enumerate(history.lengths) if not length]
    left_out = f" (length unknown: {', '.join(unknown[:4])}{' …' if len(unknown) > 4 else ''})" if unknown else ""
    axes.set_title(f"Passes through each source{left_out}")
    order = sorted(known, key=lambda i: -float(lines[i][-1]))
    handles, labels = colors.entries(lambda c: Line2D([], [], color=c), order, limit=13)
    for n, i in enumerate(i for i in order if i in colors.shown):
        labels[n] = f"{lines[i][-1]:.3g}  {labels[n]}"
    legend(axes, handles, labels)
    _mark_epochs(axes, history)


def _mark_epochs(axes: Axes, history: History, *, on_top: bool = False) -> None:
    inner = history.epoch_starts[1:-1]
    if 0 < len(inner) <= _MAX_EPOCH_LINES:
        for start in inner:
            style: Any = {"color": INK, "zorder": 3} if on_top else {"color": MUTED, "zorder": 0.5}
            axes.axvline(start, linewidth=0.8, linestyle=(0, (1, 2)), **style)


def _steps(axes: Axes, history: History) -> None:
    for panel in axes.figure.axes:
        panel.set_gid("batch")  # the unit of its axis, for values under the pointer
    axes.set_xlim(0, history.num_steps)
    thousands(axes.xaxis)
    inner = len(history.epoch_starts) - 2
    since = f" of epoch {history.first_epoch} and later" if history.first_epoch else ""
    dotted = "; dotted: epochs begin" if 0 < inner <= _MAX_EPOCH_LINES else ""
    axes.set_xlabel(f"step (batch){since}{dotted}")
