"""One update: forward and backward passes of an accumulation window, then the optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtf.config.execution import PerformanceConfig
from mtf.data.batch import Batch
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError, with_note
from mtf.formatting import outline
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.hooks.registry import HookList
from mtf.trainer.metrics import MetricTable, num_samples
from mtf.trainer.optimization.nonfinite import NonFiniteGuard, propagate_nonfinite, window_is_finite
from mtf.trainer.optimization.optimizers import OptimizerSet, SchedulerSet, check_names
from mtf.trainer.optimization.precision import Precision
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.rng import StepRng
from mtf.trainer.run_state import Phase, RunState

T = TypeVar("T")


def windows(batches: Iterator[T], length: int) -> Iterator[list[T]]:
    """Groups ``batches`` into lists of ``length``; the last may be shorter, none is empty.

    A window's batches are taken before its first step runs. So its true length is known when the first loss is
    divided by it, also where a loader's end comes as a surprise, and an edit made inside a window finds the
    schedule at the window's end, which is where edits take effect.
    """
    if length == 1:
        for batch in batches:
            yield [batch]
        return
    while window := list(islice(batches, length)):
        yield window


class LossWeights:
    """What each loader's loss is multiplied by: ``weight / length of the window``."""

    def __init__(self, weights: Mapping[str, float] | None) -> None:
        self._weights = dict(weights or {})
        for name, weight in self._weights.items():
            if not 0.0 <= weight < float("inf"):
                raise ConfigError(f"loss_weights_per_loader[{name!r}] must be finite and not negative, it is {weight}")

    def check_names(self, names: list[str]) -> None:
        """Raises ``ConfigError`` for a name that no loader has."""
        check_names("loss_weights_per_loader", self._weights, names)

    def factor(self, name: str, length: int) -> float:
        """The factor of one step's loss in a window of ``length`` steps; 1.0 where nothing has to be done."""
        return self._weights.get(name, 1.0) / length


def loss_of(result: Any, batch: Batch) -> Tensor:
    """The loss in what a training step returned.

    Raises:
        ConfigError: there is none, or it can't be differentiated.
    """
    loss = result if isinstance(result, Tensor) else result.get("loss") if isinstance(result, Mapping) else result
    if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
        return loss if loss.dim() == 0 else loss.reshape(())
    where = f"the training step of loader {batch.name!r} (batch {batch.batch_idx})"
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"{where} must return a loss tensor or a dict with 'loss' (a tensor), it returned {outline(result)}"
        )
    if loss.numel() != 1:
        raise ConfigError(f"{where} must return a loss with one element, its shape is {tuple(loss.shape)}: take a mean")
    raise ConfigError(
        f"{where} returned a loss without a graph: it depends on no parameter that requires gradients, or was "
        "detached or computed under no_grad"
    )


@dataclass(slots=True, kw_only=True)
class TrainStep:
    """Trains on one accumulation window after the other.

    Attributes:
        function: ``(batch, batch_idx, dataloader_idx, dataloader_name)`` -> loss, or a dict with ``"loss"``.
        propagates: whether a loss that isn't finite must reach the other ranks through the gradients.
    """

    function: Callable[..., Any]
    model: nn.Module
    performance: PerformanceConfig
    optimizers: OptimizerSet
    schedulers: SchedulerSet
    loss_weights: LossWeights
    precision: Precision
    guard: NonFiniteGuard
    rng: StepRng
    data: TrainingData
    hooks: HookList
    metrics: MetricTable
    ranks: SingleRank
    reporter: Reporter
    propagates: bool = False

    def run(self, run: RunState, window: list[Batch]) -> None:
        """Trains on ``window`` and makes one update of it; ``run`` stands between two updates before and after."""
        run.enter(Phase.ACCUMULATING)
        self.rng.begin_window()
        is_mixed = len(window) > 1 and any(batch.name != window[0].name for batch in window)
        for batch in window:
            try:
                with self.ranks.window(batch is window[-1], is_mixed):
                    self._accumulate(run, batch, self.loss_weights.factor(batch.name, len(window)) * batch.weight)
            except Exception as error:
                with_note(error, f"in the training step on {batch.place}")
                raise
        stepping: dict[int, float] = {}
        scaler, guard = self.precision.scaler, self.guard
        if not guard.every_window or window_is_finite(guard, self.ranks, self.model.parameters(), run.num_batches):
            clip = self.performance.clip_grad_norm
            stepping = self.optimizers.prepare(window, self.hooks, self.ranks, scaler, clip)
        run.enter(Phase.STEPPING)
        self.optimizers.step(stepping, scaler)
        if self.hooks.on_after_optimizer_step:
            self._notify_of_steps(run, stepping)
        self.optimizers.clear()
        self.schedulers.after_update(window, stepping)
        run.global_step += 1
        self.data.manager.commit()
        self.metrics.commit()
        run.num_committed = run.num_batches
        run.enter(Phase.BETWEEN_UPDATES)

    def _accumulate(self, run: RunState, batch: Batch, factor: float) -> None:
        """Forward and backward of one batch."""
        hooks, data = self.hooks, batch.data
        place = (batch.batch_idx, batch.source, batch.name)
        self.rng.begin(run.num_batches)
        for method in hooks.on_train_batch_start:
            method(data, *place)
        result = self.ranks.run(self._autocast if self.precision.is_mixed else self.function, data, *place)
        loss = loss_of(result, batch)
        # On the CPU a number is cheaper than a tensor that is kept; elsewhere reading it would wait for the device.
        value = loss.item() if loss.is_cpu else loss.detach()
        self.guard.add(value, batch.name, batch.batch_idx, run.num_batches)
        scaled = loss if factor == 1.0 else loss * factor
        if self.propagates:
            scaled = propagate_nonfinite(scaled, loss.detach())
        for method in hooks.on_before_backward:
            method(scaled)
        scaler = self.precision.scaler
        torch.autograd.backward(scaled if scaler is None else scaler.scale(scaled))
        for method in hooks.on_after_backward:
            method()
        run.num_batches += 1
        self.metrics.add_scalar(batch.name, "loss", value, batch.weight)
        metrics = {} if isinstance(result, Tensor) or len(result) == 1 else self._keep(batch, result)
        self.reporter.num_samples += num_samples(data)
        self.reporter.advance(1)
        for method in hooks.on_train_batch_end:
            method(data, *place, {"loss": loss.detach(), **metrics})

    def _autocast(self, *args: Any) -> Any:
        with self.precision.autocast():
            return self.function(*args)

    def _keep(self, batch: Batch, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps what a step returned besides its loss for the next row; returns it, detached."""
        metrics: dict[str, Any] = {}
        for key, value in result.items():
            if key not in ("loss", "num_samples"):
                metrics[key] = value.detach() if isinstance(value, Tensor) else value
                self.metrics.add(batch.name, key, metrics[key], batch.weight)
        return metrics

    def _notify_of_steps(self, run: RunState, stepped: Iterable[int]) -> None:
        """Calls every hook; an error waits until the update is whole."""
        for method in self.hooks.on_after_optimizer_step:
            try:
                for i in stepped:
                    method(i)
            except BaseException as error:  # also a hook's sys.exit()
                run.late_error = run.late_error or error

    def open_ranks(self) -> None:
        """Before the first window, and the first one after a loader was added."""
        self.ranks.open(len({*self.data.manager.names, *self.data.factories}))
        self.data.is_announced = True

    def roll_back(self, run: RunState) -> None:
        """After an error: the state is that of the last update, which weights never left."""
        if run.is_in_window:
            if any(getattr(module, "track_running_stats", False) for module in self.model.modules()):
                with suppress(UserWarning):  # where warnings are errors, the one under way says more
                    warnings.warn(
                        "running statistics of the model's normalisation layers may hold a part of the window that "
                        "failed, and nothing can take it out: use load_checkpoint to continue exactly",
                        stacklevel=3,
                    )
            self.optimizers.clear()
            run.num_batches = run.num_committed
            self.guard.forget(run.num_batches)
            self.precision.roll_back()
            self.rng.roll_back()
        self.metrics.roll_back()
        self.data.manager.rewind()
