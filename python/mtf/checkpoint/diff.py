"""What differs between two checkpoints (``mtf diff``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mtf.checkpoint.compare import CLOCK_METRICS, differences
from mtf.checkpoint.format.layout import Checkpoint, read
from mtf.checkpoint.format.tree_path import format_path

# Members of the manifest that differ between any two saves and say nothing about training.
_INCIDENTAL = (
    *(
        "sha256",
        "format",
        "run",
        "experiment",
        "files",
        "sequence",
        "time",
        "time_s",
        "created",
        "mtf_version",
        "torch_version",
    ),
    "data",  # how the rows of the loaders are numbered, where they were at hand
)
# Settings that say where files lie, which no update depends on: a run and its repetition have folders of their own.
_PLACES = (
    *(("checkpoint", "root_dir"), ("logging", "log_dir"), ("logging", "tensorboard_log_dir")),
    ("experiment_name",),  # the folder of the logs
)


@dataclass(frozen=True)
class Entry:
    """One difference.

    Attributes:
        part: ``manifest``, ``model``, ``state`` or ``schedule``.
        place: where in it, such as ``model['head.weight']``.
        reason: what is in the first and what in the second.
    """

    part: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, repr=False)
class CheckpointDiff:
    """What :func:`diff_checkpoints` found, first against second."""

    first: str
    second: str
    entries: list[Entry]
    complete: bool  # False: there are more than the limit

    @property
    def equal(self) -> bool:
        """Whether training would go on from both in the same way."""
        return not self.entries

    def __repr__(self) -> str:
        """How much differs."""
        more = "" if self.complete else " or more"
        found = "equal" if self.equal else f"{len(self.entries)}{more} differences"
        return f"CheckpointDiff({self.first!r}, {self.second!r}, {found})"

    def text(self) -> str:
        """A page for people."""
        if self.equal:
            return f"{self.first} and {self.second} hold the same state, bit for bit"
        lines = [f"{self.first} against {self.second}"]
        lines += [f"  {entry}" for entry in self.entries]
        if not self.complete:
            lines.append("  ... and more")
        return "\n".join(lines)


def diff_checkpoints(first: str | Path, second: str | Path, limit: int = 100) -> CheckpointDiff:
    """Compares two checkpoints bit for bit, after both were verified.

    Args:
        first: a checkpoint directory.
        second: another.
        limit: at most so many entries.

    Raises:
        CheckpointError: one of them is damaged or no checkpoint.
    """
    found = list(islice(_entries(read(first), read(second)), limit + 1))
    return CheckpointDiff(str(first), str(second), found[:limit], len(found) <= limit)


def _entries(a: Checkpoint, b: Checkpoint) -> Iterator[Entry]:
    pairs: list[tuple[str, Any, Any]] = [
        ("manifest", _telling(a.manifest), _telling(b.manifest)),
        ("model", a.model, b.model),
        ("state", a.state, b.state),
    ]
    for part, left, right in pairs:
        for difference in differences(left, right, (part,)):
            yield Entry(part, format_path(difference.path), difference.reason)
    if a.schedule != b.schedule:
        yield Entry(
            "schedule", "schedule", f"{len(a.schedule)} bytes against {len(b.schedule)}, or other positions in them"
        )


def _telling(manifest: dict[str, Any]) -> dict[str, Any]:
    telling = {name: value for name, value in manifest.items() if name not in _INCIDENTAL}
    metrics = telling.get("metrics")
    if isinstance(metrics, dict):
        telling["metrics"] = {name: value for name, value in metrics.items() if not name.startswith(CLOCK_METRICS)}
    config = telling.get("config")
    if isinstance(config, dict):
        telling["config"] = _without_places(config)
    return telling


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    kept = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    for *outer, name in _PLACES:
        inner = kept.get(outer[0]) if outer else kept
        if isinstance(inner, dict):
            inner.pop(name, None)
    return kept
