"""What must be equal on all ranks, compared by one small reduction; named in full only where it differs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtf.checkpoint.storage.local import host_name
from mtf.errors import ConfigError

AllReduceMax = Callable[[Sequence[int]], list[int]]
Gather = Callable[[Any], list[Any]]


def fingerprint(fields: Mapping[str, Any]) -> int:
    """63 bits of a hash of plain data, the same in every process."""
    text = json.dumps(_flat(fields), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def require_equal(what: str, fields: Mapping[str, Any], all_reduce_max: AllReduceMax, gather: Gather) -> None:
    """Compares ``fields`` (nested plain data) on all ranks. A collective: one reduction of two integers if all is well.

    Args:
        what: what the fields describe, for the message.
        fields: name -> value.
        all_reduce_max: elementwise largest over all ranks.
        gather: every rank's value.

    Raises:
        ConfigError: on every rank; names each field that differs, its values and the ranks that have them.
    """
    own = fingerprint(fields)
    high, low = all_reduce_max([own, -own])
    if high == -low:
        return
    everywhere = gather((_flat(fields), host_name()))
    differences = describe_differences([there for there, _ in everywhere], hosts=[host for _, host in everywhere])
    raise ConfigError(f"the ranks don't agree on {what}:\n  " + "\n  ".join(differences))


def describe_differences(
    per_rank: Sequence[Mapping[str, str]], limit: int = 10, hosts: Sequence[str] | None = None
) -> list[str]:
    """A line for each field that isn't equal on all ranks; the value that most ranks have comes first.

    Args:
        per_rank: by rank, name of a field -> value.
        limit: lines; what is left out is counted.
        hosts: by rank, its machine; named where there are several.
    """
    lines = []
    for name in sorted({name for fields in per_rank for name in fields}):
        values = [fields.get(name, "missing") for fields in per_rank]
        if len(set(values)) == 1:
            continue
        groups = [
            f"{_short(value)} on {name_ranks([rank for rank, v in enumerate(values) if v == value], hosts)}"
            for value, _ in Counter(values).most_common()
        ]
        lines.append(f"{name}: {', '.join(groups)}")
    return lines if len(lines) <= limit else [*lines[:limit], f"and {len(lines) - limit} more fields"]


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Leaves of nested plain data by dotted path, each as JSON."""
    if isinstance(value, Mapping):
        found: dict[str, str] = {}
        for key, inner in value.items():
            found.update(_flat(inner, f"{path}.{key}" if path else str(key)))
        return found
    return {path: json.dumps(value, default=str)}


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."


def name_ranks(ranks: Sequence[int], hosts: Sequence[str] | None = None) -> str:
    """``rank 3 (node2)``, ``ranks 0, 1``; hosts only where there are several."""
    several = hosts is not None and len(set(hosts)) > 1
    named = [f"{rank} ({hosts[rank]})" if several and hosts is not None else str(rank) for rank in ranks[:8]]
    shown = ", ".join(named) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
