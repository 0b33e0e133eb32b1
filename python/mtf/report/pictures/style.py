"""How pictures look: one colour per source in all of them, quiet axes, the legend outside; and figures as SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mtf.errors import ConfigError
from mtf.report.pictures.hover import hover

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Told apart by people with any kind of colour vision, on white and on near black: Okabe and Ito's colours, their black
#: and yellow replaced.
COLORS = ("#0b78b8", "#e69a0c", "#05a077", "#cc6fa5", "#d1570f", "#5cb9ea", "#7a55e7", "#86ae5d")
INK, MUTED, GRID = "#1c1e22", "#80858d", "#9aa0a8"
DASHED = (0, (4, 2))
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 10.0, 1.45, 1.9, 0.35, 0.5  # inches
_MAX_CHARS = 18
_SETTINGS: Any = {  # of matplotlib
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "savefig.dpi": 150,
    "svg.fonttype": "none",
}


@contextmanager
def drawing(*heights: float, shares_x: bool = True) -> Iterator[tuple[Figure, list[Axes]]]:
    """A new figure of panels below each other, while its settings hold.

    Panels begin and end at the same place in every figure, so that steps lie below each other on a page.

    Args:
        heights: of the panels, in inches.
        shares_x: whether the panels have the steps of the lowest.

    Raises:
        ConfigError: matplotlib isn't installed.
    """
    try:
        import matplotlib

        from mtf.report.pictures.figure import ShownFigure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install 'mtf-torch[plot]'") from error
    gap = 0.45 if shares_x else 0.85
    total = _TOP + sum(heights) + gap * (len(heights) - 1) + _BOTTOM
    with matplotlib.rc_context(_SETTINGS):
        figure: Figure = ShownFigure(figsize=(_WIDTH, total))
        panels: list[Axes] = []
        top = total - _TOP
        for height in heights:
            box = (_LEFT / _WIDTH, (top - height) / total, (_WIDTH - _LEFT - _RIGHT) / _WIDTH, height / total)
            panels.append(figure.add_axes(box, sharex=panels[0] if shares_x and panels else None))
            top -= height + gap
        if shares_x:
            for axes in panels[:-1]:
                axes.tick_params(labelbottom=False)
        yield figure, panels


class Palette:
    """Colours of sources, the same in every picture of a run.

    Up to eight sources have one each, in their order. Of more, the seven that gave most have one and the others are
    grey: nobody can tell twenty colours apart.

    Args:
        names: of all sources.
        weights: how much each matters, such as its draws.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        self.names = list(names)
        if len(names) <= len(COLORS):
            self.shown = list(range(len(names)))
        else:
            order = sorted(range(len(names)), key=lambda i: (-weights[i], i))
            self.shown = sorted(order[: len(COLORS) - 1])
        self._colors = {i: COLORS[n] for n, i in enumerate(self.shown)}

    def __repr__(self) -> str:
        return f"Palette({', '.join(f'{self.names[i]}: {self[i]}' for i in self.shown)}, {len(self.others)} others)"

    def __getitem__(self, index: int) -> str:
        return self._colors.get(index, MUTED)

    def of(self, name: str) -> str:
        """The colour of a source; ink for what is none."""
        return self[self.names.index(name)] if name in self.names else INK

    @property
    def others(self) -> list[int]:
        """Sources without a colour of their own."""
        return [i for i in range(len(self.names)) if i not in self._colors]

    def entries(
        self, draw: Any, order: Sequence[int] | None = None, limit: int = _MAX_CHARS
    ) -> tuple[list[Any], list[str]]:
        """Handles and labels of a legend.

        Args:
            draw: colour -> handle.
            order: sources from top to bottom; default their own.
            limit: characters of a name that are shown at most.
        """
        shown = [i for i in order if i in self._colors] if order is not None else self.shown
        handles, labels = [draw(self[i]) for i in shown], [shorten(self.names[i], limit) for i in shown]
        if self.others:
            handles.append(draw(MUTED))
            labels.append(f"{len(self.others)} others")
        return handles, labels


def shorten(name: str, limit: int = _MAX_CHARS) -> str:
    """``name``, its middle left out where it is long; nothing in it is taken for mathematics."""
    if len(name) > limit:
        head = limit * 2 // 3
        name = f"{name[:head]}…{name[head + 1 - limit :]}"
    return name.replace("$", r"\$")


def legend(axes: Axes, handles: Sequence[Any], labels: Sequence[str], title: str | None = None) -> None:
    """Outside, to the right of the axes."""
    axes.legend(
        handles, labels, title=title, loc="upper left", bbox_to_anchor=(1.015, 1.03), borderaxespad=0, handlelength=1.6,
        alignment="left",
    )  # fmt: skip


def svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element for a page: its text and axes take the page's colour.

    Args:
        figure: of this package.
        name: what it shows, for readers who can't see it; also keeps its ids apart from those of others.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        # The text stays text: the page's fonts draw it, which know more letters than matplotlib's own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names that all figures share, used by nothing
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text, count=2)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor").replace("'DejaVu Sans', ", "")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    text = re.sub(r"\s*\n\s*", "\n", text)
    # A hundredth of a point is more than anybody sees, and half the size.
    text = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", " ".join(path[0].split())), text)
    text = text.replace("</svg>", f"{hover(figure)}</svg>")
    label = name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def thousands(axis: Any) -> None:
    """Whole numbers with separators on an axis of steps."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def percent(axis: Any) -> None:
    """Shares as percentages on an axis."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0))
    axis.axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
