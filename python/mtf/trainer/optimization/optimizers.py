"""Which optimizers step at the end of a window, and at what rate."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtf.call_site import user_level
from mtf.config.checks import nearest
from mtf.errors import ConfigError
from mtf.formatting import shortened
from mtf.trainer.optimization.clipping import Clipping

if TYPE_CHECKING:
    from mtf.data.batch import Batch
    from mtf.distributed.ranks import SingleRank
    from mtf.trainer.hooks.registry import HookList


def check_names(parameter: str, used: Iterable[str], known: Sequence[str]) -> None:
    """Raises ``ConfigError`` for the first of the ``used`` names that no loader has, with the nearest known one."""
    for name in used:
        if name not in known:
            raise ConfigError(
                f"{parameter}: no loader is called {name!r}, there are {list(known)}{nearest(name, known)}"
            )


@dataclass(frozen=True)
class LoaderRule:
    """What one loader's steps do: the optimizers they use and the factor of their learning rates."""

    optimizer_idx: tuple[int, ...]
    lr_scale: float = 1.0


def as_list(given: Any) -> list[torch.optim.Optimizer]:
    """One optimizer, several or None as a list.

    Raises:
        ConfigError: something that is no optimizer, or whose ``step`` can't be called without arguments.
    """
    if given is None:
        return []
    if isinstance(given, (torch.Tensor, Mapping)) or not isinstance(given, Iterable):
        given = [given]
    optimizers = list(given)
    for i, optimizer in enumerate(optimizers):
        for name in ("param_groups", "step", "state_dict", "load_state_dict"):
            if not hasattr(optimizer, name):
                raise ConfigError(
                    f"optimizers[{i}] must be an optimizer made with parameters, and has no {name}: "
                    f"{shortened(repr(optimizer))}"
                )
        try:
            # The class's: a scheduler replaces the one of the object.
            inspect.signature(type(optimizer).step).bind(optimizer)
        except TypeError:
            raise ConfigError(
                f"optimizers[{i}]: {type(optimizer).__name__}.step() needs a closure, to compute losses and gradients "
                "again as often as it likes; an update of mtf has the gradients of its window only, so choose another"
            ) from None
        except (AttributeError, ValueError):  # a step that has no signature
            continue
    return optimizers


def learning_rates(optimizer: torch.optim.Optimizer) -> list[float | None]:
    """The rate of each group; None where the optimizer keeps none, or finds its own."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    return [None if rate is None else float(rate) for rate in rates]


class OptimizerSet:
    """All optimizers of a run and the rule of each loader.

    Gradients of a window add up. At its end an optimizer steps if any of its loaders was seen and it has a
    gradient; afterwards all gradients are cleared, so nothing leaks into a later update.

    Args:
        rules: ``per_loader_optimizers`` of the configuration.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        rules: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.model = model
        self.optimizers = list(optimizers)
        self._all = LoaderRule(tuple(range(len(self.optimizers))))
        self._plain = dict.fromkeys(self._all.optimizer_idx, 1.0)
        self._rules = {name: self._parse(name, rule) for name, rule in rules.items()}
        owned = {p for optimizer in self.optimizers for p in _parameters(optimizer)}
        # Frozen ones as well: a hook may let them get gradients.
        self._unowned = [p for p in model.parameters() if p not in owned]
        of_model = set(model.parameters())
        for i, optimizer in enumerate(self.optimizers):
            strange = sum(p not in of_model for p in _parameters(optimizer))
            if strange:
                warnings.warn(
                    f"optimizers[{i}] has {strange} parameters that aren't in the model, so no state holds their "
                    "values: put all modules that are trained into one torch.nn.ModuleDict and give that as model",
                    stacklevel=user_level(),
                )
        names = [n for n, p in model.named_parameters() if p.requires_grad and p not in owned]
        if names and self.optimizers:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            warnings.warn(
                f"these parameters require gradients but belong to no optimizer, so they never change: {shown}",
                stacklevel=user_level(),
            )

    def _parse(self, name: str, rule: Mapping[str, Any]) -> LoaderRule:
        where = f"per_loader_optimizers[{name!r}]"
        if not isinstance(rule, Mapping):
            raise ConfigError(f"{where} must be a dict such as {{'optimizer_idx': [0], 'lr_scale': 0.5}}, got {rule!r}")
        for key in rule:
            if key not in ("optimizer_idx", "lr_scale"):
                near = nearest(key, ("optimizer_idx", "lr_scale"))
                raise ConfigError(f"{where} has no setting {key!r}{near} (settings: optimizer_idx, lr_scale)")
        given = rule.get("optimizer_idx", list(self._all.optimizer_idx))
        indices = [given] if isinstance(given, int) else list(given)
        if not indices and self.optimizers:
            raise ConfigError(
                f"{where}['optimizer_idx'] is empty, so batches of this loader would be trained on in vain: name an "
                "optimizer, set 'lr_scale': 0.0, or leave the loader out"
            )
        for i in indices:
            if not isinstance(i, int) or not 0 <= i < len(self.optimizers):
                raise ConfigError(
                    f"{where}['optimizer_idx'] contains {i!r}; it must be an int in "
                    f"[0, {len(self.optimizers)}), the number of optimizers"
                )
        scale = float(rule.get("lr_scale", 1.0))
        if not 0.0 <= scale < float("inf"):
            raise ConfigError(f"{where}['lr_scale'] must be finite and not negative, it is {scale}")
        return LoaderRule(tuple(sorted(set(indices))), scale)

    def describe(self) -> dict[str, list[int]]:
        """The optimizers of each loader that doesn't use all."""
        every = self._all.optimizer_idx
        return {name: list(rule.optimizer_idx) for name, rule in self._rules.items() if rule.optimizer_idx != every}

    def check_names(self, names: Sequence[str]) -> None:
        """Checks the rules against the loaders there are.

        Raises:
            ConfigError: a rule for a loader that doesn't exist, or a parameter that two optimizers would step in
                the same loader's updates.
        """
        check_names("per_loader_optimizers", self._rules, names)
        for name, rule in self._rules.items():
            for i in rule.optimizer_idx if rule.lr_scale != 1.0 else ():
                if None in learning_rates(self.optimizers[i]):
                    raise ConfigError(
                        f"per_loader_optimizers[{name!r}]['lr_scale'] is {rule.lr_scale}, and optimizers[{i}] "
                        f"({type(self.optimizers[i]).__name__}) has no learning rate to multiply"
                    )
        owners: dict[Tensor, int] = {}
        for j, optimizer in enumerate(self.optimizers):
            for p in _parameters(optimizer):
                i = owners.setdefault(p, j)
                if i == j:
                    continue
                for name in names:
                    used = self._rules.get(name, self._all).optimizer_idx
                    if i in used and j in used:
                        raise ConfigError(
                            f"a parameter of shape {tuple(p.shape)} belongs to optimizers {i} and {j}, and loader "
                            f"{name!r} uses both: declare with per_loader_optimizers which of them each loader uses"
                        )

    def _factors(self, window: Sequence[Batch]) -> dict[int, float]:
        """Optimizers that step after ``window``, with the factor of their learning rates.

        In a mixed window the factor of an optimizer is the mean over those steps that use it.
        """
        if not self._rules:
            return self._plain
        scales: dict[int, list[float]] = {}
        for batch in window:
            rule = self._rules.get(batch.name, self._all)
            for i in rule.optimizer_idx:
                scales.setdefault(i, []).append(rule.lr_scale)
        return {i: sum(found) / len(found) for i, found in sorted(scales.items())}

    def prepare(
        self,
        window: Sequence[Batch],
        hooks: HookList,
        ranks: SingleRank,
        scaler: torch.amp.GradScaler | None,
        clip: Clipping | None,
        scale: float = 1.0,
    ) -> dict[int, float]:
        """Everything of the end of ``window`` that may fail: unscale, clip, call the hooks. Changes no parameter.

        Args:
            clip: how gradients are clipped; None: not.
            scale: factor of all gradients, before they are clipped; 0.0: nothing steps.

        Returns:
            The optimizers that are to step, with the factor of their learning rates; none where fp16 found a gradient
            that isn't finite.
        """
        stepping = {}
        for i, factor in self._factors(window).items():
            if _has_gradient(self.optimizers[i]):
                stepping[i] = factor
        if not stepping or scale == 0.0:
            return {}
        if scaler is not None:
            _unscale([self.optimizers[i] for i in stepping], scaler)
        if scaler is not None or clip is not None or scale != 1.0:
            parameters = list(dict.fromkeys(p for i in stepping for p in _parameters(self.optimizers[i])))
            for p in parameters if scale != 1.0 else ():
                if p.grad is not None:
                    p.grad.mul_(scale)
            if scaler is not None and not ranks.all_finite(parameters):
                scaler.update()
                return {}
            if clip is not None:
                own = {i: _parameters(self.optimizers[i]) for i in stepping}
                clip.apply(own, ranks, hooks.on_gradient_clip)
        for method in hooks.on_before_optimizer_step:
            for i in stepping:
                method(i)
        return stepping

    def step(self, stepping: Mapping[int, float], scaler: torch.amp.GradScaler | None) -> None:
        """Steps what ``prepare`` gave. Gradients are kept until ``clear``."""
        for i, factor in stepping.items():
            if scaler is None and factor == 1.0:
                self.optimizers[i].step()
            else:
                self._step_one(self.optimizers[i], factor, scaler)
        if scaler is not None and stepping:
            scaler.update()

    @staticmethod
    def _step_one(optimizer: torch.optim.Optimizer, factor: float, scaler: torch.amp.GradScaler | None) -> None:
        groups = optimizer.param_groups if factor != 1.0 else []
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * factor
        try:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        finally:
            # The saved rate is put back: dividing by the factor would not give the same bits, nor survive 0.
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    def clear(self) -> None:
        """Drops every gradient, also of optimizers that didn't step and of parameters without an optimizer."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None
        for p in self._unowned:
            p.grad = None


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _unscale(optimizers: Sequence[torch.optim.Optimizer], scaler: torch.amp.GradScaler) -> None:
    """Unscales each gradient once, also one that several of the optimizers share."""
    if len(optimizers) == 1:  # which can share none
        scaler.unscale_(optimizers[0])
        return
    done: set[Tensor] = set()
    for optimizer in optimizers:
        own = {p for p in _parameters(optimizer) if p.grad is not None}
        grads = {p: p.grad.clone() for p in own & done if p.grad is not None}
        scaler.unscale_(optimizer)
        for p, grad in grads.items():
            p.grad = grad
        done |= own


def _has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                return True
    return False
