"""Validation: every batch exactly once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from mtf.call_site import user_level
from mtf.config.trainer import TrainerConfig
from mtf.data.transfer import move_to
from mtf.data.workers.fetch_timeout import FetchGuard
from mtf.distributed.ranks import SingleRank
from mtf.errors import SourceError, with_note
from mtf.trainer.evaluation import sanity
from mtf.trainer.evaluation.aggregation import aggregate, check_validation, per_loader
from mtf.trainer.evaluation.leaving import Leaving
from mtf.trainer.evaluation.table import EvaluationTable
from mtf.trainer.evaluation.validation_data import length_of, limit_of, validation_batches
from mtf.trainer.hooks.registry import HookList
from mtf.trainer.metrics import MetricTable
from mtf.trainer.optimization.precision import Precision
from mtf.trainer.reporting.progress_bar import Progress
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.rng import StepRng


class ValidationLeft(Exception):
    """A validation was left before its end, as its caller asked; it is to be made anew."""


class _NoMetrics(dict[str, float]):
    """What hooks get where a validation was left: empty, and NaN for a key that a hook reads all the same."""

    def __missing__(self, key: str) -> float:
        return float("nan")


class Validator:
    """Runs validations of one model.

    The model is in eval mode and no graph is kept; afterwards each module's mode and the random numbers of training
    are as before. (``no_grad``, as ``inference_mode`` breaks modules that cache tensors.)

    Args:
        step: ``(batch, batch_idx, dataloader_idx, dataloader_name)`` -> loss, or a dict of metrics.
        device: where batches go.
        metrics: of training, whose metric objects are read before, as a validation may use the same ones.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[..., Any],
        config: TrainerConfig,
        *,
        device: torch.device,
        hooks: HookList,
        ranks: SingleRank,
        precision: Precision,
        rng: StepRng,
        metrics: MetricTable,
        reporter: Reporter,
    ) -> None:
        self._model = model
        self._step = step
        self._config = config
        self._device = device
        self._hooks = hooks
        self._ranks = ranks
        self._precision = precision
        self._rng = rng
        self._metrics = metrics
        self._reporter = reporter
        self._limit = config.validation.limit_batches

    def run(
        self,
        loaders: Mapping[str, Any],
        leaves: Callable[[], bool] | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Validates on ``loaders`` (name -> loader), in order; returns the row.

        A hook that was called at the start is called at the end on every way out, so that it can put back what it
        changed: with the row, or, where the validation was left or failed, with an empty one.

        Args:
            leaves: asked before each batch whether a signal has come on this rank; all ranks leave then. None: they
                never do.
            names: the loaders that take part. None: all. Where some don't, the row has no metric over all of them.

        Raises:
            ValidationLeft: ``leaves`` said so, on any rank.
        """
        check_validation(self._config.validation, list(loaders))
        self._metrics.read_objects()
        due: list[Callable[..., None]] = []  # ends of hooks whose start was called
        try:
            row = self._row(loaders, Leaving(self._ranks, leaves), due, names)
            for method in self._hooks.on_validation_end:
                if method in due:
                    due.remove(method)
                method(row)
        finally:
            self._abandon(due)
        return row

    def sanity_check(self, loaders: Mapping[str, Any], monitors: Callable[[Mapping[str, float]], None]) -> None:
        """Validates on the first batches of ``loaders`` and puts everything back: no hook, no row, no state.

        Args:
            monitors: given the row, where every loader has one, to check what is monitored.
        """
        check_validation(self._config.validation, list(loaders))
        left_out = self._ranks.union(set(loaders) - set(sanity.repeatable(loaders)))
        chosen = {name: loader for name, loader in loaders.items() if name not in left_out}
        sanity.log_left_out(left_out)
        hooks, self._hooks = self._hooks, HookList(None)
        self._limit, limit = self._config.validation.sanity_batches, self._limit
        try:
            with sanity.put_back(chosen.values(), self._model, self._step), sanity.without_compiling(self._config):
                row = self._row(chosen, Leaving(self._ranks, None), [], None if not left_out else list(chosen))
        except Exception as error:
            with_note(error, "in the sanity validation before the first update (validation.sanity_batches)")
            raise
        finally:
            self._hooks, self._limit = hooks, limit
        if not left_out and row:
            monitors(row)

    def _row(
        self,
        loaders: Mapping[str, Any],
        leaving: Leaving,
        due: list[Callable[..., None]],
        names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        modes = [(module, module.training) for module in self._model.modules()]
        table = EvaluationTable(self._device, loaders)
        try:
            self._model.eval()
            with self._reporter.validating(), self._rng.validation(), torch.no_grad():
                for method in self._hooks.on_validation_start:
                    if method in self._hooks.validation_ends:
                        due.append(self._hooks.validation_ends[method])
                    method()
                for index, (name, loader) in enumerate(loaders.items()):
                    if names is not None and name not in names:
                        continue
                    self._run_loader(table, index, name, loader, leaving)
                means, samples = table.read(self._ranks)
        finally:
            table.drop_objects()
            for module, mode in modes:
                # guard: mode after validation
                module.training = mode
        if names is not None:
            return per_loader(self._config.validation, names, means)
        return aggregate(self._config.validation, list(loaders), means, samples)

    @staticmethod
    def _abandon(methods: Sequence[Callable[..., None]]) -> None:
        """Lets hooks put back what they changed for the validation, such as swapped weights."""
        for method in methods:
            try:
                method(_NoMetrics())
            except Exception as error:  # the error that ended the validation is the one to raise
                with suppress(UserWarning):
                    warnings.warn(
                        f"a hook raised {error!r} in on_validation_end, which had no metrics because the validation "
                        "was left: it must put back what it had changed before it reads a metric",
                        stacklevel=user_level(),
                    )

    def _run_loader(self, table: EvaluationTable, index: int, name: str, loader: Any, leaving: Leaving) -> None:
        hooks = self._hooks
        shows = self._config.logging.progress_bar and self._ranks.rank == 0
        limit = limit_of(loader, name, self._limit)
        lengths = [length for length in (length_of(loader), limit) if length is not None]
        progress = Progress(f"validation {name}", min(lengths, default=None), is_shown=shows)
        limit_s = self._config.performance.fetch_timeout_s
        guard = None if limit_s is None else FetchGuard(limit_s)
        batch_idx = 0
        try:
            for batch, counts in validation_batches(loader, name, self._ranks, guard, leaving, limit):
                data = move_to(batch, self._device, non_blocking=True)
                place = (batch_idx, index, name)
                for method in hooks.on_validation_batch_start:
                    method(data, *place)
                if not counts:
                    table.begin_filler()
                with self._precision.autocast():
                    result = self._ranks.run(self._step, data, *place)
                if not counts:
                    table.end_filler(result)
                else:
                    seen = table.add(name, result, data)
                    for method in hooks.on_validation_batch_end:
                        method(data, *place, seen)
                    progress.advance(1)
                batch_idx += 1
            if leaving.agree():
                raise ValidationLeft
            table.end_loader(name, self._ranks)
        except (SourceError, ValidationLeft):  # which says it itself
            raise
        except Exception as error:
            with_note(error, f"in the validation on loader {name!r}, at batch {batch_idx}")
            raise
        finally:
            progress.close()
            if guard is not None:
                guard.close()
