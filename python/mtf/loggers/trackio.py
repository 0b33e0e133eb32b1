"""Rows in a Trackio run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtf.config.logging import LoggingConfig
from mtf.errors import ConfigError
from mtf.loggers.base import Logger, RunInfo


class TrackioLogger(Logger):
    """Logs to Trackio's local database; a resumed run continues in the same Trackio run."""

    def __init__(self, project: str, info: RunInfo) -> None:
        try:
            import trackio
        except ImportError as error:
            raise ConfigError("logger_type 'trackio' needs trackio: pip install 'mtf-torch[trackio]'") from error
        known = info.state.get("run_name")
        self._run: Any = trackio.init(
            project=project,
            name=known or info.name,
            config=dict(info.config),
            resume="allow" if known else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """Opens the run in the project ``trackio_project``, or the experiment's name."""
        return cls(config.trackio_project or info.name, info)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """One row; ``step`` is the x axis."""
        self._run.log(dict(row), step=step)

    def state_dict(self) -> dict[str, Any]:
        """The run's name, by which Trackio finds it again."""
        return {"run_name": self._run.name}

    def close(self) -> None:
        """Writes what is buffered and ends the run."""
        self._run.finish()
