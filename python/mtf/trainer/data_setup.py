"""The loaders given to ``fit``: their names, and the mixture made of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.batch import Batch
from mtf.data.multi_loader import MultiLoader
from mtf.errors import ConfigError, StateMismatch

if TYPE_CHECKING:
    from mtf.trainer.trainer import Trainer


def named(given: Any, names: Sequence[str], parameter: str) -> dict[str, Any]:
    """Loaders by name, in order.

    Args:
        given: a dict name -> loader, a list, or one loader.
        names: names for a list, and the order for a dict; empty: ``dl0``, ``dl1`` ..., or the dict's own.
        parameter: what the message of an error calls ``given``.

    Raises:
        ConfigError: numbers or names don't agree.
    """
    if isinstance(given, Mapping):
        if names and not set(names) <= set(given):
            raise ConfigError(f"{parameter}: the dict must have the keys {list(names)}, it has {list(given)}")
        return {name: given[name] for name in [*names, *(n for n in given if n not in names)]}
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    chosen = list(names) or [f"dl{i}" for i in range(len(listed))]
    if len(chosen) != len(listed):
        raise ConfigError(f"{parameter}: {len(listed)} loaders for {len(chosen)} names {chosen}")
    return dict(zip(chosen, listed, strict=True))


def name_validation(given: Any, config: MultiDataLoaderConfig | None, training_names: Sequence[str]) -> dict[str, Any]:
    """Validation loaders by name: the dict's keys, else ``config``'s names, else the training names if equally many."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if config is not None and config.dataloader_names:
        return named(listed, config.dataloader_names, "val_loaders")
    return named(listed, training_names if len(training_names) == len(listed) else (), "val_loaders")


def open_training(trainer: Trainer, given: Any) -> None:
    """Makes the trainer's mixture, or keeps the one there is when ``fit`` is called again.

    Raises:
        StateMismatch: other loaders than the state knows, by name.
    """
    config = trainer.config.multi
    new = named(given, config.dataloader_names, "train_loaders")
    if trainer.multi is None:
        trainer.multi = _make(trainer, new)
        if trainer.pending_multi_state is not None:
            try:
                trainer.multi.load_state_dict(trainer.pending_multi_state)
            except BaseException:
                trainer.multi.close()
                trainer.multi = None
                raise
            trainer.pending_multi_state = None
        trainer.multi.commit()
        trainer.given_loaders = new
        known = {*(config.dataloader_names or new), *trainer.multi.names}
        idle = [name for name in new if name not in known]
        if idle:
            warnings.warn(
                f"train_loaders has {idle}, which aren't among the dataloader_names {config.dataloader_names}: they "
                "give no batch unless add_dataloader adds them",
                stacklevel=4,
            )
        return
    _refuse_others(trainer, new)
    given, added = trainer.given_loaders, trainer.added_loaders
    # A name that was removed and added again stands for either.
    if any(loader is not given.get(name) and loader is not added.get(name) for name, loader in new.items()):
        state = trainer.multi.state_dict()
        trainer.multi.close()
        trainer.multi = _make(trainer, new)
        trainer.multi.load_state_dict(state)
        trainer.multi.commit()
        trainer.given_loaders = new


def _refuse_others(trainer: Trainer, new: Mapping[str, Any]) -> None:
    assert trainer.multi is not None
    original = list(trainer.given_loaders)
    strange = [name for name in new if name not in original and name not in trainer.multi.names]
    missing = [name for name in original if name not in new]
    if strange or missing:
        said = [f"{strange} aren't known to the state" if strange else "", f"{missing} are missing" if missing else ""]
        raise StateMismatch(
            f"fit was called again with other loaders than before: {' and '.join(s for s in said if s)}; it knows "
            f"{list(trainer.multi.names)}. Use add_dataloader and remove_dataloader to change them"
        )


def _make(trainer: Trainer, new: Mapping[str, Any]) -> MultiLoader:
    """The mixture. Loaders that were added during training are found by name when its state is loaded.

    It gets a configuration of its own, which then shows edits; the trainer's stays as the user wrote it.
    """
    config, performance = trainer.config.multi, trainer.config.performance
    configured = config.dataloader_names or list(new)
    added = {name: loader for name, loader in new.items() if name not in configured}
    factories: dict[str, Callable[[], Any]] = {
        **trainer.loader_factories,
        **{name: partial(_itself, loader) for name, loader in {**trainer.added_loaders, **added}.items()},
    }
    return MultiLoader(
        {name: new[name] for name in configured},
        copy.deepcopy(config),
        trainer.init_only_settings["seed"],
        None if trainer.device.type == "cpu" else trainer.device,
        loader_factories=factories,
        rank=trainer.rank,
        world_size=trainer.world_size,
        seed_each_batch=trainer.config.fault_tolerance.seed_each_batch,
        fetch_timeout_s=performance.fetch_timeout_s,
        pin_memory=performance.pin_memory,
        device_prefetch=performance.device_prefetch,
        remember_batches=trainer.config.fault_tolerance.verify_deterministic_resume,
    )


def _itself(loader: Any) -> Any:
    return loader


def ended_passes(multi: MultiLoader, window: Sequence[Batch]) -> list[tuple[str, int]]:
    """Loaders and passes whose last batch is in ``window``, and those that turned out to have ended before it."""
    lengths = multi.schedule.lengths
    return multi.take_ended_passes() + [(b.name, b.pass_) for b in window if b.batch + 1 == lengths[b.source]]
