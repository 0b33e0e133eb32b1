"""The number of updates of a whole run, for learning rate schedulers that need it before the trainer is made."""

from __future__ import annotations

from typing import Any

import torch

from mtf.config.keywords import checked_keywords
from mtf.config.trainer import TrainerConfig
from mtf.distributed.ranks import local_gpu, make_ranks
from mtf.errors import ConfigError
from mtf.schedule.accumulation import AccumulationSchedule
from mtf.trainer.data_setup import TrainingData


@checked_keywords(words={"epochs": "max_epochs", "num_epochs": "max_epochs", "loaders": "train_loaders"})
def total_updates(
    config: TrainerConfig, train_loaders: Any, max_epochs: int | None = None, max_steps: int | None = None
) -> int:
    """Updates that ``fit(train_loaders, max_epochs=..., max_steps=...)`` makes from the beginning of training.

    Counted by the schedule itself, so weights, epoch policies, accumulation windows and the number of ranks are in it;
    edits of a run aren't. No batch is read.

    Args:
        config: the run's.
        train_loaders: as for ``fit``.
        max_epochs: epochs; None: one, or as many as ``max_steps`` needs.
        max_steps: updates; None: no limit.

    Raises:
        ConfigError: how many batches an epoch has shows only when its loaders end.
    """
    for name, value in (("max_epochs", max_epochs), ("max_steps", max_steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ConfigError(f"total_updates: {name} must be an int of at least 0, it is {value!r}")
    if max_epochs is None and max_steps is not None:
        return max_steps
    device = local_gpu() or torch.device("cpu")
    data = TrainingData(config, {}, device, make_ranks(config.ddp, device.type))
    data.open(train_loaders)
    try:
        schedule = data.manager.schedule
        windows, performance = config.performance.gradient_accumulation_steps, config.performance
        accumulation = AccumulationSchedule(windows, performance.accumulate_by)
        updates = 0
        for epoch in range(1 if max_epochs is None else max_epochs):
            batches = schedule.num_steps(epoch)
            if batches is None:
                raise ConfigError(
                    f"total_updates: how many batches epoch {epoch} has shows only when its loaders end: give "
                    "max_steps, or set multi.epoch_length_policy to FIXED_NUM_STEPS"
                )
            updates += accumulation.updates_in(batches, epoch, updates)
            if max_steps is not None and updates >= max_steps:
                return max_steps
        return updates
    finally:
        data.undo_open()
