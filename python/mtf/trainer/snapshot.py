"""The trainer's parts as one tree, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtf.checkpoint.compare import CLOCK_METRICS
from mtf.errors import MtfError, StateMismatch
from mtf.trainer.state import TrainerState

if TYPE_CHECKING:
    from mtf.trainer.trainer import Trainer

_OWN = ("sources", "last_batches")  # parts of the mixture's state that differ between ranks


def capture(trainer: Trainer) -> TrainerState:
    """A deep copy of everything that decides how training goes on; holds no times, paths or run ids."""
    return TrainerState(trainer.ranks.full(tree(trainer)))


def tree(trainer: Trainer) -> dict[str, Any]:
    """The tree behind ``capture``, the same on all ranks; its tensors are the live ones, not copies. A collective.

    Raises:
        ConfigError: an update broke off in the middle, so that there is no state to speak of.
    """
    trainer.require_whole()
    multi = trainer.multi.state_dict() if trainer.multi is not None else trainer.pending_multi_state
    own = {
        "rng": trainer.step_rng.state_dict(),
        "sources": multi["sources"] if multi is not None else {},
        "last_batches": multi["last_batches"] if multi is not None else {},
        "metric_table": trainer.metric_table.state_dict(),
    }
    per_rank = trainer.ranks.gather(own)
    if multi is not None:
        multi = {**multi, "sources": per_rank[0]["sources"], "last_batches": per_rank[0]["last_batches"]}
    return {
        "settings": _settings(trainer),
        "global_step": trainer.global_step,
        "num_batches": trainer.num_batches,
        "epoch": trainer.epoch,
        "epoch_is_open": trainer.epoch_is_open,
        "epoch_end_parts": trainer.epoch_end_parts,
        "pending_work": trainer.pending_work.state_dict(),
        "model": dict(trainer.model.state_dict()),
        "optimizers": [
            {"class": type(optimizer).__name__, "parameters": names, "state": optimizer.state_dict()}
            for optimizer, names in zip(trainer.optimizers, _parameter_names(trainer), strict=True)
        ],
        "schedulers": trainer.scheduler_set.state_dict(),
        "scaler": trainer.precision.state_dict(),
        "rng": per_rank[0]["rng"],
        "other_ranks": per_rank[1:],
        "hooks": trainer.hooks.state_dict(),
        "metric_table": per_rank[0]["metric_table"],
        "metrics": {name: value for name, value in trainer.logged.items() if not name.startswith(CLOCK_METRICS)},
        "multi": multi,
    }


def restore(trainer: Trainer, state: Mapping[str, Any]) -> Callable[[], None]:
    """Puts the tree of a state in place; on several ranks it is the same tree on all of them.

    Returns:
        What puts the state before it back, of which it holds a copy; on several ranks it does nothing.

    Raises:
        StateMismatch: it belongs to another model, other optimizers, schedulers or loaders, and the message names each
            difference; or it is malformed. Nothing has been changed; on several ranks that isn't sure where it is
            malformed.
    """
    try:
        own, multi = _checked(trainer, state)
    except MtfError:
        raise
    except Exception as error:  # whatever a look into something of another kind raises
        raise _malformed(error) from error
    # On several ranks a copy is a collective, which a rank that fails alone would never end.
    before = capture(trainer) if trainer.world_size == 1 and not trainer.is_mid_update else None
    rows = trainer.logged, trainer.partial_row, trainer.is_resumed

    def put_back() -> None:
        if before is not None:
            _put(trainer, before.tree, before.tree, before["multi"])
            trainer.logged, trainer.partial_row, trainer.is_resumed = rows

    try:
        _put(trainer, state, own, multi)
    except Exception as error:  # also what hooks and schedulers of users raise at a state that isn't theirs
        put_back()
        if isinstance(error, MtfError):
            raise
        raise _malformed(error) from error
    trainer.metric_table.reset_objects()
    trainer.is_mid_update = False
    return put_back


def _malformed(error: Exception) -> StateMismatch:
    return StateMismatch(f"the state is malformed, nothing of it is used: {type(error).__name__}: {error}")


def _checked(trainer: Trainer, state: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    """What belongs to this rank, and the mixture's state, of a state that fits."""
    for name in ("global_step", "num_batches", "epoch", "epoch_end_parts"):
        if type(state[name]) is not int or state[name] < 0:
            raise ValueError(f"{name} is {state[name]!r}")
    if type(state["epoch_is_open"]) is not bool:
        raise ValueError(f"epoch_is_open is {state['epoch_is_open']!r}")
    own = _of_this_rank(trainer, state)
    multi = None if state["multi"] is None else {**state["multi"], **{name: own[name] for name in _OWN}}
    if not isinstance(own["sources"], Mapping):
        raise TypeError(f"sources is {own['sources']!r}")
    differences = [
        *_setting_differences(trainer, state.get("settings", {})),
        *_model_differences(trainer, state["model"]),
        *_optimizer_differences(trainer, state["optimizers"]),
        *_scheduler_differences(trainer, state["schedulers"]),
    ]
    if differences:
        raise StateMismatch("the state doesn't fit this trainer:\n  " + "\n  ".join(differences))
    return own, multi


def _put(trainer: Trainer, state: Mapping[str, Any], own: Mapping[str, Any], multi: Mapping[str, Any] | None) -> None:
    if trainer.multi is not None and multi is not None:
        trainer.multi.load_state_dict(multi)
        trainer.multi.commit()
    elif trainer.multi is None:
        trainer.pending_multi_state = multi
    like = trainer.model.state_dict()
    with torch.no_grad():
        trainer.model.load_state_dict(
            {name: trainer.ranks.place(value, like.get(name)) for name, value in state["model"].items()}
        )
    for optimizer, entry in zip(trainer.optimizers, state["optimizers"], strict=True):
        _load_optimizer(optimizer, _place_optimizer(trainer, optimizer, entry["state"]))
        if state["global_step"]:
            # Where an epoch's end comes first, torch's schedulers would warn that it hasn't stepped yet.
            optimizer._opt_called = True  # type: ignore[attr-defined]  # torch sets it in step()
    trainer.optimizer_set.clear()
    trainer.scheduler_set.load_state_dict(state["schedulers"])
    trainer.precision.load_state_dict(state["scaler"])
    trainer.step_rng.load_state_dict(own["rng"])
    trainer.metric_table.load_state_dict(own["metric_table"])
    trainer.logged = dict(state["metrics"])
    trainer.partial_row = {}
    trainer.global_step = state["global_step"]
    trainer.num_batches = state["num_batches"]
    trainer.epoch = state["epoch"]
    trainer.epoch_is_open = state["epoch_is_open"]
    trainer.epoch_end_parts = state["epoch_end_parts"]
    trainer.pending_work.load_state_dict(state["pending_work"])
    trainer.hooks.load_state_dict(state["hooks"])
    trainer.nonfinite.forget(0)
    trainer.is_resumed = True
    if trainer.multi is not None and multi is None:
        # The state is older than the first fit: the next one begins with its loaders from their start. Nothing that
        # could be refused comes after this, as a mixture that was closed doesn't come back.
        trainer.multi.close()
        trainer.multi = trainer.pending_multi_state = None
        trainer.given_loaders, trainer.added_loaders = {}, {}


def _of_this_rank(trainer: Trainer, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What belongs to this rank alone: its random numbers, its sums of metrics, and what its sources said about
    themselves.

    Raises:
        StateMismatch: another number of ranks, and a source whose own state can't move to another rank.
    """
    sources = {} if state["multi"] is None else state["multi"]["sources"]
    seen = {} if state["multi"] is None else state["multi"]["last_batches"]
    first = {"rng": state["rng"], "sources": sources, "last_batches": seen, "metric_table": state["metric_table"]}
    per_rank: list[Mapping[str, Any]] = [first, *state["other_ranks"]]
    saved, here = len(per_rank), trainer.world_size
    if saved == here:
        return per_rank[trainer.rank]
    for name, snapshot in first["sources"].items():
        if snapshot is not None and not snapshot.get("global"):
            raise StateMismatch(
                f"the state was saved by {saved} ranks, here are {here}: loader {name!r} goes on by a state of its own "
                f"on each rank, which can't be divided anew. Resume on {saved} ranks, or use a map-style DataLoader or "
                "an ArrayLoader"
            )
    if first["rng"] and trainer.rank == 0:
        warnings.warn(
            f"the state was saved by {saved} ranks, here are {here}: under step_rng='saved' random numbers of steps "
            "can't go on exactly; step_rng='derived' needs no state",
            stacklevel=4,
        )
    # Sums over all ranks stay what they were, whoever holds them.
    sums = [entry for part in per_rank for entry in part["metric_table"]["sums"]] if trainer.rank == 0 else []
    return {
        "rng": per_rank[trainer.rank]["rng"] if trainer.rank < saved else {},
        "sources": sources,
        "last_batches": {},  # each rank has another part of them now
        "metric_table": {"sums": sums},
    }


def _place_optimizer(trainer: Trainer, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """``state`` with its tensors sharded as their parameters are."""
    if not trainer.ranks.is_sharded:
        return state
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    placed = {
        index: {name: trainer.ranks.place(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": placed}


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


def _settings(trainer: Trainer) -> dict[str, Any]:
    """Settings without which a state goes on otherwise, and which nothing else in it would tell."""
    return {
        "seed": trainer.init_only_settings["seed"],
        "step_rng": trainer.init_only_settings["step_rng"],
        "per_loader_optimizers": trainer.optimizer_set.describe(),
    }


def _setting_differences(trainer: Trainer, saved: Mapping[str, Any]) -> list[str]:
    here = _settings(trainer)
    return [f"{name}: {here[name]} here, {there} in the state" for name, there in saved.items() if here[name] != there]


def _parameter_names(trainer: Trainer) -> list[list[str | None]]:
    """The model's names of each optimizer's parameters, in its order; None for one that isn't the model's."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in trainer.model.named_parameters()}
    return [
        [names.get(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        for optimizer in trainer.optimizers
    ]


def _model_differences(trainer: Trainer, saved: Mapping[str, Any]) -> list[str]:
    own = trainer.model.state_dict()
    lines = [f"model: the state has no {name!r}" for name in own if name not in saved]
    lines += [f"model: the model has no {name!r}" for name in saved if name not in own]
    for name, value in saved.items():
        mine = own.get(name)
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor):
            continue
        if mine.shape != value.shape:
            lines.append(f"model: {name!r} has shape {tuple(mine.shape)}, in the state {tuple(value.shape)}")
        elif mine.dtype != value.dtype:
            lines.append(f"model: {name!r} has dtype {mine.dtype}, in the state {value.dtype}")
    return lines


def _optimizer_differences(trainer: Trainer, saved: list[Mapping[str, Any]]) -> list[str]:
    if len(saved) != len(trainer.optimizers):
        return [f"optimizers: {len(trainer.optimizers)} here, {len(saved)} in the state"]
    lines = []
    names = _parameter_names(trainer)
    for i, (optimizer, entry) in enumerate(zip(trainer.optimizers, saved, strict=True)):
        if type(optimizer).__name__ != entry["class"]:
            lines.append(f"optimizers[{i}]: {type(optimizer).__name__} here, {entry['class']} in the state")
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        saved_sizes = [len(group["params"]) for group in entry["state"]["param_groups"]]
        if sizes != saved_sizes:
            lines.append(f"optimizers[{i}]: groups of {sizes} parameters here, {saved_sizes} in the state")
            continue
        pairs = zip(names[i], entry.get("parameters", names[i]), strict=True)
        others = [(k, here, there) for k, (here, there) in enumerate(pairs) if here != there]
        if others:
            k, here, there = others[0]
            more = f" (and {len(others) - 1} more differ)" if len(others) > 1 else ""
            lines.append(f"optimizers[{i}]: its parameter {k} is {here!r} here, {there!r} in the state{more}")
    return lines


def _scheduler_differences(trainer: Trainer, saved: Mapping[str, Any]) -> list[str]:
    lines = []
    here, there = len(trainer.scheduler_set.general), len(saved["general"])
    if here != there:
        lines.append(f"schedulers: {here} here, {there} in the state")
    own, known = sorted(trainer.scheduler_set.per_loader), sorted(saved["per_loader"])
    if own != known:
        lines.append(f"per_loader_schedulers: {own} here, {known} in the state")
    there_kinds = saved.get("kinds", {})
    for place, kind in trainer.scheduler_set.describe().items():
        if there_kinds.get(place, kind) != kind:
            lines.append(f"{place}: {kind} here, {there_kinds[place]} in the state")
    return lines
