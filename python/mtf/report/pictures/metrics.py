"""Pictures of what a run logged: each takes series of metrics and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mtf.report.pictures.hover import name_line
from mtf.report.pictures.style import DASHED, INK, MUTED, Palette, drawing, legend, percent, shorten, thousands
from mtf.report.series import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTHED = 60  # points from which a smoothed line is drawn over them
_MAX_PANELS, _MAX_OTHERS = 6, 24


def losses(series: Mapping[str, Series], colors: Palette, end: int | None = None) -> Figure:
    """Training loss of each source over updates.

    Args:
        series: by source; ``""``: over all of them.
        colors: of the run.
        end: the last update to show; None: that of the last value.
    """
    return panels({"loss": series}, colors, end, "Training {}: means between rows", smooth=True)


def validation(metrics: Mapping[str, Mapping[str, Series]], colors: Palette, end: int | None = None) -> Figure:
    """Validation metrics over updates, a panel for each.

    Args:
        metrics: metric -> series by loader; ``""``: over all of them.
        colors: of the run.
        end: the last update to show; None: that of the last value.
    """
    return panels(metrics, colors, end, "Validation: {}", smooth=False)


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
            (line,) = axes.plot(x, y, color=MUTED, linewidth=1.2, marker="o" if len(x) < 3 else None)
            name_line(line, "share of time")
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


def learning_rates(series: Mapping[str, Series], end: int | None = None) -> Figure:
    """Learning rate of each optimizer, and of each group of parameters where it has several, over updates.

    Args:
        series: by ``optimizer0``, ``optimizer0/group1`` and so on.
        end: the last update to show; None: that of the last value.
    """
    return panels({"learning rate": series}, Palette(list(series), [1.0] * len(series)), end, "{}", smooth=False)


def others(series: Mapping[str, Mapping[str, Series]], colors: Palette, end: int | None = None) -> Figure:
    """Every other series that was logged, a panel for each metric.

    Args:
        series: metric -> series by source; ``""``: over all of them.
        colors: of the run.
        end: the last update to show; None: that of the last value.
    """
    return panels(series, colors, end, "{}", smooth=True, max_panels=_MAX_OTHERS)


def panels(
    metrics: Mapping[str, Mapping[str, Series]],
    colors: Palette,
    end: int | None,
    title: str,
    *,
    smooth: bool = True,
    max_panels: int = _MAX_PANELS,
) -> Figure:
    """A panel for each metric, a line for each name.

    Args:
        metrics: metric -> series by name; ``""``: over all of them.
        colors: of the names.
        end: the last update to show; None: that of the last value.
        title: of each panel; ``{}`` is the metric.
        smooth: whether long series are drawn with a moving mean.
        max_panels: metrics that are drawn at most.
    """
    shown = list(metrics)[:max_panels]
    with drawing(*[1.9] * len(shown)) as (figure, axes_of):
        last = max((s.last_update for metric in shown for s in metrics[metric].values()), default=1)
        for axes, metric in zip(axes_of, shown, strict=True):
            named = metrics[metric]
            smooths = smooth and _is_long(named)
            values = _draw_lines(axes, named, colors, smooth=smooth, smooths=smooths)
            _draw_legend(axes, named, colors)
            if values and min(values) > 0 and max(values) > 20 * min(values):
                _scale_by_powers(axes)
            axes.set_ylabel(shorten(metric))
            axes.set_title(title.format(shorten(metric)) + (" (smoothed)" if smooths else ""))
            axes.set_xlim(0, end or last)
        axes_of[-1].set_xlabel("update")
        thousands(axes_of[-1].xaxis)
    return figure


def _draw_lines(
    axes: Axes, named: Mapping[str, Series], colors: Palette, *, smooth: bool, smooths: bool
) -> list[float]:
    """A line for each name, those without a colour below the others; returns the smallest and largest values."""
    extremes: list[float] = []
    for name in sorted(named, key=lambda name: (name == "", colors.of(name) != MUTED)):
        x, y = named[name].points(600)
        if not len(x):
            continue
        extremes += [float(y.min()), float(y.max())]
        color, is_all = colors.of(name), name == ""
        style: dict[str, Any] = {"color": color, "linewidth": 1.2 if is_all else 1.6}
        if is_all:
            style["linestyle"] = DASHED
        elif color == MUTED:
            style.update(linewidth=0.7, alpha=0.5)
        if not smooth or len(x) < 12:
            style.update(marker="o", markersize=3)
        if smooths:
            if color != MUTED:
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.3)
            y = _smoothed(y)
        name_line(axes.plot(x, y, **style)[0], name or "all")
    return extremes


def _draw_legend(axes: Axes, named: Mapping[str, Series], colors: Palette) -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    labels: list[str] = []
    for name in [*(name for name in named if colors.of(name) != MUTED and name), *([""] if "" in named else [])]:
        line: dict[str, Any] = {"linestyle": DASHED, "linewidth": 1.2} if name == "" else {}
        handles.append(Line2D([], [], color=colors.of(name), **line))
        labels.append(shorten(name) if name else "all")
    num_grey = sum(colors.of(name) == MUTED for name in named)
    if num_grey:
        handles.append(Line2D([], [], color=MUTED))
        labels.append(f"{num_grey} others")
    legend(axes, handles, labels)


def _scale_by_powers(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


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
