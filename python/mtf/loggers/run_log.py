"""What a report needs beside the rows: when a run began, went on and ended, its configuration, and its schedule."""

from __future__ import annotations

import base64
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtf.call_site import user_level
from mtf.config.logging import LoggingConfig
from mtf.loggers.base import RunInfo

RUN_LOG_NAME = "run.jsonl"
FORMAT = 1


def run_log_directory(config: LoggingConfig, name: str) -> Path | None:
    """Where the run log of run ``name`` lies: beside the file of its logger; None if no logger writes files."""
    return next(iter(log_directories(config, name)), None)


def log_directories(config: LoggingConfig, name: str) -> list[Path]:
    """Every folder in which run ``name`` writes files of its own."""
    kinds = {kind for kind in (config.logger_type, *config.composite_loggers) if isinstance(kind, str)}
    found = [Path(config.log_dir) / name] if kinds & {"jsonl", "csv"} else []
    if "tensorboard" in kinds:
        found.append(Path(config.tensorboard_log_dir or Path(config.log_dir) / name))
    return found


class RunLog:
    """Appends events to ``run.jsonl``, one JSON object per line: ``start``, ``schedule`` and ``pause``.

    A new run starts the file afresh, a resumed one appends. Readers take the later of two events about one place.

    Args:
        directory: of the run_log; made if it is missing. Where it can't be written, one warning says so.
        info: the run, as its loggers get it.
        world_size: number of ranks.
    """

    def __init__(self, directory: Path, info: RunInfo, world_size: int) -> None:
        self._path = directory / RUN_LOG_NAME
        self._failed = False
        root = info.config.get("checkpoint", {}).get("root_dir")
        self._write(
            "start",
            format=FORMAT,
            name=info.name,
            update=info.step,
            world_size=world_size,
            versions=_versions(),
            host=platform.node(),
            command=shlex.join([Path(sys.executable).name, *sys.argv]),
            commit=_commit(),
            # Relative, so that a folder that was moved or copied as a whole still says where they are.
            checkpoints=root if root is None or "://" in root else os.path.relpath(root, directory),
            config=dict(info.config),
        )

    def note_schedule(self, state: bytes, update: int) -> None:
        """Notes ``Schedule.to_bytes()`` after ``update``: it tells what is drawn in its own epoch and later ones."""
        self._write("schedule", update=update, state=base64.b64encode(state).decode("ascii"))

    def note_pause(self, update: int, epoch: int, reason: str | None) -> None:
        """Notes that ``fit`` returned after ``update``, and why if it was asked to."""
        self._write("pause", update=update, epoch=epoch, reason=reason)

    def _write(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, "time_s": round(time.time(), 3), **facts})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            is_new = event == "start" and facts["update"] == 0
            with self._path.open("w" if is_new else "a", encoding="utf-8") as file:
                # A killed process may have left half a line; readers skip it, and empty lines.
                file.write(("\n" if event == "start" and not is_new else "") + line + "\n")
        except OSError as error:
            if not self._failed:
                self._failed = True
                warnings.warn(f"{self._path} can't be written ({error}); training continues", stacklevel=user_level())


def _versions() -> Mapping[str, str]:
    import torch

    import mtf

    return {"mtf": mtf.__version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _commit() -> str | None:
    """The commit of the repository of the working directory, with ``+`` where files were changed; None outside one."""
    git = ["git", "--no-optional-locks"]
    options: Any = {"capture_output": True, "text": True, "timeout": 2, "stdin": subprocess.DEVNULL}
    try:
        head: str = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], check=True, **options).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")
