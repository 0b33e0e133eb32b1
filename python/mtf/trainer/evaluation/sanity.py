"""The validation of a few batches before the first update: it finds mistakes at once, and changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, sampler

from mtf.config.checks import nearest
from mtf.config.trainer import TrainerConfig
from mtf.data.rng.owned_generators import OwnedGenerators
from mtf.data.sources.base import Source
from mtf.errors import ConfigError

_log = logging.getLogger("mtf.trainer")

_SAMPLERS = (
    sampler.SequentialSampler,
    sampler.RandomSampler,
    sampler.SubsetRandomSampler,
    sampler.WeightedRandomSampler,
)


def repeatable(loaders: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``loaders`` that can be put back after a look at their first batches.

    Lists and mtf's sources have no position. A torch DataLoader over a map-style dataset with one of torch's samplers
    has its generators, and an object with ``state_dict`` says where it stands. Anything else may have a position that
    can't be seen.
    """
    return {name: loader for name, loader in loaders.items() if _is_repeatable(loader)}


def _is_repeatable(loader: Any) -> bool:
    if isinstance(loader, (list, tuple, Source)):
        return True
    if callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None)):
        return True
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    batches: Any = loader.batch_sampler
    if batches is not None and type(batches) is not sampler.BatchSampler:
        return False
    rows: Any = loader.sampler if batches is None else batches.sampler
    return type(rows) in _SAMPLERS or not isinstance(rows, Sampler)


@contextmanager
def put_back(loaders: Iterable[Any], model: nn.Module, step: Any) -> Iterator[None]:
    """Afterwards loaders, their generators and worker processes, and the model's buffers, are as before."""
    loaders = list(loaders)
    generators = OwnedGenerators(*loaders, model, step)
    states = generators.states()
    positions = [(x, x.state_dict()) for x in loaders if callable(getattr(x, "load_state_dict", None))]
    numbers = [(x.dataset, _numbers(x.dataset)) for x in loaders if isinstance(x, DataLoader)]
    iterators = [(x, x._iterator) for x in loaders if isinstance(x, DataLoader)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for loader, position in positions:
            loader.load_state_dict(position)
        for loader, iterator in iterators:
            loader._iterator = iterator  # persistent workers have drawn random numbers
        for dataset, values in numbers:
            vars(dataset).update(values)
        generators.restore(states)
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)


def _numbers(dataset: Any) -> dict[str, Any]:
    """Counters that a dataset keeps."""
    return {name: v for name, v in getattr(dataset, "__dict__", {}).items() if isinstance(v, (int, float))}


def without_compiling(config: TrainerConfig) -> AbstractContextManager[Any]:
    """What is compiled may depend on the shapes that were seen first, so these batches run uncompiled."""
    if not config.performance.compile_model:
        return nullcontext()
    # The call itself already sets it, for the whole process, until the context ends.
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def check_monitors(row: Mapping[str, float], config: TrainerConfig, hooks: Iterable[Any], rates: Iterable[Any]) -> None:
    """Checks that what is monitored is in a validation's row.

    Args:
        row: of all validation loaders.
        hooks: those with an attribute ``monitor`` read it.
        rates: schedulers with their ``monitor``.

    Raises:
        ConfigError: names the setting, the metric and the nearest one.
    """
    hooks = list(hooks)
    for hook in hooks:
        _require(type(hook).__name__, getattr(hook, "monitor", None), row)
    if config.checkpoint.save_best:  # else it may be logged later, and the first validation warns
        _require("checkpoint.monitor_metric", config.checkpoint.monitor_metric, row)
    for i, rate in enumerate(rates if not any(_may_log(hook) for hook in hooks) else ()):
        _require(f"schedulers[{i}]['monitor']", rate.monitor, row)


def _may_log(hook: Any) -> bool:
    """Whether a hook of the user's may log further validation metrics."""
    return not type(hook).__module__.startswith("mtf.")


def _require(where: str, monitor: Any, row: Mapping[str, float]) -> None:
    if not isinstance(monitor, str) or monitor in row or monitor.startswith("train/"):
        return
    near = nearest(monitor, row)
    if monitor.startswith("val/") or near:  # else it may be a metric that training logs
        words = "the validation gives no" if where.startswith("checkpoint") else "there is no metric"
        raise ConfigError(f"{where}: {words} {monitor!r}{near} (there are: {', '.join(row)})")


def log_left_out(names: Iterable[str]) -> None:
    """Says which loaders had no part in it."""
    left = list(names)
    if left:
        _log.info(
            "the sanity validation leaves out the validation loaders %s, because nothing could put them back to their "
            "start afterwards",
            ", ".join(left),
        )
