"""Where the parts of a run lie: metrics, run log and checkpoints, from whichever folder of it somebody names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from mtf.checkpoint.storage.registry import open_checkpoint
from mtf.checkpoint.storage.transaction import has_manifest, is_checkpoint
from mtf.errors import ConfigError
from mtf.loggers.files import SET_ASIDE
from mtf.loggers.run_log import RUN_LOG_NAME
from mtf.report.kept import KeptCheckpoint, kept_at, kept_in
from mtf.report.metrics import ROWS_NAMES

_MAX_DEPTH = 4
_MAX_FOLDERS = 5000


@dataclass
class Place:
    """The files of one run.

    Attributes:
        root: the folder, or the URL, that was named.
        metrics: file of rows, or folder of event files; None where nothing was logged to files.
        run_log: ``run.jsonl``; None in a run that logged elsewhere.
        checkpoints: those that it kept, by name.
    """

    root: Path | str
    metrics: Path | None = None
    run_log: Path | None = None
    checkpoints: list[KeptCheckpoint] = field(default_factory=list)


def locate(root: Path) -> Place:
    """Looks for a run in ``root`` and a few levels below.

    Raises:
        ConfigError: there is no run, or there are several; says what was looked for, or which they are.
    """
    if not root.exists():
        raise ConfigError(f"{root}: there is no such folder")
    if root.is_file():
        root = root.parent
    if is_checkpoint(root):
        root = root.parent
    folders = _folders(root)
    checkpoints = [folder for folder in folders if is_checkpoint(folder)]
    place = Place(root, checkpoints=kept_at(checkpoints))
    logs = {folder: found for folder in folders if (found := _metrics_in(folder)) is not None}
    run_logs = [folder for folder in folders if (folder / RUN_LOG_NAME).is_file()]
    runs = list(dict.fromkeys([*run_logs, *logs]))
    _require_one(root, runs, "runs")
    if runs:
        place.metrics = logs.get(runs[0])
        place.run_log = runs[0] / RUN_LOG_NAME if runs[0] in run_logs else None
    else:
        # Only a log tells which checkpoints are of one run.
        _require_one(root, list(dict.fromkeys(folder.parent for folder in checkpoints)), "folders of checkpoints")
    if not runs and not place.checkpoints:
        raise ConfigError(
            f"{root}: is no run: neither {', '.join(ROWS_NAMES)}, {RUN_LOG_NAME} or TensorBoard's event files (as "
            "logging.logger_type='jsonl', 'csv' or 'tensorboard' write them) nor a checkpoint lies in it"
        )
    return place


def _require_one(root: Path, found: list[Path], what: str) -> None:
    if len(found) > 1:
        named = ", ".join(str(folder.relative_to(root)) for folder in found[:8]) + (", ..." if len(found) > 8 else "")
        raise ConfigError(f"{root}: holds {len(found)} {what}, name one of them: {named}")


def locate_url(url: str) -> Place:
    """The checkpoints that lie at a URL; logs are never there.

    Raises:
        ConfigError: there is no checkpoint.
        CheckpointIOError: the store can't be read.
    """
    url = url.rstrip("/")
    if has_manifest(open_checkpoint(url)):
        url = url.rpartition("/")[0]
    found = kept_in(url)
    if not found:
        raise ConfigError(f"{url}: is no run: no checkpoint lies there")
    return Place(url, checkpoints=found)


def checkpoints_in(place: Path | str) -> list[KeptCheckpoint]:
    """The checkpoints directly in a folder or at a URL; none where it is missing."""
    if isinstance(place, str):
        return kept_in(place)
    return kept_at(sorted(path for path in place.iterdir() if is_checkpoint(path))) if place.is_dir() else []


def _folders(root: Path) -> list[Path]:
    """``root`` and what lies below it, without the insides of checkpoints, hidden folders, links, and logs of earlier
    runs that a new one has set aside."""
    found, level = [root], [root]
    for _ in range(_MAX_DEPTH):
        below: list[Path] = []
        for folder in level:
            if is_checkpoint(folder) or len(found) > _MAX_FOLDERS:
                continue
            with os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != ".")
            below += [folder / name for name in names if not name.startswith(SET_ASIDE)]
        found += below
        level = below
    return found


def _metrics_in(folder: Path) -> Path | None:
    for name in ROWS_NAMES:
        if (folder / name).is_file():
            return folder / name
    return folder if any(folder.glob("events.out.tfevents.*")) else None
