"""Which adapter reads a user's loader."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from mtf.data.sources import iterable, sequence, state_adapters, stateful, torch_map
from mtf.data.sources.base import Source
from mtf.errors import ConfigError
from mtf.formatting import shortened


def as_source(loader: Any, name: str, *, seed_each_batch: bool = True) -> Source:
    """The adapter for ``loader``.

    Args:
        loader: A Source, a torch DataLoader, a torchdata StatefulDataLoader, or anything that can be iterated.
        name: The source's name in the mixture.
        seed_each_batch: Produce each batch under generators seeded from its position.

    Raises:
        ConfigError: Nothing here can read ``loader``; the message says what to pass instead.
    """
    if isinstance(loader, Source):
        loader.name = name
        return loader
    refuse_wrapped(loader, f"loader {name!r}")
    _refuse_no_loader(loader, name)
    if isinstance(loader, Dataset) and not hasattr(type(loader), "__iter__"):
        raise ConfigError(
            f"loader {name!r} is a dataset, {type(loader).__name__}, whose samples would be taken for batches: pass "
            "DataLoader(dataset, batch_size=...), with batch_size=None where its items are batches"
        )
    if torch_map.can_rebuild(loader):
        return torch_map.TorchSource(loader, name, seed_each_batch=seed_each_batch)
    if sequence.is_sequence(loader):
        return sequence.SequenceSource(loader, name, seed_each_batch=seed_each_batch)
    loader_with_state = state_adapters.with_state_methods(loader)
    if loader_with_state is not None:
        return stateful.StatefulSource(loader_with_state, name, seed_each_batch=seed_each_batch)
    return iterable.IterableSource(loader, name, seed_each_batch=seed_each_batch)


def refuse_wrapped(loader: Any, where: str) -> None:
    """Raises when another framework's wrapper would decide order, ranks and devices next to mtf."""
    cls = type(loader)
    if cls.__name__ == "CombinedLoader" and cls.__module__.split(".")[0] in ("lightning", "pytorch_lightning"):
        raise ConfigError(
            f'{where} is a Lightning CombinedLoader: pass mtf.Together({{...}}, length="max") with its '
            'loaders, which gives one batch of each as a dict ("min" for its mode min_size); for mode sequential pass '
            "the loaders themselves, with sampling_strategy=SEQUENTIAL"
        )
    wrapped = {
        "_FabricDataLoader": "Fabric.setup_dataloaders",
        "DataLoaderShard": "Accelerator.prepare",
        "DataLoaderDispatcher": "Accelerator.prepare",
        "SkipDataLoader": "accelerate.skip_first_batches",
    }
    if cls.__name__ in wrapped and cls.__module__.split(".")[0] in ("lightning", "lightning_fabric", "accelerate"):
        raise ConfigError(
            f"{where} is a {cls.__module__}.{cls.__name__}: pass the DataLoader itself, as it was before "
            f"{wrapped[cls.__name__]}; mtf divides it among ranks and moves batches "
            "to the device (rank, world_size and device of MultiLoader)"
        )


def _refuse_no_loader(loader: Any, name: str) -> None:
    """Raises for what can be iterated and yet gives no batches, or those of several loaders at once."""
    if isinstance(loader, (str, bytes, bytearray)):
        raise ConfigError(
            f"loader {name!r} is text, {shortened(repr(loader))}, whose letters would be taken for batches: pass a "
            "loader, for files for example a DataLoader over a dataset that reads them"
        )
    if any(base.__name__ == "CombinedLoader" and "lightning" in base.__module__ for base in type(loader).__mro__):
        raise ConfigError(
            f"loader {name!r} is Lightning's CombinedLoader, which mixes loaders by itself: pass its loaders to mtf as "
            "a dict, and mtf.MultiDataLoaderConfig says how they alternate; mtf.Together gives one batch of each in "
            "every step"
        )
