"""The pictures: each takes a plan, a schedule's history or a run's metrics, and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtf.report.history import History, plan_history
from mtf.report.series import Series
from mtf.report.style import (
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
_SMOOTHED = 60  # points from which a smoothed line is drawn over them
_MAX_PANELS = 6
_MAX_TALL_ROWS = 16
_DASHED = (0, (4, 2))


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


def losses(series: Mapping[str, Series], colors: Palette, end: int | None = None) -> Figure:
    """Training loss of each source over updates.

    Args:
        series: by source; ``""``: over all of them.
        colors: of the run.
        end: the last update to show; None: that of the last value.
    """
    return _metric_panels({"loss": series}, colors, end, "Training {}: means between rows", smooth=True)


def validation(metrics: Mapping[str, Mapping[str, Series]], colors: Palette, end: int | None = None) -> Figure:
    """Validation metrics over updates, a panel for each.

    Args:
        metrics: metric -> series by loader; ``""``: over all of them.
        colors: of the run.
        end: the last update to show; None: that of the last value.
    """
    return _metric_panels(metrics, colors, end, "Validation: {}", smooth=False)


def data_wait(share: Series | None, per_source: Mapping[str, tuple[float, int]], colors: Palette) -> Figure:
    """How much of the time the loop stood waiting for batches, and for whose.

    Args:
        share: of the time between rows; None if it wasn't logged.
        per_source: seconds waited and batches, by source; empty if it wasn't logged.
        colors: of the run.
    """
    num_bars = min(len(per_source), 16)
    heights = [h for h, there in ((1.5, share is not None), (0.1 + 0.25 * num_bars, bool(per_source))) if there]
    with drawing(*heights, shares_x=False) as (figure, panels):
        remaining = list(panels)
        if share is not None:
            axes = remaining.pop(0)
            x, y = share.points(400)
            axes.fill_between(x, y, color=MUTED, alpha=0.25, linewidth=0)
            axes.plot(x, y, color=MUTED, linewidth=1.2, marker="o" if len(x) < 3 else None)
            mean = share.total / max(share.num_values - share.num_bad, 1)
            axes.axhline(mean, color=INK, linewidth=1, linestyle=":")
            axes.set_ylim(0, min(1.0, max(1.25 * float(y.max(initial=0)), 0.05)))
            axes.set_xlim(0, share.last_update)
            percent(axes.yaxis)
            axes.set_ylabel("share of time")
            axes.set_title(f"Waiting for data: {mean:.1%} of the training time (dotted: mean)")
            axes.set_xlabel("update")
            thousands(axes.xaxis)
        if per_source:
            axes = remaining.pop(0)
            order = sorted(per_source, key=lambda name: -per_source[name][0])[:num_bars]
            seconds = [per_source[name][0] for name in order]
            at = np.arange(len(order))
            axes.barh(at, seconds, 0.7, color=[colors.of(name) for name in order])
            for y_at, name in zip(at, order, strict=True):
                waited, batches = per_source[name]
                each = f", {1000 * waited / batches:.3g} ms per batch" if batches else ""
                axes.annotate(
                    f"{_seconds(waited)}{each}", (waited, y_at), (5, 0), textcoords="offset points", va="center",
                    fontsize=8,
                )  # fmt: skip
            axes.set_xlim(0, 1.35 * max([*seconds, 1e-9]))
            axes.set_yticks(at, [shorten(name) for name in order])
            axes.tick_params(axis="y", length=0)
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
            axes.set_xlabel("seconds")
            of = f" (the {num_bars} longest of {len(per_source)})" if len(per_source) > num_bars else ""
            axes.set_title(f"Time waited for the batches of each source{of}")
    return figure


def _history(drawn: Plan | History) -> History:
    return plan_history(drawn) if isinstance(drawn, Plan) else drawn


def _line(axes: Axes, x: Any, y: Any, colors: Palette, index: int, width: float = 1.6) -> None:
    if index in colors.shown:
        axes.plot(x, y, color=colors[index], linewidth=width)
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
    size, limit = (9, 18) if num <= _MAX_TALL_ROWS else (6.5, 25)
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
            axes.plot(x, expected[i] / x, color=colors[i], linewidth=1.2, linestyle=_DASHED, alpha=0.75)
    settled = len(x) // 20  # what the first few draws happen to be needs no room
    top = max((counts / x)[:, settled:].max(), (expected / x)[:, settled:].max())
    axes.set_ylim(0, 1.15 * top if top < 0.85 else 1.02)
    axes.set_ylabel("share of steps so far")
    percent(axes.yaxis)
    order = np.argsort(-history.shares, kind="stable").tolist()
    handles, labels = colors.entries(lambda c: Line2D([], [], color=c), order)
    if history.is_weighted:
        handles.append(Line2D([], [], color=MUTED, linewidth=1.2, linestyle=_DASHED))
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
        axes.set_title("Distance from what the weights let expect, since each epoch's start")
    axes.set_ylabel("batches")
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
    axes.set_xlim(0, history.num_steps)
    thousands(axes.xaxis)
    inner = len(history.epoch_starts) - 2
    since = f" of epoch {history.first_epoch} and later" if history.first_epoch else ""
    dotted = "; dotted: epochs begin" if 0 < inner <= _MAX_EPOCH_LINES else ""
    axes.set_xlabel(f"step (batch){since}{dotted}")


def _metric_panels(
    metrics: Mapping[str, Mapping[str, Series]],
    colors: Palette,
    end: int | None,
    title: str,
    *,
    smooth: bool,
) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter

    shown = list(metrics)[:_MAX_PANELS]
    with drawing(*[1.9] * len(shown)) as (figure, panels):
        last = max((s.last_update for metric in shown for s in metrics[metric].values()), default=1)
        for axes, metric in zip(panels, shown, strict=True):
            named = metrics[metric]
            handles: list[Any] = []
            labels: list[str] = []
            drawn: list[float] = []
            order = sorted(named, key=lambda name: (name == "", colors.of(name) != MUTED))
            smooths = smooth and _is_long(named)
            for name in order:
                x, y = named[name].points(600)
                if not len(x):
                    continue
                drawn += [float(y.min()), float(y.max())]
                color, is_all = colors.of(name), name == ""
                style: dict[str, Any] = {"color": color, "linewidth": 1.2 if is_all else 1.6}
                if is_all:
                    style["linestyle"] = _DASHED
                if color == MUTED and not is_all:
                    style.update(linewidth=0.7, alpha=0.5)
                if not smooth or len(x) < 12:
                    style.update(marker="o", markersize=3)
                if smooths and color != MUTED:
                    axes.plot(x, y, color=color, linewidth=0.6, alpha=0.3)
                if smooths:
                    y = _smoothed(y)
                axes.plot(x, y, **style)
            listed = [name for name in named if colors.of(name) != MUTED and name]
            listed += [name for name in named if name == ""]
            for name in listed:
                line: dict[str, Any] = {"linestyle": _DASHED, "linewidth": 1.2} if name == "" else {}
                handles.append(Line2D([], [], color=colors.of(name), **line))
                labels.append(shorten(name) if name else "all")
            num_grey = sum(colors.of(name) == MUTED for name in named)
            if num_grey:
                handles.append(Line2D([], [], color=MUTED))
                labels.append(f"{num_grey} others")
            legend(axes, handles, labels)
            if drawn and min(drawn) > 0 and max(drawn) > 20 * min(drawn):
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_ylabel(shorten(metric))
            axes.set_title(title.format(shorten(metric)) + (" (smoothed)" if smooths else ""))
            axes.set_xlim(0, end or last)
        panels[-1].set_xlabel("update")
        thousands(panels[-1].xaxis)
    return figure


def _is_long(named: Mapping[str, Series]) -> bool:
    return any(len(series.points(600)[0]) >= _SMOOTHED for series in named.values())


def _smoothed(values: Sequence[float] | Any) -> Any:
    """A moving mean over a twentieth of the points, shorter at the ends."""
    half = max(len(values) // 40, 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    lo, hi = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[hi] - sums[lo]) / (hi - lo)


def _seconds(value: float) -> str:
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 100 else f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"
