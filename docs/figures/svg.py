"""A few shapes as SVG text. Colours follow the page's theme when it is inlined, the system's when it is an image."""

from __future__ import annotations

from html import escape
from typing import Literal

#: One colour per source, readable on light and dark grounds and under white letters.
COLOURS = ("#3b76b8", "#c8702a", "#3f8f5f", "#8a63c4")

Ink = Literal["ink", "muted", "rule"]
Anchor = Literal["start", "middle", "end"]

#: A colour of a page's theme -> (furo's name for it, on light ground, on dark ground).
_THEME = {
    "ink": ("--color-foreground-primary", "#1f2328", "#e6edf3"),
    "muted": ("--color-foreground-muted", "#636c76", "#9aa4af"),
    "rule": ("--color-background-border", "#c4ccd4", "#4a525b"),
}
_FONT = '-apple-system,BlinkMacSystemFont,"Segoe UI",Helvetica,Arial,"DejaVu Sans",sans-serif'


class Canvas:
    """Shapes on a transparent ground; lengths are in pixels at the natural size."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = "none", radius: float = 2, opacity: float = 1
    ) -> None:
        """A rectangle filled with ``fill``; an outline in the colour of rules where that is "none"."""
        outline = ' style="stroke:var(--mtf-rule)"' if fill == "none" else ""
        faint = "" if opacity == 1 else f' opacity="{opacity:g}"'
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"'
        self._shapes.append(f'<rect {place} fill="{fill}"{outline}{faint}/>')

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 13,
        ink: Ink | str = "ink",
        anchor: Anchor = "start",
        bold: bool = False,
    ) -> None:
        """One line; ``y`` is its base line. ``ink``: a theme colour or a fixed one."""
        weight = ' font-weight="600"' if bold else ""
        place = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{weight}'
        self._shapes.append(f'<text {place} style="fill:{_colour(ink)}">{escape(text)}</text>')

    def line(
        self, points: list[tuple[float, float]], ink: Ink | str = "rule", width: float = 1, dashed: bool = False
    ) -> None:
        """A line through ``points``."""
        at = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        self._shapes.append(
            f'<polyline points="{at}" fill="none" stroke-width="{width:g}"{dashes} style="stroke:{_colour(ink)}"/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float, ink: Ink | str = "muted") -> None:
        """A straight horizontal or vertical arrow."""
        self.line([(x, y), (to_x, to_y)], ink, 1.5)
        dx, dy = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
        left = (to_x - 6 * dx - 4 * dy, to_y - 6 * dy - 4 * dx)
        right = (to_x - 6 * dx + 4 * dy, to_y - 6 * dy + 4 * dx)
        self.line([left, (to_x, to_y), right], ink, 1.5)

    def brace(self, x: float, to_x: float, y: float, label: str, below: bool = True, size: float = 12) -> None:
        """A bracket over or under [x, to_x) with its label."""
        tip = y + (5 if below else -5)
        self.line([(x + 1, y), (x + 1, tip), (to_x - 1, tip), (to_x - 1, y)], "muted")
        self.text((x + to_x) / 2, tip + (size + 3 if below else -5), label, size, "muted", "middle")

    def cell(self, x: float, y: float, source: int, label: str = "", size: float = 22, opacity: float = 1) -> None:
        """A batch of a source, with a letter in it."""
        self.box(x, y, size - 2, size - 2, COLOURS[source], 3, opacity)
        if label:
            self.text(x + (size - 2) / 2, y + (size - 2) / 2 + 4.2, label, 12, "#ffffff", "middle", bold=True)

    def svg(self) -> str:
        """The picture as a document."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="mtf-figure" role="img" width="{self.width:g}" '
            f'height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}">'
        )
        return "\n".join(
            [head, f"<title>{escape(self.title)}</title>", f"<style>{_style()}</style>", *self._shapes, "</svg>\n"]
        )


def _colour(ink: str) -> str:
    return ink if ink.startswith("#") else f"var(--mtf-{ink})"


def _style() -> str:
    """The theme's colours where the picture is part of a page, else those of the system's light or dark mode."""

    def colours(mode: int) -> str:
        return "".join(f"--mtf-{ink}:var({names[0]},{names[mode]});" for ink, names in _THEME.items())

    return (
        f"\n.mtf-figure{{{colours(1)}max-width:100%;height:auto}}"
        f"\n@media (prefers-color-scheme:dark){{.mtf-figure{{{colours(2)}}}}}"
        f"\n.mtf-figure text{{font-family:{_FONT}}}\n"
    )
