"""Freezing parts of a model and training them later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn

from mtf.config.checks import nearest, one_of
from mtf.config.keywords import checked_keywords
from mtf.errors import ConfigError
from mtf.trainer.hooks.base import Trainer, TrainerHooks


class FreezeSchedule(TrainerHooks):
    """Trains parts of the model only, and others from an epoch or an update on.

    What isn't trained gets no gradient, and its optimizer leaves it and its own state as they are. Parameters that
    belong to no optimizer when they are first trained become a new group of one; its learning rate follows the
    schedulers of the first group. All of it is part of the state, so a resumed run continues exactly.

    Args:
        trained: epoch or update -> names of modules or parameters, or patterns such as ``"*.bias"``, that are trained
            from then on, until the next entry; all others are frozen. ``"*"`` is everything. Needs an entry for 0.
        by: what the keys of ``trained`` count.
        optimizer_idx: the optimizer that gets a new group.
        new_group: settings of a new group, such as ``{"lr": 1e-5}``; else the optimizer's defaults.
        eval_frozen: whether modules whose parameters are all frozen run in eval mode, so that running statistics stay,
            too, and dropout is off.

    Raises:
        ConfigError: an argument out of its range; in ``fit``, a name that the model doesn't have.
    """

    @checked_keywords(words={"schedule": "trained", "modules": "trained", "unfreeze_at_epoch": "trained"})
    def __init__(
        self,
        trained: Mapping[int, str | Sequence[str]],
        by: Literal["epoch", "update"] = "epoch",
        optimizer_idx: int = 0,
        new_group: Mapping[str, Any] | None = None,
        eval_frozen: bool = False,
    ) -> None:
        one_of("FreezeSchedule: by", by, ("epoch", "update"))
        if not isinstance(trained, Mapping) or 0 not in trained:
            raise ConfigError(
                f"FreezeSchedule: trained must be a dict with an entry for {by} 0, such as {{0: ['head'], 2: '*'}}, it "
                f"is {trained!r}"
            )
        self._trained: dict[int, list[str]] = {}
        for start, names in sorted(trained.items()):
            patterns = [names] if isinstance(names, str) else list(names)
            if not isinstance(start, int) or start < 0 or not patterns or not all(isinstance(n, str) for n in patterns):
                raise ConfigError(f"FreezeSchedule: trained[{start!r}] must be names, from {by} 0 on, it is {names!r}")
            self._trained[start] = patterns
        self.by = by
        self.optimizer_idx = optimizer_idx
        self.eval_frozen = eval_frozen
        self.start: int | None = None
        """The entry of ``trained`` that holds; None before the first ``fit``."""
        self._new_group = dict(new_group or {})
        self._in_eval: list[nn.Module] = []

    def on_train_start(self, trainer: Trainer) -> None:
        """Checks every name, and freezes what the state, or the position of a new run, says."""
        if not 0 <= self.optimizer_idx < len(trainer.optimizers):
            raise ConfigError(
                f"FreezeSchedule: optimizer_idx is {self.optimizer_idx}, there are {len(trainer.optimizers)} optimizers"
            )
        for start, patterns in self._trained.items():
            for pattern in patterns:
                _require_match(trainer.model, pattern, f"FreezeSchedule: trained[{start}]")
        if self.start is None or self.start not in self._trained:
            position = trainer.epoch if self.by == "epoch" else trainer.global_step
            self.start = self._entry_at(position)
        self._apply(trainer, self.start)

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """The entry of this epoch."""
        if self.by == "epoch":
            self._change(trainer, epoch)

    def on_after_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """The entry of the next update."""
        if self.by == "update":
            self._change(trainer, trainer.global_step + 1)

    def _change(self, trainer: Trainer, position: int) -> None:
        start = self._entry_at(position)
        if start != self.start:
            self.start = start
            self._apply(trainer, start)

    def _entry_at(self, position: int) -> int:
        return max(start for start in self._trained if start <= position)

    def _apply(self, trainer: Trainer, start: int) -> None:
        patterns = self._trained[start]
        has_changed, added = False, []
        owned = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in trainer.model.named_parameters():
            is_trained = any(_matches(name, pattern) for pattern in patterns)
            if is_trained and parameter not in owned:
                added.append(parameter)
            if parameter.requires_grad != is_trained:
                parameter.requires_grad_(is_trained)
                has_changed = True
        optimizer = trainer.optimizers[self.optimizer_idx]
        if added:
            optimizer.add_param_group({**self._new_group, "params": added})
        follow_groups(trainer._parts.schedulers.by_place().values(), optimizer, is_new=bool(added))
        if has_changed:
            trainer._parts.data.is_announced = False  # several ranks reduce the gradients of those that are trained
        if self.eval_frozen:
            self._set_modes(trainer.model)

    def _set_modes(self, model: nn.Module) -> None:
        for module in self._in_eval:
            module.train()
        self._in_eval = []
        _collect_frozen(model, self._in_eval)
        for module in self._in_eval:
            module.eval()

    def state_dict(self) -> dict[str, Any]:
        """The entry that holds. Flags and groups are in the trainer's state."""
        return {"start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with it."""
        self.start = state["start"]


def _collect_frozen(module: nn.Module, found: list[nn.Module]) -> None:
    """The largest parts of ``module`` that have parameters, none of them trained."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        found.append(module)
        return
    for child in module.children():
        _collect_frozen(child, found)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _require_match(model: nn.Module, pattern: str, where: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    if not any(_matches(name, pattern) for name in names):
        modules = [name for name, _ in model.named_children()]
        raise ConfigError(
            f"{where}: no parameter of the model is in {pattern!r}{nearest(pattern, [*modules, *names])} (top modules: "
            f"{', '.join(modules)})"
        )


def follow_groups(schedulers: Iterable[Any], optimizer: torch.optim.Optimizer, *, is_new: bool) -> None:
    """Lets schedulers set the rates of groups that were added to ``optimizer`` after they had been made.

    Args:
        is_new: whether the last group was added just now: its rate then gets the factor that schedulers have brought
            the first group's to. A group that a state added has its rate from there.
    """
    groups = optimizer.param_groups
    first = groups[0]
    own = [s for s in schedulers if s is not None]
    if is_new and "initial_lr" in first and "lr" in groups[-1]:
        _follow_first(first, groups[-1])
    for scheduler in own:
        _extend(scheduler, optimizer)


def _follow_first(first: dict[str, Any], new: dict[str, Any]) -> None:
    """Gives a new group the factor of the first group's schedule; its rate is the highest one of a cyclic schedule."""
    reference = first.get("max_lr", first["initial_lr"])
    share = new["lr"] / reference if reference else 0.0
    for name in ("initial_lr", "max_lr", "min_lr"):
        if name in first:
            new.setdefault(name, first[name] * share)
    new["lr"] = first["lr"] * share if reference else new["lr"]


def _extend(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    for part in getattr(scheduler, "_schedulers", ()):
        _extend(part, optimizer)
    if getattr(scheduler, "optimizer", None) is not optimizer:
        return
    groups = optimizer.param_groups
    rates = getattr(scheduler, "base_lrs", None)
    if isinstance(rates, list):
        rates += [group.get("initial_lr", group["lr"]) for group in groups[len(rates) :]]
    functions = getattr(scheduler, "lr_lambdas", None)
    if isinstance(functions, list) and functions:
        functions += functions[-1:] * (len(groups) - len(functions))
