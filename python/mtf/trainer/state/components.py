"""The parts of a trainer's state that aren't components by themselves: settings, weights, optimizers, metrics."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtf.call_site import user_level
from mtf.checkpoint.compare import CLOCK_METRICS
from mtf.distributed.ranks import SingleRank
from mtf.trainer.state.registry import OTHER_RANKS
from mtf.trainer.state.run_state import RunState

_log = logging.getLogger("mtf")


def upgraded(state: Any) -> Any:
    """A state that an earlier version of mtf took, with today's names."""
    if not isinstance(state, Mapping):
        return state
    new = dict(state)
    others = new.get(OTHER_RANKS)
    if isinstance(others, list):
        new[OTHER_RANKS] = [_upgraded_rank(part) for part in others]
    new.setdefault("settings", {})
    return new


def _upgraded_rank(part: Any) -> Any:
    if not isinstance(part, Mapping) or "multi" in part:
        return part
    multi = {name: part[name] for name in ("sources", "last_batches") if name in part}
    return {**{name: value for name, value in part.items() if name not in multi}, "multi": multi}


class SettingsState:
    """Settings that decide how a state continues, and that nothing else in it tells."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return dict(self._settings)

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """Differences in words."""
        here = self._settings
        return [
            f"{name}: {here[name]} here, {there} in the state" for name, there in state.items() if here[name] != there
        ]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the settings are those of the trainer."""


class ModelState:
    """The model's parameters and buffers, whole or sharded."""

    def __init__(self, model: nn.Module, ranks: SingleRank) -> None:
        self._model = model
        self._ranks = ranks

    def state_dict(self) -> dict[str, Any]:
        """Live tensors by name."""
        return dict(self._model.state_dict())

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """Differences in words: names, shapes, dtypes."""
        own = self._model.state_dict()
        lines = [f"model: the state has no {name!r}" for name in own if name not in state]
        lines += [f"model: the model has no {name!r}" for name in state if name not in own]
        for name, value in state.items():
            mine = own.get(name)
            if not isinstance(mine, Tensor):
                continue
            if not isinstance(value, Tensor):
                lines.append(f"model: it is malformed: {name!r} is no tensor, it is {type(value).__name__}")
            elif mine.shape != value.shape:
                lines.append(f"model: {name!r} has shape {tuple(mine.shape)}, in the state {tuple(value.shape)}")
            elif mine.dtype != value.dtype:
                lines.append(f"model: {name!r} has dtype {mine.dtype}, in the state {value.dtype}")
        return lines

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copies the values into the model's own tensors."""
        like = self._model.state_dict()
        with torch.no_grad():
            self._model.load_state_dict(
                {name: self._ranks.distribute_like(value, like.get(name)) for name, value in state.items()}
            )


class OptimizersState:
    """All optimizers: their class, the names of their parameters, and what they keep."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ranks: SingleRank) -> None:
        self._model = model
        self._optimizers = list(optimizers)
        self._ranks = ranks

    def state_dict(self) -> list[dict[str, Any]]:
        """One entry per optimizer, with live tensors."""
        return [
            {"class": type(optimizer).__name__, "parameters": names, "state": optimizer.state_dict()}
            for optimizer, names in zip(self._optimizers, self._parameter_names(), strict=True)
        ]

    def check(self, state: Sequence[Mapping[str, Any]]) -> list[str]:
        """Differences in words: number, classes, groups, names of parameters."""
        if len(state) != len(self._optimizers):
            return [f"optimizers: {len(self._optimizers)} here, {len(state)} in the state"]
        lines = []
        for i, (optimizer, names, entry) in enumerate(
            zip(self._optimizers, self._parameter_names(), state, strict=True)
        ):
            if type(optimizer).__name__ != entry["class"]:
                lines.append(f"optimizers[{i}]: {type(optimizer).__name__} here, {entry['class']} in the state")
            sizes = [len(group["params"]) for group in optimizer.param_groups]
            saved_sizes = [len(group["params"]) for group in entry["state"]["param_groups"]]
            if len(saved_sizes) > len(sizes) and saved_sizes[: len(sizes)] == sizes:
                missing = [name for name in entry["parameters"][sum(sizes) :] if not self._may_be_added(name, names)]
                if not missing:  # a hook added groups on the way
                    saved_sizes = sizes
            if sizes != saved_sizes:
                lines.append(f"optimizers[{i}]: groups of {sizes} parameters here, {saved_sizes} in the state")
                continue
            pairs = zip(names, entry.get("parameters", names), strict=False)
            others = [(k, here, there) for k, (here, there) in enumerate(pairs) if here != there]
            if others:
                k, here, there = others[0]
                more = f" (and {len(others) - 1} more differ)" if len(others) > 1 else ""
                lines.append(f"optimizers[{i}]: its parameter {k} is {here!r} here, {there!r} in the state{more}")
        return lines

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Loads every optimizer; where one raises, all are as before."""
        # torch's optimizers get another state and other groups, so those they had are unchanged.
        before = [{**vars(o), "param_groups": list(o.param_groups)} for o in self._optimizers]
        try:
            for optimizer, entry in zip(self._optimizers, state, strict=True):
                self._add_groups(optimizer, entry)
                # guard: state of an optimizer
                _load_optimizer(optimizer, self._placed(optimizer, entry["state"]))
        except Exception:
            for optimizer, attributes in zip(self._optimizers, before, strict=True):
                vars(optimizer).update(attributes)
            raise

    def _may_be_added(self, name: str | None, names: Sequence[str | None]) -> bool:
        return name not in names and any(name == own for own, _ in self._model.named_parameters())

    def _add_groups(self, optimizer: torch.optim.Optimizer, entry: Mapping[str, Any]) -> None:
        """Adds the groups that a hook had added when the state was taken."""
        parameters = dict(self._model.named_parameters())
        start = sum(len(group["params"]) for group in optimizer.param_groups)
        for group in entry["state"]["param_groups"][len(optimizer.param_groups) :]:
            end = start + len(group["params"])
            settings = {name: value for name, value in group.items() if name not in ("params", "param_names")}
            optimizer.add_param_group(
                {**settings, "params": [parameters[name] for name in entry["parameters"][start:end]]}
            )
            start = end

    def _placed(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """``state`` with its tensors sharded as their parameters are."""
        if not self._ranks.is_sharded:
            return state
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        placed = {
            index: {name: self._ranks.distribute_like(value, parameters[index]) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": placed}

    def _parameter_names(self) -> list[list[str | None]]:
        """The model's names of each optimizer's parameters, in its order; None for one that isn't the model's."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._model.named_parameters()}
        return [
            [names.get(parameter) for group in optimizer.param_groups for parameter in group["params"]]
            for optimizer in self._optimizers
        ]


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """As ``optimizer.load_state_dict``, which casts state to its parameter's dtype; here it keeps its own."""
    # Scalars of param_groups are shared with what is loaded, so the loaded tree must not be the one we keep.
    optimizer.load_state_dict({"state": state["state"], "param_groups": [dict(g) for g in state["param_groups"]]})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        own = optimizer.state[parameters[index]]
        for name, value in values.items():
            if isinstance(value, Tensor) and isinstance(own.get(name), Tensor):
                if own[name].dtype != value.dtype:
                    own[name] = value.to(own[name].device, copy=True)
                elif own[name].data_ptr() == value.data_ptr():
                    own[name] = value.clone()


class TrainabilityState:
    """Which parameters require gradients: a hook may change it on the way, and a resumed run must not forget it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, bool]:
        """``requires_grad`` of every parameter, by name."""
        return {name: parameter.requires_grad for name, parameter in self._model.named_parameters()}

    def check(self, state: Mapping[str, bool]) -> list[str]:
        """Whether every entry is a flag; names are compared with the model's state."""
        wrong = [name for name, flag in state.items() if type(flag) is not bool]
        return [f"requires_grad: it is malformed: {name!r} is {state[name]!r}" for name in wrong]

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        """Sets the flags."""
        for name, parameter in self._model.named_parameters():
            if name in state and parameter.requires_grad != state[name]:
                parameter.requires_grad_(state[name])
                _log.info("requires_grad of %s is %s, as in the state", name, state[name])


class ModesState:
    """Which modules of a model in training mode are in eval mode: a hook may freeze the statistics of some this way.

    Loading only puts modules into eval mode: a model that is in eval mode as a whole says nothing about training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> list[str]:
        """Names of the modules in eval mode; none where the whole model is."""
        if not self._model.training:
            return []
        return [name for name, module in self._model.named_modules() if not module.training]

    def check(self, state: Sequence[str]) -> list[str]:
        """Whether it is a list of names."""
        good = isinstance(state, (list, tuple)) and all(isinstance(name, str) for name in state)
        return [] if good else [f"eval_modules: it is malformed: {state!r}"]

    def load_state_dict(self, state: Sequence[str]) -> None:
        """Puts the modules that the model has into eval mode."""
        modules = dict(self._model.named_modules())
        for name in state:
            if name in modules and modules[name].training:
                modules[name].training = False
                _log.info("module %s is in eval mode, as in the state", name)


class HyperparametersState:
    """Learning rates, weight decay and other settings of the optimizers, as the script gave them.

    Training changes rates, so those that optimizers hold say nothing about the script. A resumed run takes the saved
    ones, and names each that the script has changed; or it takes the script's.

    Args:
        optimizers: as they were constructed.
        source: ``"saved"``, or ``"script"``: then a rate that a scheduler has changed keeps its ratio to the first one.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any], source: Literal["saved", "script"]
    ) -> None:
        self._optimizers = list(optimizers)
        self._schedulers = list(schedulers)
        self._source = source
        self._script = self._made_with = [[_settings_of(group) for group in o.param_groups] for o in self._optimizers]

    def state_dict(self) -> list[list[dict[str, Any]]]:
        """Settings of each group of each optimizer."""
        return self._made_with

    def check(self, state: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
        """Whether it is lists of mappings; the optimizers compare the rest."""
        good = all(isinstance(group, Mapping) for groups in state for group in groups)
        return [] if good else ["hyperparameters: it is malformed"]

    def load_state_dict(self, state: Sequence[Sequence[Mapping[str, Any]]]) -> None:
        """After the optimizers have loaded theirs."""
        differences = []
        for i, (groups, saved) in enumerate(zip(self._script, state, strict=False)):
            for j, (here, there) in enumerate(zip(groups, saved, strict=False)):
                for name in here:
                    if name in there and here[name] != there[name]:
                        differences.append((i, j, name, here[name], there[name]))
        if self._source == "script":
            for i, j, name, here, there in differences:
                self._take(i, j, name, here, there)
            self._made_with = self._script
            return
        self._made_with = [[dict(group) for group in groups] for groups in state]
        if differences:
            shown = "; ".join(
                f"optimizers[{i}], group {j}: {name}={here!r} in the script, {there!r} in the state"
                for i, j, name, here, there in differences
            )
            warnings.warn(
                f"the state's settings of optimizers are used, not the script's: {shown}; set "
                "fault_tolerance.optimizer_settings='script' to use the script's",
                stacklevel=user_level(),
            )

    def _take(self, i: int, j: int, name: str, here: Any, there: Any) -> None:
        group = self._optimizers[i].param_groups[j]
        if name != "lr" or not there:
            group[name] = here
            return
        ratio = here / there
        group["lr"] = group["lr"] * ratio
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * ratio
        for scheduler in self._schedulers:
            rates = getattr(scheduler, "base_lrs", None)
            if getattr(scheduler, "optimizer", None) is self._optimizers[i] and rates is not None and j < len(rates):
                rates[j] = rates[j] * ratio


def _settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a user sets of a group, and no scheduler writes there."""
    kept = {name: value for name, value in group.items() if name not in ("params", "initial_lr", "param_names")}
    if "initial_lr" in group:
        kept["lr"] = group["initial_lr"]
    return {
        name: float(value) if isinstance(value, Tensor) and value.numel() == 1 else value
        for name, value in kept.items()
        if value is None or isinstance(value, (bool, int, float, str, tuple, Tensor))
    }


class LoggedMetrics:
    """The latest metrics, without those that depend on the machine."""

    def __init__(self, run: RunState) -> None:
        self._run = run

    def state_dict(self) -> dict[str, float]:
        """Metrics by name."""
        return {name: value for name, value in self._run.logged.items() if not name.startswith(CLOCK_METRICS)}

    def check(self, state: Mapping[str, float]) -> list[str]:
        """Whether it is a mapping."""
        return [] if isinstance(state, Mapping) else [f"metrics: it is malformed: {type(state).__name__}"]

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Takes the metrics over."""
        self._run.logged = dict(state)
