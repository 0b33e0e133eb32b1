"""Weights of the sources that follow from their losses during training."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtf.config.checks import whole_number
from mtf.config.keywords import checked_keywords
from mtf.data.blend.blend import Blend
from mtf.data.blend.tracing.origins import SourceMeans
from mtf.data.multi_loader import MultiLoader
from mtf.enums import SamplingStrategy
from mtf.errors import ConfigError
from mtf.trainer.hooks.base import Trainer, TrainerHooks
from mtf.trainer.hooks.builtin import Curriculum
from mtf.trainer.metrics import num_samples

_log = logging.getLogger("mtf.trainer")

_GRID = 1 << 16  # weights are whole multiples of 1 / _GRID: what ranks and resumes compute in the last bits is cut off


@dataclass
class MixingRound:
    """What a mixing function decides from. The same on every rank.

    Attributes:
        number: Decisions before this one.
        update: The update after which it is made.
        means: Mean of the metric over the samples of each source since the last decision, on all ranks; without the
            sources that gave no sample.
        counts: Samples of each source since then.
        weights: Shares of the sources, which sum to 1.
        memory: Empty at first; what the function puts there (numbers, strings, lists and dicts) is saved with the
            trainer and is there again next time.
    """

    number: int
    update: int
    means: dict[str, float]
    counts: dict[str, int]
    weights: dict[str, float]
    memory: dict[str, Any] = field(default_factory=dict)


MixingFunction = Callable[[MixingRound], Mapping[str, float] | None]


class OnlineMixing(TrainerHooks):
    """Sets the weights of the sources from what they lose: DoReMi, DoGE, ODM and the like are functions of a few lines.

    Every ``every`` updates ``fn`` gets the means of a metric by source and gives new weights. They are normalised,
    raised to ``floor``, rounded to a grid of 2^-16 and take effect with the next update. Sums and counts are added over
    micro-batches and ranks, so the means are those of all samples. A decision is made once and is equal on all ranks;
    sums, ``memory`` and the weights in force are part of the state, so that a resumed run decides as the
    uninterrupted one. Decisions are logged (``mtf.trainer``), and each row has ``mixing/<source>``, the weights.

    In a mixture of batches the metric is that of a source's steps, weighed by their samples. In a ``Blend`` the step
    says what each source's rows lost: ``{"loss": ..., "row_loss": mtf.sources_of(batch).means(losses)}``, with
    ``metric="row_loss"``.

    Args:
        fn: ``fn(round) -> {name: weight}`` or None, which changes nothing.
        every: Updates from one decision to the next.
        floor: The smallest weight that a source may get; times the number of sources at most 1.
        metric: What the training step returns: a number, or in a blend what ``RowSources.means`` gives.
        blend: Name of the blend in the mixture whose sources are weighted; None: the sources of the mixture, or of the
            only one, if that is a blend.

    Raises:
        ConfigError: An argument out of its range; in ``fit``, sources whose weights can't be set: one source alone,
            another strategy than WEIGHTED, a weight curve or a ``Curriculum`` at the same time; weights that ``fn``
            mustn't give.
    """

    @checked_keywords()
    def __init__(
        self,
        fn: MixingFunction,
        every: int = 16,
        floor: float = 0.01,
        metric: str = "loss",
        blend: str | None = None,
    ) -> None:
        if not callable(fn):
            raise ConfigError(f"OnlineMixing: fn must be a function of a MixingRound, but is {fn!r}")
        every = whole_number("OnlineMixing: every", every, 1)
        if not 0 <= floor < 1:
            raise ConfigError(f"OnlineMixing: floor must be in [0, 1), but is {floor!r}")
        self._fn = fn
        self.every = every
        self.floor = floor
        self.metric = metric
        self.blend = blend
        self._number = 0
        self._last = 0  # update of the last decision
        self._update = 0  # the update that was counted last
        self._memory: dict[str, Any] = {}
        self._totals: dict[str, Tensor] = {}  # sum and count by source, on all ranks
        self._window: list[tuple[int, str, Any, Any]] = []  # number of the batch, source, sum, count

    # Events ----------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer) -> None:
        """Checks that there are weights to set."""
        self._window.clear()
        target = self._target(trainer.multi_loader_manager)
        for hook in trainer._hooks:
            is_same = isinstance(hook, OnlineMixing) and hook is not self and hook.blend == self.blend
            if is_same or isinstance(hook, Curriculum):
                other = type(hook).__name__
                raise ConfigError(f"OnlineMixing sets the weights, and so does another {other}: remove one of the two")
        names = _weights_of(target)
        if len(names) * self.floor > 1:
            raise ConfigError(f"OnlineMixing: floor times {len(names)} sources must be at most 1, but is {self.floor}")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        dataloader_name: str,
        metrics: Mapping[str, Any],
    ) -> None:
        """Notes what each source lost."""
        number = trainer.num_batches
        in_blend = self._blend_name(trainer.multi_loader_manager)
        if in_blend not in (None, dataloader_name) or "num_samples" in metrics:  # another loader; no items
            return
        value = metrics.get(self.metric)
        if in_blend is not None:
            if not isinstance(value, SourceMeans):
                raise ConfigError(
                    f"OnlineMixing: the training step must return {self.metric!r} for the sources of blend "
                    f"{dataloader_name!r}, as mtf.sources_of(batch).means(values) gives it, but it is {value!r}; "
                    "metric= names another"
                )
            self._window += [(number, name, total, count) for name, total, count in value.parts()]
            return
        if not isinstance(value, (int, float, Tensor)) or (isinstance(value, Tensor) and value.numel() != 1):
            raise ConfigError(
                f"OnlineMixing: the training step must return a number as {self.metric!r}, but it is {value!r}"
            )
        rows = num_samples(batch)
        self._window.append((number, dataloader_name, value * rows, rows))

    def on_after_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """Adds up the update's losses over the ranks; decides where it is time to."""
        update = trainer.global_step + 1
        if update == self._update:
            return  # another optimizer of the same update
        self._update = update
        target = self._target(trainer.multi_loader_manager)
        self._add_up(trainer, list(_weights_of(target)))
        if update - self._last >= self.every:
            self._decide(trainer, target, update)
        for name, weight in _weights_of(target).items():
            trainer.log(f"mixing/{name}", weight)

    # State -----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts since the last decision, and the function's memory; the weights are the mixture's state."""
        totals = {name: total.tolist() for name, total in self._totals.items()}
        return {"number": self._number, "last": self._last, "memory": copy.deepcopy(self._memory), "totals": totals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues there."""
        self._number, self._last, self._update = int(state["number"]), int(state["last"]), 0
        self._memory = copy.deepcopy(dict(state["memory"]))
        self._totals = {name: torch.tensor(total, dtype=torch.float64) for name, total in state["totals"].items()}
        self._window.clear()

    # What is weighted -------------------------------------------------------------------------------------------------

    def _blend_name(self, multi: MultiLoader) -> str | None:
        """Name of the blend whose sources are weighted; None: the mixture's are."""
        if self.blend is not None:
            return self.blend
        names = multi.names
        return names[0] if len(names) == 1 else None

    def _target(self, multi: MultiLoader) -> MultiLoader | Blend:
        name = self._blend_name(multi)
        if name is None:
            strategy = multi.config.sampling_strategy
            if strategy is not SamplingStrategy.WEIGHTED:
                raise ConfigError(
                    f"OnlineMixing sets weights, which sampling_strategy={strategy.name} doesn't read: set WEIGHTED"
                )
            _refuse_curve(multi.config.weight_curve)
            return multi
        source = multi.source(name)
        if not isinstance(source, Blend):
            raise ConfigError(
                f"OnlineMixing needs several sources to weigh, but {name!r} is one {type(source).__name__}: give fit "
                "several loaders or an mtf.Blend"
            )
        if len(source.names) < 2:
            raise ConfigError(f"OnlineMixing needs several sources to weigh, but blend {name!r} has {source.names}")
        _refuse_curve(source.weight_curve)
        return source

    # Sums and decisions -----------------------------------------------------------------------------------------------

    def _add_up(self, trainer: Trainer, names: list[str]) -> None:
        """Adds the window's sums and counts, of all ranks; those of a window without an update are left out."""
        begin = trainer._run.num_committed
        dtype = torch.float32 if trainer.device.type == "mps" else torch.float64
        totals = torch.zeros(len(names), 2, dtype=dtype, device=trainer.device)
        index = {name: place for place, name in enumerate(names)}
        for number, name, total, count in self._window:
            if number > begin and name in index:
                totals[index[name], 0] += total
                totals[index[name], 1] += count
        self._window.clear()
        totals = trainer.ranks.sum(totals)
        zero = torch.zeros(2, dtype=dtype, device=trainer.device)
        before = {name: self._totals.get(name, zero).to(zero) for name in names}
        self._totals = {name: before[name] + totals[place] for name, place in index.items()}

    def _decide(self, trainer: Trainer, target: MultiLoader | Blend, update: int) -> None:
        # Ranks add in orders of their own: what rank 0 has decides.
        totals = trainer.ranks.broadcast_object({name: total.tolist() for name, total in self._totals.items()})
        means = {name: total / count for name, (total, count) in totals.items() if count > 0}
        counts = {name: int(count) for name, (_, count) in totals.items()}
        before = _weights_of(target)
        found = MixingRound(self._number, update, means, counts, before, copy.deepcopy(self._memory))
        given = self._fn(found)
        self._number, self._last, self._memory = self._number + 1, update, found.memory
        self._totals = {}
        if given is None:
            return
        units = trainer.ranks.broadcast_object(self._on_grid(given, list(before)))
        target.update_weights({name: float(unit) for name, unit in units.items()})
        _log.info(
            "update %d: OnlineMixing sets the weights to %s",
            update,
            ", ".join(f"{name} {weight:.4f}" for name, weight in _weights_of(target).items()),
        )

    def _on_grid(self, given: Mapping[str, float], names: list[str]) -> dict[str, int]:
        """Weights as whole numbers of grid steps."""
        if not isinstance(given, Mapping) or set(given) != set(names):
            raise ConfigError(f"OnlineMixing: fn must give a weight for each of {names}, but gave {given!r}")
        total = math.fsum(given.values())
        if not all(math.isfinite(w) and w >= 0 for w in given.values()) or not 0 < total < math.inf:
            raise ConfigError(
                f"OnlineMixing: fn must give finite weights, none negative and not all 0, but gave {given}"
            )
        rest = 1 - len(names) * self.floor
        shares = {name: self.floor + rest * given[name] / total for name in names}
        return {name: max(round(share * _GRID), 1 if self.floor else 0) for name, share in shares.items()}


def _weights_of(target: MultiLoader | Blend) -> dict[str, float]:
    """The shares in force, by name; they sum to 1."""
    if isinstance(target, Blend):
        return target.weights
    names, weights = target.names, target.config.dataloader_weights
    given = weights or [1.0] * len(names)
    return {name: weight / math.fsum(given) for name, weight in zip(names, given, strict=True)}


def _refuse_curve(curve: Any) -> None:
    if curve is not None:
        raise ConfigError("OnlineMixing sets the weights, and so does weight_curve: remove one of both")
