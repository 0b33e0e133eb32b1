"""Manual optimization: the training step runs its own backward passes and optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtf.config.execution import PerformanceConfig
from mtf.data.batch import Batch
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError, UsageError
from mtf.trainer.hooks.registry import HookList
from mtf.trainer.optimization.clipping import Clipping
from mtf.trainer.optimization.nonfinite import NonFiniteGuard
from mtf.trainer.optimization.optimizers import OptimizerSet
from mtf.trainer.optimization.precision import Precision
from mtf.trainer.state.run_state import Phase, RunState

_MOST_WITHOUT_STEP = 100


class ManualOptimization:
    """``trainer.manual``: what a training step calls under ``performance.manual_optimization``.

    One batch is one update, also where it steps optimizers several times or not at all, so states, saves and resumes
    are as exact as otherwise. Gradients are the step's: it clears them with ``optimizer.zero_grad()`` as in plain
    torch; after the step all are cleared. An error before the first optimizer step takes the batch back; after one,
    the weights belong to no state, and a checkpoint has to be loaded.
    """

    def __init__(
        self,
        performance: PerformanceConfig,
        *,
        device: torch.device,
        run: RunState,
        optimizers: OptimizerSet,
        precision: Precision,
        guard: NonFiniteGuard,
        ranks: SingleRank,
        hooks: HookList,
    ) -> None:
        self._performance = performance
        self._device = device
        self._run = run
        self._optimizers = optimizers
        self._precision = precision
        self._guard = guard
        self._ranks = ranks
        self._hooks = hooks
        self._batch: Batch | None = None
        self._stepped: list[int] = []
        self._num_without_step = 0
        if performance.manual_optimization and ranks.is_sharded:
            raise ConfigError(
                "performance.manual_optimization needs the whole model on each rank: use ddp.strategy='ddp'"
            )

    def begin(self, batch: Batch) -> None:
        """The step on ``batch`` begins."""
        self._batch, self._stepped = batch, []

    def end(self) -> dict[int, float]:
        """The step has returned; gives the optimizers that stepped.

        Raises:
            ConfigError: no step has stepped an optimizer for a long time.
        """
        self._batch = None
        self._num_without_step = 0 if self._stepped else self._num_without_step + 1
        if self._num_without_step >= _MOST_WITHOUT_STEP:
            raise ConfigError(
                f"{_MOST_WITHOUT_STEP} training steps in a row have called no trainer.manual.step(...), so nothing is "
                "trained: performance.manual_optimization leaves that to the step"
            )
        return dict.fromkeys(sorted(set(self._stepped)), 1.0)

    def backward(self, loss: Tensor, **options: Any) -> None:
        """Adds the gradients of ``loss`` (one element); under fp16 it is scaled.

        Args:
            options: of ``torch.Tensor.backward``, such as ``retain_graph=True``.

        Raises:
            UsageError: outside a training step, or without ``performance.manual_optimization``.
            NonFiniteLoss: the loss isn't finite, under ``on_nonfinite="raise"``.
        """
        batch = self._require_step("backward")
        self._guard.add(loss.detach(), batch.name, batch.batch_idx, self._run.num_batches)
        if self._guard.every_window:
            self._guard.window_is_finite()
        scaled = loss if batch.weight == 1.0 else loss * batch.weight
        for method in self._hooks.on_before_backward:
            method(scaled)
        scaler = self._precision.scaler
        with torch.autocast(self._device.type, enabled=False):
            (scaled if scaler is None else scaler.scale(scaled)).backward(**options)
        for method in self._hooks.on_after_backward:
            method()

    def step(self, *indices: int) -> bool:
        """Steps these optimizers with the gradients that there are: averages them over the ranks, clips, calls hooks.

        Args:
            indices: of ``trainer.optimizers``; none: all of them.

        Returns:
            Whether they stepped; not where fp16 found a gradient that isn't finite, or where there is no gradient.

        Raises:
            UsageError: as in :meth:`backward`.
            ConfigError: there is no such optimizer.
        """
        self._require_step("step")
        owned = self._optimizers.optimizers
        for i in indices:
            if not 0 <= i < len(owned):
                raise ConfigError(f"trainer.manual.step: there is no optimizer {i!r}, there are {len(owned)}")
        chosen = list(indices) or list(range(len(owned)))
        parameters = {i: [p for group in owned[i].param_groups for p in group["params"]] for i in chosen}
        self._average(list(dict.fromkeys(p for own in parameters.values() for p in own)))
        stepping = [i for i, own in parameters.items() if any(p.grad is not None for p in own)]
        scaler = self._precision.scaler
        for i in stepping if scaler is not None else ():
            scaler.unscale_(owned[i])  # type: ignore[union-attr]
        every = [p for i in stepping for p in parameters[i]]
        if scaler is not None and stepping and not self._ranks.all_finite(every):
            scaler.update()
            return False
        clipping = Clipping.of(self._performance)
        if clipping is not None and stepping:
            clipping.apply({i: parameters[i] for i in stepping}, self._ranks, self._hooks.on_gradient_clip)
        for method in self._hooks.on_before_optimizer_step:
            for i in stepping:
                method(i)
        if stepping and self._run.phase is not Phase.STEPPING:
            self._run.enter(Phase.STEPPING)
        self._optimizers.step(dict.fromkeys(stepping, 1.0), scaler)
        self._stepped += stepping
        return bool(stepping)

    def _require_step(self, call: str) -> Batch:
        if not self._performance.manual_optimization:
            raise UsageError(
                f"trainer.manual.{call} needs performance.manual_optimization=True: otherwise mtf runs the backward "
                "pass of the loss that the step returns, and steps the optimizers"
            )
        if self._batch is None:
            raise UsageError(
                f"trainer.manual.{call} was called outside a training step; give the trainer a validation_step, too"
            )
        return self._batch

    def _average(self, parameters: Sequence[Tensor]) -> None:
        """Means of the gradients over the ranks; one that only some ranks have is zero on the others."""
        if self._ranks.world_size == 1:
            return
        has = self._ranks.all_reduce_max([int(p.grad is not None) for p in parameters])
        shared = [p for p, there in zip(parameters, has, strict=True) if there]
        if not shared:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in shared]
        flat = torch.cat([part.detach().reshape(-1).to(torch.float64) for part in parts])
        means = self._ranks.sum(flat) / self._ranks.world_size
        for p, mean in zip(shared, means.split([p.numel() for p in shared]), strict=True):
            p.grad = mean.reshape(p.shape).to(p.dtype)
