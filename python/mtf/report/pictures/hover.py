"""Values under the pointer, without a script: strips over a figure that show a line and the values there."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_STRIPS = 40
_MAX_ROWS = 9
_LINE_PT = 11.0
_CHAR_PT = 5.0
_POINTS_PER_INCH = 72.0

STYLE = """
.at rect { fill: transparent; } .at .x { fill: var(--muted); }
.at .x, .at .tip { display: none; } .at:hover .x, .at:hover .tip { display: inline; }
.at .tip { pointer-events: none; font: 8.5px system-ui, sans-serif; }
.at .tip rect { fill: var(--paper); stroke: var(--line); } .at .tip text { fill: var(--ink); }
"""


def name_line(line: Any, name: str) -> None:
    """Lets the values of a line be shown under ``name``."""
    line.set_label(name)


def hover(figure: Figure) -> str:
    """SVG groups for a figure that was saved as SVG, in its coordinates; empty where no line has a name.

    Each panel is divided into at most 40 strips. Over a strip the page shows the value of each line that is nearest
    to the strip's middle.
    """
    return "".join(_panel(axes, figure) for axes in figure.axes)


def _panel(axes: Axes, figure: Figure) -> str:
    named: Sequence[Any] = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")][:_MAX_ROWS]
    data = [(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in named]
    low, high = axes.get_xlim()
    at = np.unique(np.concatenate([x for x, _ in data])) if data else np.empty(0)
    at = at[(at >= low) & (at <= high)]
    if not len(at):
        return ""
    if len(at) > _MAX_STRIPS:
        at = at[np.unique(np.linspace(0, len(at) - 1, _MAX_STRIPS).round().astype(int))]
    edges = np.concatenate([[low], (at[1:] + at[:-1]) / 2, [high]])
    scale = _POINTS_PER_INCH / figure.dpi
    height = figure.get_figheight() * _POINTS_PER_INCH
    box = axes.get_window_extent()
    left, right, top, bottom = box.x0 * scale, box.x1 * scale, height - box.y1 * scale, height - box.y0 * scale
    pixels = axes.transData.transform(np.column_stack([np.append(at, edges), np.full(len(at) + len(edges), 1.0)]))
    places = pixels[:, 0] * scale
    unit = axes.get_gid() or "update"
    strips = []
    for i, x in enumerate(at):
        begin, end = max(places[len(at) + i], left), min(places[len(at) + i + 1], right)
        rows = [(unit, f"{x:,.0f}", "")]
        for line, (xs, ys) in zip(named, data, strict=True):
            if len(xs):
                value = ys[int(np.abs(xs - x).argmin())]
                rows.append((str(line.get_label()), f"{value:.4g}", str(line.get_color())))
        tip = _tip(rows, float(places[i]), right, top)
        strips.append(
            f'<g class="at"><rect x="{begin:.1f}" y="{top:.1f}" width="{max(end - begin, 0.1):.1f}" '
            f'height="{bottom - top:.1f}"/><rect class="x" x="{places[i] - 0.4:.1f}" y="{top:.1f}" width=".8" '
            f'height="{bottom - top:.1f}"/>{tip}</g>'
        )
    return "".join(strips)


def _tip(rows: Sequence[tuple[str, str, str]], x: float, right: float, top: float) -> str:
    texts = [f"{name} {value}" for name, value, _ in rows]
    width = _CHAR_PT * max(map(len, texts)) + 16
    left = x + 6 if x + 6 + width < right else x - 6 - width
    parts = [f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{_LINE_PT * len(rows) + 6:.1f}" rx="3"/>']
    for n, ((_, _, color), text) in enumerate(zip(rows, texts, strict=True)):
        y = top + _LINE_PT * (n + 1)
        if color:
            parts.append(
                f'<rect x="{left + 5:.1f}" y="{y - 6:.1f}" width="5" height="5" style="fill:{color};stroke:none"/>'
            )
        parts.append(f'<text x="{left + 13:.1f}" y="{y:.1f}">{html.escape(text)}</text>')
    return f'<g class="tip">{"".join(parts)}</g>'
