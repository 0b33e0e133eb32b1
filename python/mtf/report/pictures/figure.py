"""The figure that all pictures are drawn on."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that a notebook shows as a picture.

    A notebook knows how to show matplotlib's own only once pyplot was imported, which these pictures don't need.
    """

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
