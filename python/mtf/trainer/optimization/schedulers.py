"""Which learning rate schedulers step when: after updates, rows, validations and epochs."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtf.call_site import user_level
from mtf.config.checks import nearest
from mtf.errors import ConfigError
from mtf.trainer.optimization.optimizers import check_names

if TYPE_CHECKING:
    from mtf.data.batch import Batch


@dataclass
class ScheduledRate:
    """One learning rate scheduler and when it steps.

    Attributes:
        scheduler: anything with ``step()``, ``state_dict()`` and ``load_state_dict()``.
        interval: ``"step"``: after updates in which its optimizer stepped, or, with a ``monitor``, whenever a row or a
            validation gives this metric a new value; ``"epoch"``: at an epoch's end.
        monitor: the metric given to ``scheduler.step(value)``.
        optimizer: index of its optimizer; None where it can't be told: then it steps whenever any optimizer did.
    """

    scheduler: Any
    interval: Literal["step", "epoch"] = "epoch"
    monitor: str | None = None
    optimizer: int | None = None

    def step(self, metrics: Mapping[str, float]) -> None:
        """Steps it, with its metric if it has one.

        Raises:
            ConfigError: the metric isn't there.
        """
        if self.monitor is None:
            self.scheduler.step()
        elif self.monitor in metrics:
            self.scheduler.step(metrics[self.monitor])
        else:
            raise ConfigError(
                f"schedulers: the monitored metric {self.monitor!r} isn't there"
                f"{nearest(self.monitor, metrics)} (so far: {', '.join(sorted(metrics)) or 'none'})"
            )


class SchedulerSet:
    """All learning rate schedulers: the general ones and those of single loaders."""

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Any,
        per_loader: Mapping[str, Any],
    ) -> None:
        given = [] if schedulers is None else schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
        self.general = [self._parse(i, entry, optimizers) for i, entry in enumerate(given)]
        self.per_loader = dict(per_loader)
        for name, scheduler in self.per_loader.items():
            _check_steps(f"per_loader_schedulers[{name!r}]", scheduler)
        self._per_loader_optimizer = {n: _optimizer_of(s, optimizers) for n, s in self.per_loader.items()}
        self._by_step = [s for s in self.general if s.interval == "step" and s.monitor is None]
        self._by_row = [s for s in self.general if s.interval == "step" and s.monitor is not None]

    @staticmethod
    def _parse(i: int, entry: Any, optimizers: Sequence[torch.optim.Optimizer]) -> ScheduledRate:
        where = f"schedulers[{i}]"
        if isinstance(entry, Mapping):
            known = ("scheduler", "interval", "monitor")
            for key in entry:
                if key not in known:
                    raise ConfigError(f"{where} has no setting {key!r}{nearest(key, known)} (settings: {known})")
            if "scheduler" not in entry:
                raise ConfigError(f"{where} needs 'scheduler'")
            rate = ScheduledRate(entry["scheduler"], entry.get("interval", "epoch"), entry.get("monitor"))
        else:
            rate = ScheduledRate(entry)
        if rate.interval not in ("step", "epoch"):
            raise ConfigError(f"{where}['interval'] must be 'step' or 'epoch', it is {rate.interval!r}")
        _check_steps(where, rate.scheduler)
        if rate.monitor is None and isinstance(rate.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                f"{where} is a ReduceLROnPlateau: say what it watches, "
                "{'scheduler': ..., 'monitor': 'val/loss'} for instance"
            )
        rate.optimizer = _optimizer_of(rate.scheduler, optimizers)
        return rate

    def check_names(self, names: Sequence[str]) -> None:
        """Raises ``ConfigError`` for a scheduler of a loader that doesn't exist."""
        check_names("per_loader_schedulers", self.per_loader, names)

    def after_update(self, window: Sequence[Batch], stepped: Collection[int]) -> None:
        """Steps what follows updates; nothing whose optimizer didn't step."""
        for rate in self._by_step:
            if rate.optimizer in stepped or (rate.optimizer is None and stepped):
                rate.scheduler.step()
        if self.per_loader:
            seen: dict[int, Any] = {}
            for batch in window:
                scheduler = self.per_loader.get(batch.name)
                optimizer = self._per_loader_optimizer.get(batch.name)
                if scheduler is not None and (optimizer in stepped or (optimizer is None and stepped)):
                    seen[id(scheduler)] = scheduler
            for scheduler in seen.values():
                scheduler.step()

    def after_row(self, row: Mapping[str, float]) -> None:
        """Steps what follows updates and watches a metric that ``row`` has: a value counts once."""
        for rate in self._by_row:
            if rate.monitor is not None and rate.monitor in row:
                rate.scheduler.step(row[rate.monitor])

    def warn_of_missing(self, metrics: Mapping[str, float], *, validates: bool) -> None:
        """Warns of what watches a metric that isn't there, though others of its kind are, or never can be."""
        for rate in self._by_row:
            watched = str(rate.monitor)
            is_val = watched.startswith("val/")
            kind = [name for name in metrics if name.startswith("val/") == is_val]
            if watched not in kind and (kind or (is_val and not validates)):
                warnings.warn(
                    f"schedulers: the monitored metric {watched!r} isn't there, so its scheduler doesn't step"
                    f"{nearest(watched, kind)} (so far: {', '.join(sorted(kind)) or 'no validation'})",
                    stacklevel=user_level(),
                )

    def after_epoch(self, metrics: Mapping[str, float], *, after_validation: bool) -> None:
        """Steps what follows epochs. Those that watch a validation metric wait until the validation has run."""
        for rate in self.general:
            if rate.interval == "epoch" and (rate.monitor or "").startswith("val/") == after_validation:
                rate.step(metrics)

    def by_place(self) -> dict[str, Any]:
        """Each scheduler by its place, as messages name it."""
        general = {f"schedulers[{i}]": rate.scheduler for i, rate in enumerate(self.general)}
        return {**general, **{f"per_loader_schedulers[{name!r}]": s for name, s in self.per_loader.items()}}

    def describe(self) -> dict[str, str]:
        """What each scheduler is, by its place."""
        general = {f"schedulers[{i}]": _kind(rate.scheduler, rate.interval) for i, rate in enumerate(self.general)}
        return {**general, **{f"per_loader_schedulers[{n!r}]": _kind(s, "step") for n, s in self.per_loader.items()}}

    def state_dict(self) -> dict[str, Any]:
        """State of every scheduler."""
        return {
            "general": [rate.scheduler.state_dict() for rate in self.general],
            "per_loader": {name: s.state_dict() for name, s in self.per_loader.items()},
            "kinds": self.describe(),
        }

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """Differences in words: numbers, loaders, kinds."""
        lines = []
        if len(self.general) != len(state["general"]):
            lines.append(f"schedulers: {len(self.general)} here, {len(state['general'])} in the state")
        own, known = sorted(self.per_loader), sorted(state["per_loader"])
        if own != known:
            lines.append(f"per_loader_schedulers: {own} here, {known} in the state")
        kinds = state.get("kinds", {})
        for place, kind in self.describe().items():
            if kinds.get(place, kind) != kind:
                lines.append(f"{place}: {kind} here, {kinds[place]} in the state")
        return lines

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives every scheduler its state back."""
        for rate, saved in zip(self.general, state["general"], strict=True):
            rate.scheduler.load_state_dict(saved)
        for name, saved in state["per_loader"].items():
            self.per_loader[name].load_state_dict(saved)


def _kind(scheduler: Any, interval: str) -> str:
    return f"{type(scheduler).__name__} per {interval}"


def _check_steps(where: str, scheduler: Any) -> None:
    for method in ("step", "state_dict", "load_state_dict"):
        if not callable(getattr(scheduler, method, None)):
            raise ConfigError(f"{where} is no learning rate scheduler, it has no {method}(): {scheduler!r}")


def _optimizer_of(scheduler: Any, optimizers: Sequence[torch.optim.Optimizer]) -> int | None:
    """Index of the optimizer whose rates it sets. Composed schedulers of torch keep it under another name."""
    owner = getattr(scheduler, "optimizer", None) or getattr(scheduler, "_optimizer", None)
    for i, optimizer in enumerate(optimizers):
        if optimizer is owner:
            return i
    return None
