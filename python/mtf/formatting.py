"""What objects look like in a shell, a debugger and a notebook: short lines and small tables, never their contents."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)

_PLAIN = (bool, int, float, str, type(None))
_MAX_TEXT = 60
_MAX_ITEMS = 4
_MAX_DEPTH = 3


def plain_repr(thing: object, *first: str, leave_out: Iterable[str] = ()) -> str:
    """``Name(first, attribute=value, ...)`` with the public attributes of ``thing`` that are numbers or text.

    Args:
        thing: the object.
        first: what stands before the attributes.
        leave_out: names of attributes that say nothing.
    """
    attributes = getattr(thing, "__dict__", {})
    shown = [
        f"{name}={shortened(repr(value))}"
        for name, value in attributes.items()
        if not name.startswith("_") and isinstance(value, _PLAIN) and name not in leave_out
    ]
    return f"{type(thing).__name__}({', '.join([*first, *shown])})"


def shortened(text: str) -> str:
    """``text``, cut in its middle where it is long."""
    if len(text) <= _MAX_TEXT:
        return text
    half = (_MAX_TEXT - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def outline(data: Any, depth: int = 0) -> str:
    """The structure of a batch: ``{'x': float32[32, 64], 'y': int64[32]}``. Reads no element of any tensor."""
    shape, dtype = getattr(data, "shape", None), getattr(data, "dtype", None)
    if shape is not None and dtype is not None:
        sizes = ", ".join(str(size) for size in shape)
        device = str(getattr(data, "device", "cpu"))
        return f"{str(dtype).removeprefix('torch.')}[{sizes}]" + ("" if device == "cpu" else f" on {device}")
    if isinstance(data, _PLAIN):
        return shortened(repr(data))
    if depth == _MAX_DEPTH:
        return "..."
    if isinstance(data, Mapping):
        items = [f"{key!r}: {outline(data[key], depth + 1)}" for key in list(data)[:_MAX_ITEMS]]
        return "{" + ", ".join([*items, *_rest(data)]) + "}"
    if isinstance(data, (list, tuple)):
        items = [outline(item, depth + 1) for item in data[:_MAX_ITEMS]]
        inside = ", ".join([*items, *_rest(data)])
        return f"[{inside}]" if isinstance(data, list) else f"({inside})"
    return f"<{type(data).__name__}>"


def _rest(data: Any) -> list[str]:
    return [f"{len(data) - _MAX_ITEMS} more"] if len(data) > _MAX_ITEMS else []


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A title and a table; everything is escaped.

    Args:
        title: stands above the table.
        columns: heads of the columns; empty for none.
        rows: their cells, shown by ``str``; None as nothing.
    """
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{'' if cell is None else html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f"<p><b>{html.escape(title)}</b></p><table>"
        + (f"<thead><tr>{head}</tr></thead>" if columns else "")
        + f"<tbody>{body}</tbody></table>"
    )


def duration(seconds: float) -> str:
    """``42 s``, ``12 min 5 s`` or ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A title and an indented table for a shell; numbers stand to the right, and None is a dash.

    Args:
        title: stands above the table.
        columns: heads of the columns.
        rows: their cells.
    """
    body = list(rows)
    cells = [list(columns), *(["-" if cell is None else str(cell) for cell in row] for row in body)]
    widths = [max(len(row[c]) for row in cells) for c in range(len(columns))]
    numeric = [all(isinstance(row[c], int | float | type(None)) for row in body) for c in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, numeric, strict=True)
        )
        for row in cells
    ]
    return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)])


def shown_alone(error: E) -> E:
    """``error``, of which a notebook shows the message and no traceback: it says all, and nothing went wrong."""
    error._render_traceback_ = lambda: [f"{type(error).__name__}: {error}"]  # type: ignore[attr-defined]  # IPython's
    return error
