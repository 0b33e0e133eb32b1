"""Hooks that come with mtf."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from mtf.call_site import user_level
from mtf.config.checks import at_least, nearest
from mtf.config.keywords import checked_keywords
from mtf.errors import ConfigError
from mtf.trainer.hooks.base import Trainer, TrainerHooks
from mtf.trainer.optimization.optimizers import learning_rates

Weights = Mapping[str, float] | Sequence[float]


class _Best:
    """The best value of a metric so far."""

    def __init__(self, mode: Literal["min", "max"], min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"mode must be 'min' or 'max', got {mode!r}")
        self._sign = 1.0 if mode == "min" else -1.0
        self._min_delta = min_delta
        self.value: float | None = None

    def improves(self, value: float) -> bool:
        """Notes ``value`` if it is better than the best by more than ``min_delta``; NaN never is."""
        if math.isnan(value):
            return False
        if self.value is not None and not self._sign * (self.value - value) > self._min_delta:
            return False
        self.value = value
        return True


def _metric(metrics: Mapping[str, float], name: str, hook: TrainerHooks) -> float:
    if name not in metrics:
        near, known = nearest(name, metrics), ", ".join(metrics)
        raise ConfigError(f"{type(hook).__name__}: there is no metric {name!r}{near} (there are: {known})")
    return metrics[name]


def is_of_validation(monitor: str) -> bool:
    """Whether a monitored metric is a validation's, or meant as one (``val_loss``), by its name."""
    return monitor.startswith(("val/", "val_"))


def _is_given(trainer: Trainer, metrics: Mapping[str, float], monitor: str) -> bool:
    """Whether a validation gives the metric: one outside of ``fit``, one that was left, and one without all loaders
    needn't."""
    if not trainer.is_fitting or not metrics:
        return False
    return monitor in metrics or (is_of_validation(monitor) and not trainer.config.validation.loader_every_n)


class EarlyStopping(TrainerHooks):
    """Stops when a metric hasn't improved for ``patience`` validations.

    A run that it has stopped stays stopped: ``fit`` again, also after a resume, returns at once. A larger
    ``patience`` lets it go on.

    Args:
        monitor: metric of the validation's row, such as ``val/loss``, or of training, such as ``train/loss``, which
            is looked at where an epoch ends.
        patience: the validation (or epoch) without improvement that stops the run, counted from the best one, as in
            Lightning and transformers.
        min_delta: what counts as an improvement must be larger.
        mode: whether a smaller or a larger value is better.
    """

    @checked_keywords(
        words={"metric": "monitor", "early_stopping_patience": "patience", "early_stopping_threshold": "min_delta"}
    )
    def __init__(
        self,
        monitor: str = "val/loss",
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        at_least("EarlyStopping: patience", patience, 0)
        if not min_delta >= 0.0:
            raise ConfigError(f"EarlyStopping: min_delta must be at least 0, it is {min_delta!r}")
        self.monitor = monitor
        self.patience = patience
        self.num_bad = 0
        self._best = _Best(mode, min_delta)

    @property
    def needs_validation(self) -> bool:
        """Whether ``fit`` must validate for it."""
        return is_of_validation(self.monitor)

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self._best.value

    def on_train_start(self, trainer: Trainer) -> None:
        """Whether the run was stopped before."""
        self._stop_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Looks at the metric of a validation inside ``fit``."""
        if _is_given(trainer, metrics, self.monitor):
            self._look(trainer, metrics)

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """Looks at a metric of training."""
        if not is_of_validation(self.monitor):
            self._look(trainer, trainer.metrics)

    def _look(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        value = _metric(metrics, self.monitor, self)
        self.num_bad = 0 if self._best.improves(value) else self.num_bad + 1
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: Trainer) -> None:
        if self.num_bad and self.num_bad >= self.patience:
            trainer.request_stop(f"{self.monitor} hasn't improved on {self.best} for {self.num_bad} validations")

    def state_dict(self) -> dict[str, Any]:
        """The best value, and validations since."""
        return {"best": self.best, "num_bad": self.num_bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from there."""
        self._best.value, self.num_bad = state["best"], state["num_bad"]


class GradientMonitor(TrainerHooks):
    """Logs ``gradients/norm``, and warns when it exceeds ``warn_above``. Without a synchronisation per update.

    Args:
        every_n_updates: how often the norm is computed.
        warn_above: a norm that deserves a warning; looked at when a row is logged, on average over the interval.
    """

    @checked_keywords()
    def __init__(self, every_n_updates: int = 1, warn_above: float | None = None) -> None:
        self.every_n_updates = every_n_updates
        self.warn_above = warn_above
        self._seen = -1

    def on_train_start(self, trainer: Trainer) -> None:
        """What comes next may be an update that was begun before, and failed or was left by loading a state."""
        self._seen = -1

    def on_before_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """Once per update: the joint norm of all gradients there are."""
        if self._seen == trainer.global_step or trainer.global_step % self.every_n_updates:
            return
        self._seen = trainer.global_step
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        trainer.log("gradients/norm", torch.nn.utils.get_total_norm(grads))

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """Looks at the latest value."""
        norm = trainer.metrics.get("gradients/norm")
        if self.warn_above is not None and norm is not None and norm > self.warn_above:
            warnings.warn(
                f"gradients/norm is {norm:.4g} in epoch {epoch}, more than {self.warn_above}; "
                "set performance.clip_grad_norm",
                stacklevel=user_level(),
            )


class LearningRateMonitor(TrainerHooks):
    """Keeps the learning rate of every optimizer's first group after each update, for plots.

    Attributes:
        history: ``(global_step, [rate of each optimizer])``; NaN for one that has no rate.
    """

    @checked_keywords()
    def __init__(self) -> None:
        self.history: list[tuple[int, list[float]]] = []

    def on_train_start(self, trainer: Trainer) -> None:
        """Drops what an error or a loaded state has taken back."""
        self.history = [entry for entry in self.history if entry[0] < trainer.global_step]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        dataloader_name: str,
        metrics: Mapping[str, Any],
    ) -> None:
        """Notes the rates that the update of this step will use."""
        if self.history and self.history[-1][0] == trainer.global_step:
            return
        rates = [learning_rates(optimizer)[0] for optimizer in trainer.optimizers]
        self.history.append((trainer.global_step, [math.nan if rate is None else rate for rate in rates]))


class BestCheckpoint(TrainerHooks):
    """Saves to one path whenever a metric is better than ever before.

    Args:
        path: of the checkpoint; replaced atomically.
        monitor: metric of the validation's row, or of training, which is looked at where an epoch ends.
        mode: whether a smaller or a larger value is better.
    """

    @checked_keywords(words={"dirpath": "path", "filename": "path", "metric": "monitor"})
    def __init__(self, path: str, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        self.path = path
        self.monitor = monitor
        self._best = _Best(mode)

    @property
    def needs_validation(self) -> bool:
        """Whether ``fit`` must validate for it."""
        return is_of_validation(self.monitor)

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self._best.value

    def on_validation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Looks at the metric of a validation inside ``fit``."""
        if _is_given(trainer, metrics, self.monitor):
            self._look(trainer, metrics)

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """Looks at a metric of training."""
        if not is_of_validation(self.monitor):
            self._look(trainer, trainer.metrics)

    def _look(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        if self._best.improves(_metric(metrics, self.monitor, self)):
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The best value."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from there."""
        self._best.value = state["best"]


class ThroughputMonitor(TrainerHooks):
    """Warns when training waits for data: at each epoch's end, if the share of time is above ``max_wait_share``.

    Args:
        max_wait_share: in [0, 1].
    """

    @checked_keywords(words={"max_wait": "max_wait_share"})
    def __init__(self, max_wait_share: float = 0.3) -> None:
        if not 0.0 <= max_wait_share <= 1.0:
            raise ConfigError(f"max_wait_share must be in [0, 1], it is {max_wait_share}")
        self.max_wait_share = max_wait_share
        self.epochs: list[dict[str, float]] = []
        self._waits: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer) -> None:
        """Starts the clock, for an epoch that continues."""
        self._start = trainer._parts.reporter.totals()

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Starts the clock."""
        self._start = trainer._parts.reporter.totals()

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """Notes seconds, samples and seconds waited of the epoch, or of its part in this ``fit``, and warns."""
        seconds, waited, samples = (b - a for a, b in zip(self._start, trainer._parts.reporter.totals(), strict=True))
        share = waited / seconds if seconds > 0 else 0.0
        self.epochs.append({"seconds": seconds, "samples_per_s": samples / max(seconds, 1e-9), "wait_share": share})
        if share > self.max_wait_share:
            warnings.warn(
                f"training waited for data {share:.0%} of epoch {epoch}{self._slowest(trainer)}; use more workers or "
                "ArrayLoader",
                stacklevel=user_level(),
            )

    def _slowest(self, trainer: Trainer) -> str:
        """The loader that was waited for longest since the last look, in words."""
        waits = trainer.multi_loader_manager.stats()["source_wait_s"]
        since = {name: seconds - self._waits.get(name, 0.0) for name, seconds in waits.items()}
        self._waits = dict(waits)
        total = sum(since.values())
        if not total:
            return ""
        name = max(since, key=lambda n: since[n])
        return f", {since[name] / total:.0%} of it for loader {name!r}"


class Curriculum(TrainerHooks):
    """Changes the weights of the loaders at each epoch's end.

    Args:
        weights: epoch -> weights that hold from this epoch on (``{0: {"easy": 9, "hard": 1}, 10: {...}}``), or a
            function ``(trainer, metrics) -> weights or None`` that decides from the latest metrics; None changes
            nothing. Weights are a dict with every loader, or a list in the loaders' order.
    """

    @checked_keywords(words={"stages": "weights", "schedule": "weights"})
    def __init__(
        self,
        weights: Mapping[int, Weights] | Callable[[Trainer, Mapping[str, float]], Weights | None],
    ) -> None:
        self._weights = weights

    def on_train_start(self, trainer: Trainer) -> None:
        """The first epoch's weights."""
        if isinstance(self._weights, Mapping) and trainer.num_batches == 0 and 0 in self._weights:
            trainer.multi_loader_manager.update_weights(self._weights[0])

    def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
        """The next epoch's weights."""
        if isinstance(self._weights, Mapping):
            new = self._weights.get(epoch + 1)
        else:
            new = self._weights(trainer, trainer.metrics)
        if new is not None:
            trainer.multi_loader_manager.update_weights(new)
