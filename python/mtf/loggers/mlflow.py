"""Rows in an MLflow run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mtf.config.logging import LoggingConfig
from mtf.errors import ConfigError
from mtf.loggers.base import Logger, RunInfo

_MAX_PARAM = 500  # characters; MLflow's oldest servers refuse longer values


class MlflowLogger(Logger):
    """Logs to an MLflow server or folder; a resumed run continues in the same MLflow run."""

    def __init__(self, config: LoggingConfig, info: RunInfo) -> None:
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ConfigError("logger_type 'mlflow' needs mlflow: pip install 'mtf-torch[mlflow]'") from error
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=config.mlflow_tracking_uri)
        if "run_id" in info.state:
            self._run_id = str(info.state["run_id"])
            self._client.update_run(self._run_id, status="RUNNING")
            return
        name = config.mlflow_experiment or info.name
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        self._run_id = self._client.create_run(experiment, run_name=info.name).info.run_id
        for key, value in _flat(info.config).items():
            self._client.log_param(self._run_id, _allowed(key), value[:_MAX_PARAM])

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """As the constructor."""
        return cls(config, info)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """One batch of metrics."""
        import time

        now_ms = int(time.time() * 1000)
        metrics = [self._metric(_allowed(name), value, now_ms, step) for name, value in row.items()]
        self._client.log_batch(self._run_id, metrics)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """One image among the run's artifacts."""
        self._client.log_figure(self._run_id, figure, f"{name}/step-{step:08d}.png")

    def state_dict(self) -> dict[str, Any]:
        """The run's id."""
        return {"run_id": self._run_id}

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run_id)


def _allowed(name: str) -> str:
    """``name`` with an underscore for each character that MLflow refuses, and the whole row with it."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
