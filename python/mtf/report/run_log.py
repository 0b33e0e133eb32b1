"""``run.jsonl``, read: the sessions of a run, its configuration, and states of its schedule."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mtf.checkpoint.storage.registry import is_url
from mtf.errors import ConfigError, MtfError
from mtf.loggers.run_log import FORMAT
from mtf.schedule.schedule import Schedule


@dataclass
class Session:
    """One process of a run, from its start to its last sign.

    Attributes:
        first_update: updates done when it began; above 0 where the run went on.
        last_update: updates done when ``fit`` returned last; None while it runs, and where it broke off.
        start_s: when it began, seconds since 1970.
        end_s: when ``fit`` returned last.
        reason: why ``fit`` was asked to return; None where it came to its end.
        world_size: number of ranks.
        versions: of mtf, torch and Python.
        host: name of the machine of rank 0.
        command: how the process was started.
        commit: of the repository that it was started in, with ``+`` where files were changed; None outside one.
    """

    first_update: int
    start_s: float
    world_size: int
    versions: dict[str, str]
    last_update: int | None = None
    end_s: float | None = None
    reason: str | None = None
    host: str | None = None
    command: str | None = None
    commit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass
class RunLogContent:
    """What a run log says.

    Attributes:
        name: of the experiment.
        config: plain data, of the latest session.
        checkpoints: the folder of the checkpoints, or its URL; None where the run log doesn't say.
        sessions: in order.
        schedules: states in order; those that a resume from an earlier update has replaced are left out.
        errors: states that can't be used, and why.
    """

    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    checkpoints: Path | str | None = None
    sessions: list[Session] = field(default_factory=list)
    schedules: list[tuple[int, Schedule]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def read_run_log(path: Path) -> RunLogContent:
    """Reads a run log; half a line, which a killed process left, is skipped.

    Raises:
        ConfigError: written by a newer mtf.
    """
    content = RunLogContent()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
            kind = event["event"]
        except (ValueError, KeyError, TypeError):
            continue
        if kind == "start":
            if event["format"] > FORMAT:
                raise ConfigError(f"{path}: was written by a newer mtf (format {event['format']}, known: {FORMAT})")
            content.name, content.config = event["name"], event["config"]
            if event["checkpoints"] is not None:
                place = event["checkpoints"]
                content.checkpoints = place if is_url(place) else (path.parent / place).resolve()
            content.schedules = [entry for entry in content.schedules if entry[0] <= event["update"]]
            content.sessions.append(
                Session(
                    event["update"],
                    event["time_s"],
                    event["world_size"],
                    dict(event["versions"]),
                    **{name: event.get(name) for name in ("host", "command", "commit")},
                )
            )
        elif kind == "schedule":
            try:
                content.schedules.append((event["update"], Schedule.from_bytes(base64.b64decode(event["state"]))))
            except (MtfError, ValueError) as error:
                content.errors.append(f"The schedule's state after update {event['update']} can't be read: {error}.")
        elif kind == "pause" and content.sessions:
            session = content.sessions[-1]
            session.last_update, session.end_s, session.reason = event["update"], event["time_s"], event["reason"]
    return content
