"""Averaged weights: a second set of parameters that follows the trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtf.config.keywords import checked_keywords
from mtf.errors import ConfigError, StateMismatch, UsageError
from mtf.trainer.hooks.base import Trainer, TrainerHooks


class AveragedWeights(TrainerHooks):
    """Averages the parameters over updates, and validates with the averages.

    They are swapped in for each validation and put back on every way out of it, so a checkpoint's model always has the
    trained weights; the averages are in its state, and a resumed run continues them exactly. Buffers, such as running
    statistics, are those of the model. Sources: Polyak and Juditsky 1992 for averages, Izmailov et al. 2018 for SWA.

    Args:
        kind: ``"ema"``: ``decay * average + (1 - decay) * weights`` after each update; ``"swa"``: the mean of all
            weights that were averaged.
        decay: of ``"ema"``, in [0, 1).
        every_n_updates: updates between two that are averaged.
        start: the first update that is averaged; before it the averages are the weights.

    Raises:
        ConfigError: a value out of its range.
    """

    @checked_keywords(
        words={
            "beta": "decay",
            "ema_decay": "decay",
            "update_every": "every_n_updates",
            "every_n_steps": "every_n_updates",
            "update_after_step": "start",
            "update_starting_at_step": "start",
        }
    )
    def __init__(
        self, kind: Literal["ema", "swa"] = "ema", decay: float = 0.999, every_n_updates: int = 1, start: int = 0
    ) -> None:
        if isinstance(kind, (int, float)):
            raise ConfigError(f"AveragedWeights: the first argument is kind; a decay is AveragedWeights(decay={kind})")
        if kind not in ("ema", "swa"):
            raise ConfigError(f"AveragedWeights: kind must be 'ema' or 'swa', it is {kind!r}")
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"AveragedWeights: decay must be in [0, 1), it is {decay}")
        if every_n_updates < 1 or start < 0:
            raise ConfigError(
                f"AveragedWeights: every_n_updates must be at least 1 and start at least 0, they are {every_n_updates} "
                f"and {start}"
            )
        self.kind = kind
        self.decay = decay
        self.every_n_updates = every_n_updates
        self.start = start
        self.num_averaged = 0
        self._averages: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] | None = None
        self._last_update = -1

    def on_train_start(self, trainer: Trainer) -> None:
        """Begins with the model's weights, unless a state was loaded.

        Raises:
            ConfigError: each rank holds a part of the model.
            StateMismatch: the averages are those of another model.
        """
        if trainer.ranks.is_sharded:
            raise ConfigError("AveragedWeights needs whole parameters on each rank: use ddp.strategy='ddp'")
        parameters = dict(trainer.model.named_parameters())
        if not self._averages:
            self._averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        shapes = {name: tuple(value.shape) for name, value in self._averages.items()}
        if shapes != {name: tuple(parameter.shape) for name, parameter in parameters.items()}:
            raise StateMismatch("AveragedWeights: the averages in the state are those of another model")
        self._averages = {name: value.to(parameters[name].device) for name, value in self._averages.items()}
        self._last_update = -1

    def on_after_optimizer_step(self, trainer: Trainer, optimizer_idx: int) -> None:
        """Once per update, when all optimizers have stepped."""
        if self._last_update == trainer.global_step:
            return
        self._last_update = trainer.global_step
        if trainer.global_step < self.start:
            self._average(trainer.model, 1.0)
        elif trainer.global_step % self.every_n_updates == 0:
            self.num_averaged += 1
            self._average(trainer.model, 1.0 - self.decay if self.kind == "ema" else 1.0 / self.num_averaged)

    @torch.no_grad()
    def _average(self, model: nn.Module, share: float) -> None:
        for name, parameter in model.named_parameters():
            if share == 1.0:
                self._averages[name].copy_(parameter)
            else:
                self._averages[name].lerp_(parameter.to(self._averages[name].dtype), share)

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer) -> None:
        """Swaps the averages in."""
        if self._averages and self._kept is None:
            parameters = dict(trainer.model.named_parameters())
            self._kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, parameter in parameters.items():
                parameter.copy_(self._averages[name])

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Puts the trained weights back."""
        if self._kept is not None:
            for name, parameter in trainer.model.named_parameters():
                parameter.copy_(self._kept[name])
            self._kept = None

    def export(self, model: nn.Module) -> dict[str, Tensor]:
        """A state dict of ``model`` with the averages in the place of its parameters; copies, for ``torch.save`` or
        ``model.load_state_dict``. A parameter that has several names has its average under each.

        Args:
            model: the trained one, or another of its class.

        Raises:
            UsageError: nothing has been averaged, because no ``fit`` has begun.
            ConfigError: ``model`` has other parameters.
        """
        if not self._averages:
            raise UsageError("AveragedWeights.export: there are no averages before the first fit")
        parameters = dict(model.named_parameters())
        _require_alike(self._averages, parameters)
        averages = {id(parameter): self._averages[name] for name, parameter in parameters.items()}
        tensors = model.state_dict(keep_vars=True)
        return {name: averages.get(id(value), value).detach().clone() for name, value in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        """The averages, and how many weights are in them."""
        return {"averages": dict(self._averages), "num_averaged": self.num_averaged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with them."""
        averages = {str(name): value.detach().clone() for name, value in state["averages"].items()}
        self._averages, self.num_averaged = averages, int(state["num_averaged"])


def _require_alike(averages: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name in [*averages, *parameters]:
        here, there = parameters.get(name), averages.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = ["none" if value is None else str(tuple(value.shape)) for value in (here, there)]
            raise ConfigError(
                f"AveragedWeights.export: parameter {name!r} has shape {shapes[0]} in this model and {shapes[1]} in "
                "the averages: give it the trained model, or another of its class"
            )
