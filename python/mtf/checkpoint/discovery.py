"""What checkpoints lie in a directory, and which of them is the newest valid one. Imports no torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mtf.call_site import user_level
from mtf.checkpoint.format.manifest import read_manifest
from mtf.checkpoint.format.naming import NameTemplate
from mtf.checkpoint.storage import local
from mtf.checkpoint.storage.base import Storage
from mtf.checkpoint.storage.root import Entry, Root
from mtf.errors import CheckpointError, CheckpointIOError

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A directory that is a checkpoint or should be one."""

    folder: Storage
    name: str  # the name it was saved under, also when it was moved aside since
    ours: bool  # whether the run's template makes that name
    step: int
    sequence: int  # counts the saves of a run through all its restarts; 0 where it isn't known
    metrics: dict[str, Any]
    error: str | None  # why the manifest can't be used; None if it can
    run: str | None = None  # of which run; None where it wasn't kept


def scan(root: Root, template: NameTemplate) -> list[Candidate]:
    """All candidates in ``root``, oldest first. Reads manifests only.

    Raises:
        CheckpointError: it can't be listed.
        CheckpointIOError: a manifest can't be read, though it is there.
    """
    found = []
    for entry in root.entries():
        step = template.step_of(entry.name)
        if step is not None or entry.has_manifest:
            found.append(_candidate(entry, step))
    return _oldest_first(found)


def _oldest_first(candidates: list[Candidate]) -> list[Candidate]:
    """By the count of saves, which goes up also when a run went back to an older step; by step if one lacks it."""
    counted = all(candidate.sequence > 0 for candidate in candidates if candidate.error is None)

    def key(candidate: Candidate) -> tuple[int, int, str]:
        return (candidate.sequence if counted else candidate.step, candidate.step, candidate.name)

    return sorted(candidates, key=key)


def _candidate(entry: Entry, step: int | None) -> Candidate:
    try:
        manifest = read_manifest(entry.folder)
    except CheckpointIOError:
        raise
    except CheckpointError as error:
        return Candidate(entry.folder, entry.name, step is not None, step or 0, 0, {}, str(error))
    sequence = manifest.get("sequence")
    metrics = manifest.get("metrics")
    return Candidate(
        entry.folder,
        entry.name,
        step is not None,
        manifest["step"],
        sequence if type(sequence) is int else 0,
        metrics if isinstance(metrics, dict) else {},
        None,
        run if isinstance(run := manifest.get("run"), str) else None,
    )


def newest_valid(candidates: Sequence[Candidate], load: Callable[[Storage], T]) -> tuple[T | None, list[Candidate]]:
    """What ``load`` gives for the newest (last) candidate that it accepts, and the damaged ones met on the way.

    Every damaged one is reported by a warning with file and reason.

    Raises:
        CheckpointError: there are candidates and none is valid. Starting from scratch is never decided here.
        CheckpointIOError: the storage doesn't answer: another candidate would be older than it need be.
    """
    damaged = [candidate for candidate in candidates if candidate.error is not None]
    reasons = [str(candidate.error) for candidate in damaged]
    result: T | None = None
    for candidate in reversed(candidates):
        if candidate.error is not None:
            continue
        try:
            result = load(candidate.folder)
            break
        except CheckpointIOError:  # no damage: it may come through the next time
            raise
        except CheckpointError as error:
            damaged.append(candidate)
            reasons.append(str(error))
    # guard: fresh start
    if result is None and candidates:
        place = candidates[0].folder.url.rpartition("/")[0]
        raise CheckpointError(
            f"{place}: there are {len(candidates)} checkpoints and none can be used; "
            f"move them away to start from scratch. {'; '.join(reasons)}"
        )
    for reason in reasons:
        warnings.warn(
            f"a checkpoint can't be used and is left alone; remove it when you don't need it: {reason}",
            local.CheckpointWarning,
            stacklevel=user_level(),
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
