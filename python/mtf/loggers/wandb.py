"""Rows in a Weights & Biases run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtf.config.logging import LoggingConfig
from mtf.errors import ConfigError
from mtf.loggers.base import Logger, RunInfo


class WandbLogger(Logger):
    """Logs to W&B, online or offline; a resumed run continues in the same W&B run."""

    def __init__(self, config: LoggingConfig, info: RunInfo) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("logger_type 'wandb' needs wandb: pip install 'mtf-torch[wandb]'") from error
        from pathlib import Path

        Path(config.log_dir).mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=config.wandb_project or info.name,
            entity=config.wandb_entity,
            mode=config.wandb_mode,
            tags=config.wandb_tags or None,
            name=info.name,
            dir=config.log_dir,
            id=info.state.get("run_id"),
            resume="allow",
            config=dict(info.config),
        )

    @classmethod
    def from_config(cls, config: LoggingConfig, info: RunInfo) -> Logger:
        """As the constructor."""
        return cls(config, info)

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """One W&B history row; ``step`` is the x axis."""
        self._run.log(dict(row), step=step)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """One image in the row of this step."""
        import io

        import wandb
        from PIL import Image  # matplotlib needs it as well

        png = io.BytesIO()
        figure.savefig(png, format="png")  # W&B itself would want pyplot, which picks a backend for the whole process
        with Image.open(png) as image:
            self._run.log({name: wandb.Image(image)}, step=step)

    def state_dict(self) -> dict[str, Any]:
        """The run's id."""
        return {"run_id": self._run.id}

    def close(self) -> None:
        """Ends the run; W&B's own process may be writing for a moment longer."""
        self._run.finish()
