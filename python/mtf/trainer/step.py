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

from mtf.call_site import user_level
from mtf.config.execution import PerformanceConfig
from mtf.data.batch import Batch
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError, with_note
from mtf.formatting import outline
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.hooks.registry import HookList
from mtf.trainer.metrics import MetricTable, num_samples, require_own_name
from mtf.trainer.optimization import item_counts
from mtf.trainer.optimization.clipping import Clipping
from mtf.trainer.optimization.item_counts import ItemCounts
from mtf.trainer.optimization.manual import ManualOptimization
from mtf.trainer.optimization.nonfinite import NonFiniteGuard, propagate_nonfinite, window_is_finite
from mtf.trainer.optimization.optimizers import OptimizerSet, check_names
from mtf.trainer.optimization.precision import Precision
from mtf.trainer.optimization.rate_watch import RateWatch
from mtf.trainer.optimization.schedulers import SchedulerSet
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.rng import StepRng
from mtf.trainer.state.run_state import Phase, RunState
from mtf.trainer.steering.spike_watch import SpikeWatch

T = TypeVar("T")


def windows(batches: Iterator[T], length: int | Callable[[], int]) -> Iterator[list[T]]:
    """Groups ``batches`` into lists of ``length``; the last may be shorter, none is empty. A function is asked before
    each.

    A window's batches are taken before its first step runs. So its true length is known when the first loss is
    divided by it, also where a loader's end comes as a surprise, and an edit made inside a window finds the
    schedule at the window's end, which is where edits take effect.
    """
    if length == 1:
        for batch in batches:
            yield [batch]
        return
    while window := list(islice(batches, length() if callable(length) else length)):
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

    def weight(self, name: str) -> float:
        """The weight of one loader's losses."""
        return self._weights.get(name, 1.0)

    def factor(self, name: str, length: int) -> float:
        """The factor of one step's loss in a window of ``length`` steps; 1.0 where nothing has to be done."""
        # guard: length of a window
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
    manual: ManualOptimization
    optimizers: OptimizerSet
    schedulers: SchedulerSet
    loss_weights: LossWeights
    items: ItemCounts
    precision: Precision
    guard: NonFiniteGuard
    rng: StepRng
    data: TrainingData
    hooks: HookList
    metrics: MetricTable
    ranks: SingleRank
    reporter: Reporter
    spikes: SpikeWatch
    rates: RateWatch
    propagates: bool = False

    def run(self, run: RunState, window: list[Batch]) -> None:
        """Trains on ``window`` and makes one update of it; ``run`` stands between two updates before and after."""
        run.enter(Phase.ACCUMULATING)
        self.rng.begin_window()
        self.items.begin_window()
        self.spikes.begin_window()
        if self.performance.manual_optimization:
            self._commit(run, window, self._run_manual(run, window[0]))
            return
        is_mixed = len(window) > 1 and any(batch.name != window[0].name for batch in window)
        for batch in window:
            try:
                with self.ranks.window(batch is window[-1], is_mixed):
                    self._accumulate(run, batch, self.loss_weights.factor(batch.name, len(window)) * batch.weight)
            except Exception as error:
                if "more than 1 value per channel" in str(error):
                    raise ConfigError(
                        f"{batch.place}: a normalisation layer of the model can't train on a batch of one sample; set "
                        "drop_last=True, in the loader or for all of them in MultiDataLoaderConfig, or another batch "
                        f"size ({error})"
                    ) from error
                with_note(error, f"in the training step on {batch.place}, with the batch {outline(batch.data)}")
                raise
        scale = self.items.end_window()
        stepping: dict[int, float] = {}
        scaler, guard = self.precision.scaler, self.guard
        if not guard.every_window or window_is_finite(guard, self.ranks, self.model.parameters(), run.num_batches):
            clip = Clipping.of(self.performance)
            if not self.spikes.leaves_out(run, window, self.model.parameters(), scale, scaler):
                stepping = self.optimizers.prepare(window, self.hooks, self.ranks, scaler, clip, scale)
        run.enter(Phase.STEPPING)
        self.optimizers.step(stepping, scaler)
        self._commit(run, window, stepping)

    def _run_manual(self, run: RunState, batch: Batch) -> dict[int, float]:
        """A step that runs its own backward passes and optimizer steps; returns the optimizers that stepped."""
        place = (batch.batch_idx, batch.source, batch.name)
        self.rng.begin(run.num_batches)
        for method in self.hooks.on_train_batch_start:
            method(batch.data, *place)
        self.manual.begin(batch)
        try:
            with self.precision.autocast():
                result = self.function(batch.data, *place)
        except Exception as error:
            with_note(error, f"in the training step on {batch.place}, with the batch {outline(batch.data)}")
            raise
        stepped = self.manual.end()
        run.num_batches += 1
        given = {"loss": result} if isinstance(result, Tensor) else dict(result or {})
        count = item_counts.items_in(given)
        num = 1.0 if count is None else count
        if "loss" in given:
            given["loss"] = given["loss"].detach() if isinstance(given["loss"], Tensor) else given["loss"]
            self.metrics.add_scalar(batch.name, "loss", given["loss"], batch.weight, num)
        metrics = self._keep(batch, given, batch.weight, num)
        self.reporter.throughput.add(count, given.get("num_tokens"))
        self.reporter.num_samples += num_samples(batch.data)
        self.reporter.advance(1)
        for method in self.hooks.on_train_batch_end:
            method(batch.data, *place, {**{k: v for k, v in given.items() if k == "loss"}, **metrics})
        if run.phase is not Phase.STEPPING:  # no optimizer has stepped
            run.enter(Phase.STEPPING)
        return stepped

    def _commit(self, run: RunState, window: list[Batch], stepping: dict[int, float]) -> None:
        """The update is whole: hooks, schedulers, counters."""
        if self.hooks.on_after_optimizer_step:
            self._notify_of_steps(run, stepping)
        # guard: cleared gradients
        self.optimizers.clear()
        self.schedulers.after_update(window, stepping)
        run.global_step += 1
        self.data.manager.commit()
        self.metrics.commit()
        self.spikes.commit()
        run.num_committed = run.num_batches
        run.enter(Phase.BETWEEN_UPDATES)

    def _accumulate(self, run: RunState, batch: Batch, factor: float) -> None:
        """Forward and backward of one batch."""
        hooks, data = self.hooks, batch.data
        place = (batch.batch_idx, batch.source, batch.name)
        self.rng.begin(run.num_batches)
        for method in hooks.on_train_batch_start:
            method(data, *place)
        function = self._call if self.is_wrapped else self.function
        if batch.name in self.rates.seen:
            result = self.ranks.run(function, data, *place)
        else:
            result = self.rates.call(batch.name, lambda: self.ranks.run(function, data, *place))
        is_none = result is None or (type(result) is dict and result.get(item_counts.LEFT_OUT, False))
        count = None if isinstance(result, Tensor) else item_counts.items_in(result)
        if count is not None and batch.weight == 0.0:  # it repeats a sample, which mustn't count twice
            count = 0.0
        weight = self.items.weigh(batch.name, batch.batch_idx, count, is_none=is_none)
        metric_weight = batch.weight
        if weight is not None:
            factor = self.loss_weights.weight(batch.name) * weight
            if not count:
                self._leave_out(run, batch, result, place)
                return
            metric_weight = count
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
        num = 1.0 if count is None else count
        self.metrics.add_scalar(batch.name, "loss", value, metric_weight, num)
        is_bare = isinstance(result, Tensor) or len(result) == 1
        metrics = {} if is_bare else self._keep(batch, result, metric_weight, num)
        if not is_bare:
            self.reporter.throughput.add(count, result.get("num_tokens"))
        self.reporter.num_samples += num_samples(data)
        self.reporter.advance(1)
        for method in hooks.on_train_batch_end:
            method(data, *place, {"loss": loss.detach(), **metrics})

    @property
    def is_wrapped(self) -> bool:
        """Whether the step needs something around it: a context, or a loss in place of the one that was left out."""
        return self.precision.is_mixed or self.ranks.world_size > 1

    def _call(self, *args: Any) -> Any:
        with self.precision.autocast():
            result = self.function(*args)
        if self.ranks.world_size == 1 or not item_counts.is_left_out(result):
            return result
        if not self.ranks.is_sharded:
            return item_counts.left_out(self.model, is_none=result is None)
        if result is None:
            raise ConfigError(
                "the training step returned None, and each rank holds a part of the model, which all run together: run "
                "the model, and return 'num_samples': 0 with a finite loss"
            )
        return result

    def _leave_out(self, run: RunState, batch: Batch, result: Any, place: tuple[int, int, str]) -> None:
        """A batch without items: it counts as a batch, and has no gradient. The ranks reduce together all the same."""
        if self.ranks.world_size > 1:
            torch.autograd.backward(loss_of(result, batch) * 0.0)
        run.num_batches += 1
        self.reporter.advance(1)
        for method in self.hooks.on_train_batch_end:
            method(batch.data, *place, {"num_samples": 0})

    def _keep(self, batch: Batch, result: Mapping[str, Any], weight: float, count: float) -> dict[str, Any]:
        """Keeps what a step returned besides its loss for the next row; returns it, detached."""
        metrics: dict[str, Any] = {}
        for key, value in result.items():
            if key not in ("loss", "num_samples"):
                if "/" in key:
                    require_own_name(key, batch.name, self.data.manager.names)
                metrics[key] = value.detach() if isinstance(value, Tensor) else value
                self.metrics.add(batch.name, key, metrics[key], weight, count)
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

    def roll_back(self, run: RunState, *, warns: bool = True) -> None:
        """After an error: the state is that of the last update, which weights never left.

        Args:
            warns: of what can't be taken back.
        """
        if run.is_in_window:
            if warns and any(getattr(module, "track_running_stats", False) for module in self.model.modules()):
                with suppress(UserWarning):  # where warnings are errors, the one under way says more
                    warnings.warn(
                        "running statistics of the model's normalisation layers may hold a part of the window that "
                        "failed, and nothing can take it out: use load_checkpoint to continue exactly",
                        stacklevel=user_level(),
                    )
            self.optimizers.clear()
            run.num_batches = run.num_committed
            self.guard.forget(run.num_batches)
            self.precision.roll_back()
            self.rng.roll_back()
        self.metrics.roll_back()
        self.data.manager.rewind()
