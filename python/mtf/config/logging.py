"""What a run logs, where and how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mtf.config.base import Config
from mtf.config.checks import at_least, one_of, require_kinds
from mtf.errors import ConfigError

LoggerType = Literal["console", "jsonl", "csv", "tensorboard", "wandb", "mlflow", "composite", "none"]


@dataclass
class LoggingConfig(Config):
    """What is logged, where and how often.

    Attributes:
        logger_type: one of ``console``, ``jsonl``, ``csv``, ``tensorboard``, ``wandb``, ``mlflow``, ``composite``,
            ``none``.
        composite_loggers: the loggers that ``composite`` writes to.
        log_dir: directory for files of ``jsonl`` and ``csv`` (``<log_dir>/<experiment_name>/metrics.*``), and of
            ``tensorboard`` and ``wandb`` where they have no own directory. All but ``wandb`` write ``run.jsonl``
            beside their file, for ``mtf report``.
        log_scalars_every_n_steps: updates between two rows.
        log_per_loader_metrics: also ``train/<loader>/<metric>``.
        log_loader_proportions: also ``loader_proportions/<loader>_batches`` and ``..._divergence``.
        log_pictures: at each epoch's end, which source gave when, shares against weights, passes and data wait as
            images, for ``tensorboard``, ``wandb`` and ``mlflow``. Needs matplotlib; about a second each time.
        progress_bar: a bar (one line per interval when the output is no terminal).
        tensorboard_log_dir: directory of event files. None: ``<log_dir>/<experiment_name>``.
        wandb_project: project of the W&B run. None: ``experiment_name``.
        wandb_entity: user or team of the W&B run.
        wandb_mode: ``"online"``, ``"offline"`` or ``"disabled"``. None: as ``WANDB_MODE`` says.
        wandb_tags: tags of the W&B run.
        mlflow_tracking_uri: server or folder of MLflow. None: as ``MLFLOW_TRACKING_URI`` says.
        mlflow_experiment: experiment in MLflow. None: ``experiment_name``.
    """

    logger_type: LoggerType = "console"
    composite_loggers: list[LoggerType] = field(default_factory=list)
    log_dir: str = "logs"
    log_scalars_every_n_steps: int = 50
    log_per_loader_metrics: bool = True
    log_loader_proportions: bool = True
    log_pictures: bool = False
    progress_bar: bool = True
    tensorboard_log_dir: str | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    wandb_tags: list[str] = field(default_factory=list)
    mlflow_tracking_uri: str | None = None
    mlflow_experiment: str | None = None

    def require_valid(self) -> None:
        """Checks choices and ranges."""
        require_kinds(self, LoggingConfig, "logging.")
        kinds = ("console", "jsonl", "csv", "tensorboard", "wandb", "mlflow", "composite", "none")
        one_of("logging.logger_type", self.logger_type, kinds)
        for i, kind in enumerate(self.composite_loggers):
            one_of(f"logging.composite_loggers[{i}]", kind, kinds[:-2])
        if (self.logger_type == "composite") != bool(self.composite_loggers):
            raise ConfigError(
                "logging.composite_loggers must name loggers exactly when logging.logger_type is 'composite', "
                f"got {self.composite_loggers} with {self.logger_type!r}"
            )
        at_least("logging.log_scalars_every_n_steps", self.log_scalars_every_n_steps, 1)
        show_pictures = {"tensorboard", "wandb", "mlflow"}
        if self.log_pictures and not {self.logger_type, *self.composite_loggers} & show_pictures:
            raise ConfigError(
                f"logging.log_pictures needs a logger that shows pictures, 'tensorboard', 'wandb' or 'mlflow'; "
                f"logger_type is {self.logger_type!r}. `mtf report` draws them for every run that logs to files"
            )
