"""What hooks and steps use of a run: they read where it stands, log, and ask it to stop."""

from __future__ import annotations

from typing import Any

import torch

from mtf.config.checks import nearest
from mtf.config.foreign_names import FOREIGN_ATTRIBUTES
from mtf.config.keywords import checked_keywords
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.config.trainer import TrainerConfig
from mtf.data.multi_loader import MultiLoader
from mtf.distributed.ranks import SingleRank
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.metrics import MetricTable, MetricValues
from mtf.trainer.state.run_state import RunState


class RunView:
    """Position, metrics, loaders and ranks of a run.

    Attributes:
        config: everything that isn't code or data.
        ranks: the ranks that train together.
        device: where this rank trains.
    """

    ranks: SingleRank
    config: TrainerConfig
    device: torch.device
    _run: RunState
    _metrics: MetricTable
    _data: TrainingData

    def __getattr__(self, name: str) -> Any:
        """Only called for what isn't there.

        Raises:
            AttributeError: with what a word of another tool is called here.
        """
        text = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name.startswith("_"):
            raise AttributeError(text)
        found = FOREIGN_ATTRIBUTES.get(name)
        way = f"; here it is {found}" if found else nearest(name, (n for n in dir(type(self)) if n[0] != "_"))
        raise AttributeError(text + way)

    @checked_keywords()
    def log(self, name: str, value: Any) -> None:
        """Notes a value under its own name; the mean since the last row is logged. Nothing is read from the device."""
        self._metrics.add("", name, value)

    def request_stop(self, reason: str = "requested") -> None:
        """Makes ``fit`` return after the current window; on several ranks at the next look of
        ``preemption.agree_every``, when one rank at least has asked for it."""
        self._run.stop_reason = reason
        self._run.is_stopping = self._run.is_stopping or self.world_size == 1

    def print(self, *args: Any) -> None:
        """``print`` on rank 0 only."""
        if self.rank == 0:
            print(*args)

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of every metric. A name that isn't there is a ``KeyError`` with those that are."""
        return MetricValues(self._run.metrics)

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or the next one between two epochs."""
        return self._run.epoch

    @property
    def global_step(self) -> int:
        """Updates since the beginning of training."""
        return self._run.global_step

    @property
    def num_batches(self) -> int:
        """Batches (training steps) since the beginning of training."""
        return self._run.num_batches

    @property
    def should_stop(self) -> bool:
        """Whether a stop was requested. Setting it to True is :meth:`request_stop`, as in Lightning."""
        return self._run.stop_reason is not None

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value:
            self.request_stop("should_stop was set")
        else:
            self._run.stop_reason, self._run.is_stopping = None, False

    @property
    def is_fitting(self) -> bool:
        """Whether ``fit`` is running: tells its validations from those that ``validate`` was called for outside."""
        return self._run.is_fitting

    @property
    def is_sanity_checking(self) -> bool:
        """Whether the step is called for the sanity validation before the first update."""
        return self._run.is_sanity_checking

    @property
    def rank(self) -> int:
        """Number of this process among all ranks."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.ranks.world_size

    @property
    def multi_loader_manager(self) -> MultiLoader:
        """The mixture of training loaders; there is one from the first ``fit`` on."""
        return self._data.manager

    @property
    def multi_loader_config(self) -> MultiDataLoaderConfig:
        """Configuration of the mixture as it is now, edits included."""
        return self.config.multi if self._data.multi is None else self._data.multi.config

    def _place(self) -> str:
        return str(self.device) + (f", rank {self.rank} of {self.world_size}" if self.world_size > 1 else "")
