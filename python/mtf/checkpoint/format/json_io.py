"""JSON with the limits that make reading a stranger's file safe: size, number of values, nesting, no duplicates.

The same limits hold for writing, so that whatever was written can be read.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mtf.errors import CheckpointError

MAX_JSON_BYTES = 64 << 20
MAX_JSON_VALUES = 4_000_000
MAX_JSON_DEPTH = 400


def dump_json(value: Any, label: str, *, indent: int | None = None) -> bytes:
    """ASCII JSON of ``value``; NaN and infinity must have been encoded before.

    Raises:
        CheckpointError: the result would exceed what :func:`load_json` accepts.
    """
    separators = (",", ": ") if indent is not None else (",", ":")
    raw = json.dumps(value, ensure_ascii=True, allow_nan=False, indent=indent, separators=separators).encode("ascii")
    _check_limits(raw, label)
    return raw


def load_json(raw: bytes, label: str) -> Any:
    """Parses JSON strictly: ASCII or UTF-8, no duplicate keys, no NaN or Infinity literals, bounded size and nesting.

    Raises:
        CheckpointError: names ``label`` and the reason.
    """
    _check_limits(raw, label)

    def constant(name: str) -> Any:
        raise ValueError(f"the literal {name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice in one object")
        return result

    try:
        return json.loads(raw.decode("utf-8"), parse_constant=constant, object_pairs_hook=unique)
    except RecursionError:
        raise CheckpointError(f"{label}: nested deeper than any state") from None
    except ValueError as error:
        raise CheckpointError(f"{label}: is not valid JSON: {error}") from None


def _check_limits(raw: bytes, label: str) -> None:
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(
            f"{label}: {len(raw)} bytes of JSON, more than the limit of {MAX_JSON_BYTES}; put large data into tensors"
        )
    # An upper bound of the number of values, taken before any of them is created.
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > MAX_JSON_VALUES:
        raise CheckpointError(
            f"{label}: more than {MAX_JSON_VALUES} values in JSON; long lists of numbers belong into tensors"
        )
    opened = raw.count(b"[") + raw.count(b"{")
    if opened > MAX_JSON_DEPTH and _depth(raw) > MAX_JSON_DEPTH:
        raise CheckpointError(f"{label}: nested deeper than {MAX_JSON_DEPTH} levels")


def _depth(raw: bytes) -> int:
    """Deepest nesting of brackets outside strings."""
    deepest = depth = 0
    for bracket in _STRING.sub(b"", raw).translate(_BRACKET_CLASS, _NO_BRACKETS):
        depth += 1 if bracket == 1 else -1
        deepest = max(deepest, depth)
    return deepest


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NO_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_BRACKET_CLASS = bytes(1 if c in b"[{" else 2 for c in range(256))
