"""The logger that a configuration asks for, and the names of loggers."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping

from mtf.config.logging import LOGGERS, LoggingConfig
from mtf.errors import ConfigError
from mtf.loggers.base import Logger, RunInfo

LoggerFactory = Callable[[LoggingConfig, RunInfo], Logger]


class NoLogger(Logger):
    """``logger_type="none"``."""

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """Takes rows and keeps none."""
        return cls()

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Nothing."""


def register_logger(name: str, factory: LoggerFactory) -> None:
    """Makes ``logging.logger_type=name`` open a logger of your own.

    Args:
        name: a new one.
        factory: ``(config, info) -> Logger``, called on rank 0 when ``fit`` begins.

    Raises:
        ConfigError: the name is taken by another logger.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name must be a string, the name of a logger, got {name!r}")
    if not callable(factory):
        raise ConfigError(f"factory must be a function (config, info) -> Logger, got {factory!r}")
    if LOGGERS.get(name, factory) is not factory:
        raise ConfigError(f"there is already a logger called {name!r}; the names are {', '.join(LOGGERS)}")
    LOGGERS[name] = factory


def make_logger(config: LoggingConfig, info: RunInfo) -> Logger:
    """Opens the logger that ``config.logger_type`` names, or gives back the one that it is.

    Raises:
        ConfigError: the package it needs isn't installed; says how to get it.
    """
    if config.logger_type != "composite":
        return _make(config.logger_type, config, info)
    from mtf.loggers.composite import CompositeLogger

    # The name of an object is its class: a state belongs to one logger of a kind.
    kinds = {kind if isinstance(kind, str) else type(kind).__name__: kind for kind in config.composite_loggers}
    states = {name: dataclasses.replace(info, state=info.state.get(name, {})) for name in kinds}
    return CompositeLogger({name: _make(kind, config, states[name]) for name, kind in kinds.items()})


def _make(kind: object, config: LoggingConfig, info: RunInfo) -> Logger:
    if not isinstance(kind, str):
        assert isinstance(kind, Logger)  # checked by the configuration, by its methods
        return kind
    factory = LOGGERS[kind]
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        factory = getattr(importlib.import_module(module), name).from_config
    made = factory(config, info)
    if not isinstance(made, Logger):
        raise ConfigError(f"the factory of logger {kind!r} must return an mtf.Logger, it returned {made!r}")
    return made
