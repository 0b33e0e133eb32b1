"""The logger that a configuration asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mtf.config.logging import LoggingConfig
from mtf.loggers.base import Logger, RunInfo


class NoLogger(Logger):
    """``logger_type="none"``."""

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Nothing."""


def make_logger(config: LoggingConfig, info: RunInfo) -> Logger:
    """Opens the logger that ``config.logger_type`` names.

    Raises:
        ConfigError: the package it needs isn't installed; says how to get it.
    """
    if config.logger_type == "composite":
        from mtf.loggers.composite import CompositeLogger

        kinds = dict.fromkeys(config.composite_loggers)
        return CompositeLogger(
            {kind: _make(kind, config, dataclasses.replace(info, state=info.state.get(kind, {}))) for kind in kinds}
        )
    return _make(config.logger_type, config, info)


def _make(kind: str, config: LoggingConfig, info: RunInfo) -> Logger:
    directory = Path(config.log_dir) / info.name
    if kind == "console":
        from mtf.loggers.console import ConsoleLogger

        return ConsoleLogger()
    if kind == "jsonl":
        from mtf.loggers.jsonl import JsonlLogger

        return JsonlLogger(directory / "metrics.jsonl", info)
    if kind == "csv":
        from mtf.loggers.csv import CsvLogger

        return CsvLogger(directory / "metrics.csv", info)
    if kind == "tensorboard":
        from mtf.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(config.tensorboard_log_dir or directory, info)
    if kind == "wandb":
        from mtf.loggers.wandb import WandbLogger

        return WandbLogger(config, info)
    if kind == "mlflow":
        from mtf.loggers.mlflow import MlflowLogger

        return MlflowLogger(config, info)
    return NoLogger()
