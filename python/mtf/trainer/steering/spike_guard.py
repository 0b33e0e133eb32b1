"""Spikes of the loss or of the gradients' norm: the update is left out, or the run goes back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mtf.config.checks import whole_number
from mtf.config.keywords import checked_keywords
from mtf.distributed.ranks import SingleRank
from mtf.errors import ConfigError, MtfError
from mtf.trainer.hooks.base import Trainer, TrainerHooks

Monitor = Literal["loss", "gradient_norm", "both"]

# The median absolute deviation of normally distributed numbers, times this, is their standard deviation.
_TO_SIGMA = 1.4826
# Part of the median that counts as a deviation at least, so that equal losses don't make the smallest rise a spike.
_LEAST_SPREAD = 1e-3


class LossSpike(MtfError, ArithmeticError):
    """A ``SpikeGuard`` found another spike after its ``max_rollbacks``; names the update and the values."""


class GoBack(Exception):
    """The run goes back to its last checkpoint, and leaves out the data up to update ``end``.

    Attributes:
        guard: the hook that says so.
        end: the first update after the spike whose data are used again.
        spike: what was found, in words.
    """

    def __init__(self, guard: SpikeGuard, end: int, spike: str) -> None:
        super().__init__(spike)
        self.guard = guard
        self.end = end
        self.spike = spike


class SpikeGuard(TrainerHooks):
    """Leaves updates out whose loss, or gradients' norm, is far above that of the updates before.

    An update is a spike where a value is more than ``sigma`` deviations above the median of the last ``window`` ones.
    A deviation is 1.4826 times the median absolute deviation from that median (Hampel, "The influence curve and its
    role in robust estimation", 1974): unlike mean and standard deviation these aren't moved by the spikes themselves.
    That an update is dropped for its loss or norm, with these defaults, follows OLMo-core's ``SkipStepOptimizer``
    (OLMo 2, arXiv 2501.00656); going back and leaving a range of data out is what PaLM did (arXiv 2204.02311, section
    5.1).

    Losses are compared per loader, because loaders differ in the height of their losses: an update is a spike if the
    mean loss of one of its loaders is. Nothing is a spike before half of ``window`` updates are known. All values enter
    the window, so that the guard follows a lasting change. An update whose loss isn't finite is left to
    ``performance.on_nonfinite``; under ``"warn"`` it is a spike. Infinite gradients are left to the scaler of fp16.

    On several ranks values are means over the ranks, so that all decide alike: one reduction per update. On a GPU the
    decision waits for the update's loss.

    An update that is left out counts in ``global_step``: its batches were used, and no weight, optimizer or scheduler
    changed. Values and decisions are part of the state, and ``spike_guard/skipped`` in the logged rows is the part of
    the updates that was left out.

    Args:
        sigma: deviations above the median that make a spike.
        window: updates that the median is of, per loader.
        action: ``"skip_update"`` drops the update before the optimizers step. ``"rollback"`` goes back to the run's
            last checkpoint and leaves out the data of the updates from there to the spike; before there is a checkpoint
            it drops the update.
        monitor: what is looked at: ``"loss"``, ``"gradient_norm"`` (before clipping) or ``"both"``.
        max_rollbacks: after so many the next spike is an error, because something else is wrong.
        skip_ahead: updates after the spike that a rollback leaves out as well.

    Attributes:
        num_skipped: updates left out one by one.
        num_rollbacks: times that the run went back.

    Raises:
        ConfigError: a number or name is out of range.
    """

    @checked_keywords(words={"threshold": "sigma"})
    def __init__(
        self,
        sigma: float = 6.0,
        window: int = 128,
        action: Literal["skip_update", "rollback"] = "skip_update",
        *,
        monitor: Monitor = "loss",
        max_rollbacks: int = 3,
        skip_ahead: int = 0,
    ) -> None:
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0.0 < sigma < math.inf:
            raise ConfigError(f"SpikeGuard: sigma must be a finite number above 0, but is {sigma!r}")
        for name, value, least in (
            ("window", window, 4), ("max_rollbacks", max_rollbacks, 1), ("skip_ahead", skip_ahead, 0),
        ):  # fmt: skip
            whole_number(f"SpikeGuard: {name}", value, least)
        for name, chosen, known in (
            ("action", action, ("skip_update", "rollback")), ("monitor", monitor, ("loss", "gradient_norm", "both")),
        ):  # fmt: skip
            if chosen not in known:
                raise ConfigError(f"SpikeGuard: {name} must be one of {', '.join(known)}, but is {chosen!r}")
        self.sigma, self.window, self.action, self.monitor = float(sigma), window, action, monitor
        self.max_rollbacks, self.skip_ahead = max_rollbacks, skip_ahead
        self.num_skipped = self.num_rollbacks = 0
        self._history: dict[str, list[float]] = {}
        self._losses: list[tuple[str, Tensor]] = []  # of the window under way
        self._new: dict[str, float] = {}  # what the update under way adds to the history

    @property
    def needs_norm(self) -> bool:
        """Whether the gradients' norm is looked at."""
        return self.monitor != "loss"

    def on_train_start(self, trainer: Trainer) -> None:
        """Whether there will be checkpoints to go back to."""
        if trainer.config.performance.manual_optimization:
            raise ConfigError(
                "SpikeGuard has no effect with performance.manual_optimization, where the step itself decides when "
                "optimizers step: compare the loss there"
            )
        saves = trainer.config.checkpoint
        every = (saves.save_every_n_steps, saves.save_every_n_epochs, saves.save_every_n_minutes)
        if self.action == "rollback" and not any(every):
            raise ConfigError(
                "SpikeGuard(action='rollback') goes back to the run's last checkpoint, but nothing saves one: set "
                "checkpoint.save_every_n_steps, or use action='skip_update'"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        dataloader_name: str,
        metrics: Mapping[str, Any],
    ) -> None:
        """Keeps the loss of the batch."""
        if "loss" in metrics and self.monitor != "gradient_norm":
            self._losses.append((dataloader_name, metrics["loss"]))

    # What the update's end asks

    def begin_window(self) -> None:
        """Forgets what a window that failed has left."""
        self._losses.clear()
        self._new = {}

    def judge(self, names: Iterable[str], ranks: SingleRank, norm: float | None) -> str | None:
        """What makes the update a spike, in words; None where nothing does. The same on all ranks.

        Args:
            names: loaders of the window.
            ranks: those that train together.
            norm: of the gradients, the same on all ranks; None where it says nothing.
        """
        values = {} if self.monitor == "gradient_norm" else self._mean_losses(list(dict.fromkeys(names)), ranks)
        if norm is not None:
            values["gradient norm"] = norm
        found = [spike for what, value in values.items() if (spike := self._compare(what, value)) is not None]
        self._new = {what: value for what, value in values.items() if math.isfinite(value)}
        return "; ".join(found) or None

    def commit(self) -> None:
        """The update is over: its values are history."""
        for what, value in self._new.items():
            self._history[what] = [*self._history.get(what, ())[-self.window + 1 :], value]
        self._new = {}

    def _mean_losses(self, names: list[str], ranks: SingleRank) -> dict[str, float]:
        sums = dict.fromkeys(names, 0.0)
        counts = dict.fromkeys(names, 0)
        losses = [loss for _, loss in self._losses]
        on_device = losses and not losses[0].is_cpu
        read = torch.stack(losses).tolist() if on_device else [float(loss) for loss in losses]  # one wait for a GPU
        for (name, _), value in zip(self._losses, read, strict=True):
            sums[name] += value
            counts[name] += 1
        if ranks.world_size > 1:
            both = torch.tensor([[*sums.values()], [*counts.values()]], dtype=torch.float64)
            totals, numbers = ranks.sum(both).tolist()
            sums, counts = dict(zip(names, totals, strict=True)), dict(zip(names, numbers, strict=True))
        return {f"loss of {name!r}": sums[name] / counts[name] for name in names if counts[name]}

    def _compare(self, what: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"{what} is {value}"
        history = self._history.get(what, ())
        if len(history) < self.window // 2:
            return None
        median = statistics.median(history)
        spread = _TO_SIGMA * statistics.median(abs(x - median) for x in history)
        spread = max(spread, _LEAST_SPREAD * abs(median))
        if value <= median + self.sigma * spread:
            return None
        deviations = f"{(value - median) / spread:.1f} deviations above" if spread else "above"
        return f"{what} is {value:.5g}, {deviations} the median {median:.5g} of the last {len(history)} updates"

    def state_dict(self) -> dict[str, Any]:
        """Values of the last updates, and what was decided."""
        history = {what: list(values) for what, values in self._history.items()}
        return {"history": history, "num_skipped": self.num_skipped, "num_rollbacks": self.num_rollbacks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from there."""
        self._history = {str(what): list(values) for what, values in state["history"].items()}
        self.num_skipped, self.num_rollbacks = int(state["num_skipped"]), int(state["num_rollbacks"])
        self.begin_window()
