"""What a run logs, where and how often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from mtf.config.base import Config
from mtf.config.checks import at_least, one_of, positive, require_kinds
from mtf.errors import ConfigError

#: Name -> what makes the logger: ``"module:class"``, or a function ``(config, info) -> Logger`` that was registered.
LOGGERS: dict[str, Any] = {
    "console": "mtf.loggers.console:ConsoleLogger",
    "jsonl": "mtf.loggers.jsonl:JsonlLogger",
    "csv": "mtf.loggers.csv:CsvLogger",
    "tensorboard": "mtf.loggers.tensorboard:TensorBoardLogger",
    "wandb": "mtf.loggers.wandb:WandbLogger",
    "mlflow": "mtf.loggers.mlflow:MlflowLogger",
    "trackio": "mtf.loggers.trackio:TrackioLogger",
    "none": "mtf.loggers.registry:NoLogger",
}


@dataclass
class LoggingConfig(Config):
    """What is logged, where and how often.

    Attributes:
        logger_type: ``console``, ``jsonl``, ``csv``, ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``,
            ``composite``, ``none``, a name given to ``mtf.register_logger``, or an ``mtf.Logger`` of your own.
        composite_loggers: the loggers that ``composite`` writes to: names, or objects.
        console_fields: names or patterns (``val/*``) of what ``console`` prints of a row; empty: the four that matter
            most. ``["*"]`` prints all.
        log_dir: directory for files of ``jsonl`` and ``csv`` (``<log_dir>/<experiment_name>/metrics.*``), and of
            ``tensorboard`` and ``wandb`` where they have no own directory. All but ``wandb`` write ``run.jsonl``
            beside their file, for ``mtf report``.
        log_scalars_every_n_steps: updates between two rows.
        log_per_loader_metrics: also ``train/<loader>/<metric>``.
        log_loader_proportions: also ``loader_proportions/<loader>_batches`` and ``..._divergence``.
        log_pictures: at each epoch's end, which source gave when, shares against weights, passes and data wait as
            images, for ``tensorboard``, ``wandb`` and ``mlflow``. Needs matplotlib; about a second each time.
        log_memory: also ``memory/rss_bytes``, and ``memory/cuda_peak_bytes`` on a GPU, of rank 0.
        peak_flops: operations per second that the device can do at best, for ``throughput/mfu`` of a model that has
            ``flops_per_token`` or ``flops_per_sample``. None: dense bf16 of the GPUs that mtf knows.
        model_summary: levels of the model's modules that are printed where a run begins, with parameters and their
            optimizers. 0: none.
        progress_bar: a bar (one line per interval when the output is no terminal).
        tensorboard_log_dir: directory of event files. None: ``<log_dir>/<experiment_name>``.
        wandb_project: project of the W&B run. None: ``experiment_name``.
        wandb_entity: user or team of the W&B run.
        wandb_mode: ``"online"``, ``"offline"`` or ``"disabled"``. None: as ``WANDB_MODE`` says.
        wandb_tags: tags of the W&B run.
        mlflow_tracking_uri: server or folder of MLflow. None: as ``MLFLOW_TRACKING_URI`` says.
        mlflow_experiment: experiment in MLflow. None: ``experiment_name``.
        trackio_project: project in Trackio. None: ``experiment_name``.
    """

    logger_type: Any = "console"
    composite_loggers: list[Any] = field(default_factory=list)
    console_fields: list[str] = field(default_factory=list)
    log_dir: str = "logs"
    log_scalars_every_n_steps: int = 50
    log_per_loader_metrics: bool = True
    log_loader_proportions: bool = True
    log_pictures: bool = False
    log_memory: bool = False
    peak_flops: float | None = None
    model_summary: int = 0
    progress_bar: bool = True
    tensorboard_log_dir: str | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    wandb_tags: list[str] = field(default_factory=list)
    mlflow_tracking_uri: str | None = None
    mlflow_experiment: str | None = None
    trackio_project: str | None = None

    def require_valid(self) -> None:
        """Checks choices and ranges."""
        require_kinds(self, LoggingConfig, "logging.")
        _require_logger("logging.logger_type", self.logger_type, (*LOGGERS, "composite"))
        for i, kind in enumerate(self.composite_loggers):
            _require_logger(f"logging.composite_loggers[{i}]", kind, [name for name in LOGGERS if name != "none"])
        if (self.logger_type == "composite") != bool(self.composite_loggers):
            raise ConfigError(
                "logging.composite_loggers must name loggers exactly when logging.logger_type is 'composite', "
                f"got {self.composite_loggers} with {self.logger_type!r}"
            )
        if isinstance(self.console_fields, str):
            raise ConfigError(
                f"logging.console_fields must be a list of names or patterns, got {self.console_fields!r}"
            )
        named = {kind for kind in (self.logger_type, *self.composite_loggers) if isinstance(kind, str)}
        if self.console_fields and "console" not in named:
            raise ConfigError(
                f"logging.console_fields needs the logger 'console', but logging.logger_type is {self.logger_type!r}"
            )
        at_least("logging.log_scalars_every_n_steps", self.log_scalars_every_n_steps, 1)
        at_least("logging.model_summary", self.model_summary, 0)
        positive("logging.peak_flops", self.peak_flops)
        show_pictures = {"tensorboard", "wandb", "mlflow"}
        kinds = (self.logger_type, *self.composite_loggers)
        has_own = any(not isinstance(kind, str) or callable(LOGGERS.get(kind)) for kind in kinds)
        if self.log_pictures and not has_own and not named & show_pictures:
            raise ConfigError(
                f"logging.log_pictures needs a logger that shows pictures, 'tensorboard', 'wandb' or 'mlflow'; "
                f"logger_type is {self.logger_type!r}. `mtf report` draws them for every run that logs to files"
            )


def _require_logger(where: str, kind: object, names: Iterable[str]) -> None:
    """Raises ``ConfigError`` for what is neither the name of a logger nor a logger."""
    if isinstance(kind, str):
        one_of(where, kind, tuple(names))
    elif isinstance(kind, type) or not all(
        callable(getattr(kind, method, None)) for method in ("log_metrics", "close")
    ):
        raise ConfigError(f"{where} must be the name of a logger or an mtf.Logger object, got {kind!r}")
