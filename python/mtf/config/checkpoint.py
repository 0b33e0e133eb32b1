"""Where and when checkpoints are saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtf.config.base import Config
from mtf.config.checks import at_least, one_of, positive, require_kinds
from mtf.errors import ConfigError


@dataclass
class CheckpointConfig(Config):
    """Where and when checkpoints are saved. Nothing is written until a frequency or ``save_at_end`` is set,
    ``save_checkpoint`` is called or a preemption signal arrives.

    Attributes:
        root_dir: directory of this run's checkpoints, or a URL such as ``s3://bucket/run``.
        save_every_n_steps: updates between two checkpoints. None: not by steps.
        save_every_n_epochs: epochs between two checkpoints. None: not by epochs.
        save_every_n_minutes: minutes between two checkpoints. None: not by time.
        save_at_end: save where ``fit`` ends, inside an epoch too, by ``max_steps`` or ``request_stop``.
        max_checkpoints: how many are kept; ``latest`` and ``best`` are never removed. None: all.
        keep_every_n_steps: checkpoints of updates that this number divides are kept for good, and not counted in
            ``max_checkpoints``. None: none.
        monitor_metric: metric that decides which checkpoint is ``best``, such as ``val/loss``.
        monitor_mode: whether a smaller or a larger value is better.
        save_best: save whenever a validation gives a better ``monitor_metric``.
        asynchronous: a step pays only for the copy to host memory; a writer thread does the rest.
        filename_template: name of a checkpoint, with ``{step}``, ``{epoch}`` and format specifiers.
    """

    root_dir: str = "checkpoints"
    save_every_n_steps: int | None = None
    save_every_n_epochs: int | None = None
    save_every_n_minutes: float | None = None
    save_at_end: bool = False
    max_checkpoints: int | None = 3
    keep_every_n_steps: int | None = None
    monitor_metric: str | None = None
    monitor_mode: Literal["min", "max"] = "min"
    save_best: bool = False
    asynchronous: bool = False
    filename_template: str = "step-{step:08d}"

    def require_valid(self) -> None:
        """Checks ranges."""
        require_kinds(self, CheckpointConfig, "checkpoint.")
        for name in ("save_every_n_steps", "save_every_n_epochs", "max_checkpoints", "keep_every_n_steps"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"checkpoint.{name}", value, 1)
        positive("checkpoint.save_every_n_minutes", self.save_every_n_minutes)
        one_of("checkpoint.monitor_mode", self.monitor_mode, ("min", "max"))
        if self.save_best and self.monitor_metric is None:
            raise ConfigError("checkpoint.save_best needs checkpoint.monitor_metric, such as 'val/loss'")
        if "{step" not in self.filename_template:
            raise ConfigError(
                f"checkpoint.filename_template must contain {{step}}, it is {self.filename_template!r}: "
                "names of two checkpoints must differ"
            )
