"""What an update's end asks the spike guards, which are hooks."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mtf.data.batch import Batch
from mtf.distributed.ranks import SingleRank
from mtf.trainer.hooks.base import TrainerHooks
from mtf.trainer.metrics import MetricTable
from mtf.trainer.state.run_state import RunState
from mtf.trainer.steering.spike_guard import GoBack, LossSpike, SpikeGuard

_log = logging.getLogger("mtf")


class SpikeWatch:
    """The spike guards among a trainer's hooks.

    Args:
        hooks: all hooks of the trainer.
        ranks: those that train together.
        metrics: gets the part of updates that was left out.
    """

    def __init__(self, hooks: Iterable[TrainerHooks], ranks: SingleRank, metrics: MetricTable) -> None:
        self._guards = [hook for hook in hooks if isinstance(hook, SpikeGuard)]
        self._ranks = ranks
        self._metrics = metrics

    def begin_window(self) -> None:
        """Before the first step of an accumulation window."""
        for guard in self._guards:
            guard.begin_window()

    def leaves_out(
        self,
        run: RunState,
        window: Sequence[Batch],
        parameters: Iterable[Tensor],
        scale: float,
        scaler: torch.amp.GradScaler | None,
    ) -> bool:
        """Whether the update of ``window`` is to be left out. A collective on several ranks.

        Args:
            run: where the run stands.
            window: the batches whose gradients were added up.
            parameters: with their gradients, reduced over the ranks.
            scale: factor of the gradients that is still to be applied.
            scaler: of fp16, whose factor is in the gradients.

        Raises:
            GoBack: the run is to go back.
            LossSpike: it has gone back too often.
        """
        if not self._guards:
            return False
        norm = None
        if any(guard.needs_norm for guard in self._guards):
            norm = self._norm(parameters, scale, scaler)
        is_left_out = False
        for guard in self._guards:
            spike = guard.judge((batch.name for batch in window), self._ranks, norm)
            if spike is not None:
                self._act(guard, run, spike)
                is_left_out = True
        self._metrics.add("", "spike_guard/skipped", float(is_left_out))
        return is_left_out

    def commit(self) -> None:
        """The update is over."""
        for guard in self._guards:
            guard.commit()

    def _norm(self, parameters: Iterable[Tensor], scale: float, scaler: torch.amp.GradScaler | None) -> float | None:
        """The joint 2-norm of the gradients; None where fp16 overflowed, which its scaler deals with."""
        owned = [parameter for parameter in parameters if parameter.grad is not None]
        if not owned:
            return None
        norm = float(self._ranks.clip_grad_norm(owned, math.inf)) * scale
        if scaler is None:
            return norm
        return norm / scaler.get_scale() if math.isfinite(norm) else None

    def _act(self, guard: SpikeGuard, run: RunState, spike: str) -> None:
        update = run.global_step
        if guard.action == "rollback":
            if guard.num_rollbacks >= guard.max_rollbacks:
                raise LossSpike(
                    f"update {update}: {spike}. The run has gone back {guard.num_rollbacks} times already "
                    "(SpikeGuard.max_rollbacks): look at the data and the learning rate, then resume from an earlier "
                    "checkpoint, with a larger max_rollbacks if spikes are expected"
                )
            raise GoBack(guard, update + 1 + guard.skip_ahead, spike)
        guard.num_skipped += 1
        _log.info("left out update %d: %s", update, spike)
