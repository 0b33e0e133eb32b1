"""What checkpoints lie in a directory, and which of them is the newest valid one. Imports no torch."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtf.checkpoint.format.manifest import read_manifest
from mtf.checkpoint.format.naming import NameTemplate
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.transaction import is_checkpoint
from mtf.errors import CheckpointError

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A directory that is a checkpoint or should be one."""

    path: Path
    name: str  # the name it was saved under, also when it was moved aside since
    ours: bool  # whether the run's template makes that name
    step: int
    sequence: int  # counts the saves of a run through all its restarts; 0 where it isn't known
    metrics: dict[str, Any]
    error: str | None  # why the manifest can't be used; None if it can


def scan(root: Path, template: NameTemplate) -> list[Candidate]:
    """All candidates in ``root``, oldest first. Reads manifests only. Links are never followed."""
    found = []
    try:
        entries = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{root}: can't be listed: {error.strerror}") from error
    for entry in entries:
        path = root / entry
        name = entry
        if (hidden := local.parse_hidden_sibling(entry)) is not None:
            # A save without an atomic exchange was killed between its two renames.
            if hidden[1] != local.ROLE_OLD or (root / hidden[0]).exists():
                continue
            name = hidden[0]
        step = template.step_of(name)
        if path.is_symlink() or not path.is_dir() or (step is None and not is_checkpoint(path)):
            continue
        found.append(_candidate(path, name, step))
    return _oldest_first(found)


def _oldest_first(candidates: list[Candidate]) -> list[Candidate]:
    """By the count of saves, which goes up also when a run went back to an older step; by step if one lacks it."""
    counted = all(candidate.sequence > 0 for candidate in candidates if candidate.error is None)

    def key(candidate: Candidate) -> tuple[int, int, str]:
        return (candidate.sequence if counted else candidate.step, candidate.step, candidate.name)

    return sorted(candidates, key=key)


def _candidate(path: Path, name: str, step: int | None) -> Candidate:
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return Candidate(path, name, step is not None, step or 0, 0, {}, str(error))
    sequence = manifest.get("sequence")
    metrics = manifest.get("metrics")
    return Candidate(
        path,
        name,
        step is not None,
        manifest["step"],
        sequence if type(sequence) is int else 0,
        metrics if isinstance(metrics, dict) else {},
        None,
    )


def newest_valid(candidates: Sequence[Candidate], load: Callable[[Path], T]) -> tuple[T | None, list[Candidate]]:
    """What ``load`` gives for the newest (last) candidate that it accepts, and the damaged ones met on the way.

    Every damaged one is reported by a warning with file and reason.

    Raises:
        CheckpointError: there are candidates and none is valid. Starting from scratch is never decided here.
    """
    damaged = [candidate for candidate in candidates if candidate.error is not None]
    reasons = [str(candidate.error) for candidate in damaged]
    result: T | None = None
    for candidate in reversed(candidates):
        if candidate.error is not None:
            continue
        try:
            result = load(candidate.path)
            break
        except CheckpointError as error:
            damaged.append(candidate)
            reasons.append(str(error))
    if result is None and candidates:
        raise CheckpointError(
            f"{candidates[0].path.parent}: there are {len(candidates)} checkpoints and none can be used; "
            f"move them away to start from scratch. {'; '.join(reasons)}"
        )
    for reason in reasons:
        warnings.warn(
            f"a checkpoint can't be used and is left alone; remove it when you don't need it: {reason}",
            local.CheckpointWarning,
            stacklevel=3,
        )
    return result, damaged


def metric_value(metrics: dict[str, Any], name: str | None) -> float | None:
    """The metric as a number that can be compared; None if it is missing or not a number."""
    value = metrics.get(name) if name is not None else None
    if isinstance(value, dict) and set(value) == {"$float"}:
        value = {"7ff0000000000000": math.inf, "fff0000000000000": -math.inf}.get(str(value["$float"]))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)


def is_better(value: float, than: float | None, mode: Literal["min", "max"]) -> bool:
    """Whether ``value`` improves on ``than``; anything improves on None, nothing on itself."""
    return than is None or (value < than if mode == "min" else value > than)


def best(candidates: Sequence[Candidate], metric: str | None, mode: Literal["min", "max"]) -> Candidate | None:
    """The candidate with the best metric; of equals the oldest."""
    chosen: Candidate | None = None
    chosen_value: float | None = None
    for candidate in candidates:
        value = None if candidate.error is not None else metric_value(candidate.metrics, metric)
        if value is not None and is_better(value, chosen_value, mode):
            chosen, chosen_value = candidate, value
    return chosen
