"""What people see of a run: rows for the logger at intervals, and the progress bar."""

from __future__ import annotations

import logging
import operator
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtf.config.checkpoint import CheckpointConfig
from mtf.config.trainer import TrainerConfig
from mtf.data.multi_loader import MultiLoader
from mtf.distributed.ranks import SingleRank
from mtf.formatting import duration
from mtf.loggers.base import Logger, RunInfo, SafeLogger
from mtf.loggers.files import set_aside
from mtf.loggers.registry import make_logger
from mtf.loggers.run_log import log_directories, run_log_directory
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.metrics import MetricTable, proportions
from mtf.trainer.optimization.optimizers import learning_rates
from mtf.trainer.reporting.model_summary import model_summary
from mtf.trainer.reporting.progress_bar import Progress, print_line
from mtf.trainer.reporting.schedule_recorder import ScheduleRecorder
from mtf.trainer.reporting.throughput import Throughput, waiting
from mtf.trainer.state.run_state import RunState

_log = logging.getLogger("mtf.trainer")
_NUM_RESULTS = 4


class Reporter:
    """Turns what the loop notes into rows. Only rank 0 writes."""

    def __init__(
        self,
        config: TrainerConfig,
        run: RunState,
        data: TrainingData,
        metrics: MetricTable,
        optimizers: Sequence[torch.optim.Optimizer],
        ranks: SingleRank,
        throughput: Throughput,
    ) -> None:
        self.throughput = throughput
        self._config = config
        self._run = run
        self._data = data
        self._metrics = metrics
        self._optimizers = optimizers
        self._ranks = ranks
        self._logger: Logger | None = None
        self._logger_state: dict[str, Any] = {}
        self._recorder: ScheduleRecorder | None = None
        self._progress = Progress("", None, is_shown=False)
        self._clock = _Clock()
        self._waits: dict[str, float] = {}
        self._validation_s = 0.0
        self._facts: dict[str, str] = {}
        self._best: tuple[float, int] | None = None
        self._began_s: float | None = None
        self._began: tuple[tuple[float, float, int], dict[str, float]] = ((0.0, 0.0, 0), {})
        self.num_samples = 0
        self.advance = self._progress.advance

    # The loop calls ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """A call of ``fit`` begins."""
        config = self._config
        if self._logger is None and self._ranks.rank == 0:
            info = RunInfo(
                name=config.experiment_name,
                config=config.describe(),
                step=self._run.global_step,
                state=self._logger_state,
            )
            if self._recorder is None and info.step == 0:
                set_aside(log_directories(config.logging, info.name))
            self._logger = SafeLogger(make_logger(config.logging, info))
            self._recorder = self._recorder or ScheduleRecorder(
                config, info, self._run, self._data, self._ranks.world_size
            )
        self.record_schedule()
        self._run.partial_row = {}
        self._began_s = time.perf_counter()
        self._began = self.totals(), self._source_waits()
        self._clock.start(self.totals())

    def begin_epoch(self, multi: MultiLoader) -> None:
        """The bar of an epoch, also of one that continues."""
        shown = self._config.logging.progress_bar and self._ranks.rank == 0
        total = multi.schedule.num_steps(multi.epoch)
        self._progress.close()
        title = f"epoch {self._run.epoch}"
        has_lines = "console" not in self._loggers  # whose rows say the same
        self._progress = Progress(title, total, multi.step, self._facts, is_shown=shown, has_lines=has_lines)
        self.advance = self._progress.advance

    def show_model(self, model: nn.Module) -> None:
        """The model's table, where a run begins."""
        levels = self._config.logging.model_summary
        if levels and self._ranks.rank == 0:
            _tell(model_summary(model, self._optimizers, levels), is_shown=True)

    def record_schedule(self) -> None:
        """Before the schedule leaves an epoch: keeps what was drawn in it, for the run's report."""
        if self._recorder is not None:
            self._recorder.record()

    def end_epoch(self) -> None:
        """Brings the latest metrics up to date for schedulers and hooks; the interval continues."""
        if not self._metrics.is_empty:
            self._run.logged.update(self._training_row())
        if self._recorder is not None and self._logger is not None:
            self._recorder.draw(self._logger)
        self._progress.close()

    def pause(self) -> None:
        """``fit`` ends: what was noted since the last row is written, and the interval continues in the next call."""
        if not self._metrics.is_empty:
            self._run.partial_row = self._training_row()
            self.write(self._run.partial_row)
        if self._recorder is not None:
            self._recorder.pause()
        if self._logger is not None:
            self._logger.flush()

    def close(self) -> None:
        """Also after an exception."""
        self._progress.close()

    def close_logs(self) -> None:
        """Until the next ``open``, which continues in the same place."""
        if self._logger is not None:
            self._logger_state = self._logger.state_dict()
            self._logger.close()
            self._logger = None

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Seconds inside don't count as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._validation_s += time.perf_counter() - began

    def is_due(self) -> bool:
        """Whether this update ends an interval."""
        return self._run.global_step % self._config.logging.log_scalars_every_n_steps == 0

    def log(self) -> dict[str, float]:
        """Writes a row, starts the next interval, and returns the row."""
        row = self._training_row()
        row.update(self._rates())
        row.update(self._throughput())
        shares = self.loader_proportions()
        if self._config.logging.log_loader_proportions:
            row.update(shares)
        self._metrics.clear()
        self._run.logged.update(row)
        self.write(row)
        self._facts.update(self._latest(row, shares))
        self._progress.describe(self._facts)
        return row

    def write_validation(self, row: Mapping[str, float]) -> None:
        """Gives the results of a validation to the logger, and shows them."""
        self.write(row)
        name = self._monitored(row)
        if name is not None:
            is_better = operator.gt if self._is_higher_better(name) else operator.lt
            if self._best is None or is_better(row[name], self._best[0]):
                self._best = row[name], self._run.global_step
            self._facts[name] = f"{row[name]:.4g}"
        if not self._shows_lines or "console" in self._loggers:  # whose line has the results
            return
        overall = [f"{key} {value:.4g}" for key, value in row.items() if key.count("/") == 1][:_NUM_RESULTS]
        place = f"validation after update {self._run.global_step} (epoch {self._run.epoch})"
        print_line(f"{place}: {' · '.join(overall) or 'no metric over all loaders'}")

    def finish(self, checkpoint: Path | str | None) -> None:
        """``fit`` has reached its end: one line says what came out and where to look.

        Args:
            checkpoint: the one saved last; None without one.
        """
        if self._began_s is None:  # there was nothing to do
            return
        run, config = self._run, self._config
        parts = [
            f"update {run.global_step} after {duration(time.perf_counter() - self._began_s)}"
            + (f" ({run.stop_reason})" if run.stop_reason else "")
        ]
        metrics = run.metrics
        name = self._monitored(metrics)
        if name is not None:
            best = "" if self._best is None else f" (best {self._best[0]:.4g} after update {self._best[1]})"
            parts.append(f"{name} {metrics[name]:.4g}{best}")
        elif "train/loss" in metrics:
            parts.append(f"train/loss {metrics['train/loss']:.4g}")
        if (waited := self._waited()) is not None:
            parts.append(waited)
        if checkpoint is not None:
            parts.append(f"checkpoint {checkpoint}")
        elif config.checkpoint.root_dir != CheckpointConfig().root_dir:
            parts.append("no checkpoint, because nothing asked for one (checkpoint.save_at_end)")
        if (folder := run_log_directory(config.logging, config.experiment_name)) is not None:
            parts.append(f"mtf report {folder}")
        if "tensorboard" in self._loggers:
            parts.append(f"tensorboard --logdir {config.logging.tensorboard_log_dir or folder}")
        self._began_s = None
        if self._ranks.rank == 0:
            self._progress.close()
            _tell(" · ".join(parts), is_shown=self._shows_lines)

    def _source_waits(self) -> dict[str, float]:
        multi = self._data.multi
        return dict(multi.stats()["source_wait_s"]) if multi is not None else {}

    def _waited(self) -> str | None:
        """The share of this ``fit`` that was spent waiting for data, where that is much, and for which loader."""
        (began, waited_before, _), before = self._began
        now, waited_s, _ = self.totals()
        waits = {name: seconds - before.get(name, 0.0) for name, seconds in self._source_waits().items()}
        return waiting(now - began, waited_s - waited_before, waits)

    @property
    def _loggers(self) -> set[str]:
        """Names of the loggers that this run has."""
        logging_ = self._config.logging
        return {kind for kind in (logging_.logger_type, *logging_.composite_loggers) if isinstance(kind, str)}

    @property
    def _shows_lines(self) -> bool:
        return self._ranks.rank == 0 and self._config.logging.progress_bar

    def _monitored(self, row: Mapping[str, float]) -> str | None:
        """The validation metric that counts: the monitored one, else the loss, else the first over all loaders."""
        overall = (name for name in row if name.startswith("val/") and name.count("/") == 1)
        candidates = (self._config.checkpoint.monitor_metric, "val/loss", *overall)
        return next((name for name in candidates if name is not None and name in row), None)

    def _is_higher_better(self, name: str) -> bool:
        checkpoint = self._config.checkpoint
        return name == checkpoint.monitor_metric and checkpoint.monitor_mode == "max"

    def write(self, row: Mapping[str, float]) -> None:
        """Gives a row to the logger."""
        if self._logger is not None and row:
            self._logger.log_metrics(row, self._run.global_step)

    # Rows ---------------------------------------------------------------------------------------------------------

    def _training_row(self) -> dict[str, float]:
        return self._metrics.means(self._ranks, per_loader=self._config.logging.log_per_loader_metrics)

    def _rates(self) -> dict[str, float]:
        """``lr/optimizer0``, and ``lr/optimizer0/group1`` where an optimizer has several groups."""
        row = {}
        for i, optimizer in enumerate(self._optimizers):
            rates = learning_rates(optimizer)
            for j, rate in enumerate(rates):
                if rate is not None:
                    row[f"lr/optimizer{i}" + (f"/group{j}" if len(rates) > 1 else "")] = rate
        return row

    def totals(self) -> tuple[float, float, int]:
        """Seconds of training on a steady clock, seconds waited for data and samples trained on, each since some fixed
        point. Validations are left out."""
        multi = self._data.multi
        return (
            time.perf_counter() - self._validation_s,
            float(multi.stats()["wait_s"]) if multi is not None else 0.0,
            self.num_samples,
        )

    def _throughput(self) -> dict[str, float]:
        """Samples per second, and what prefetching did; these depend on the machine and are never state."""
        elapsed_s, waited_s, samples = self._clock.lap(self.totals())
        elapsed_s = max(elapsed_s, 1e-9)
        row = {
            "throughput/samples_per_s": samples / elapsed_s,
            "throughput/data_wait_s": waited_s,
            "throughput/data_wait_share": waited_s / elapsed_s,
            **self.throughput.row(elapsed_s, samples),
        }
        stats = self._data.manager.stats()
        engine = stats["engine"]
        if engine:
            row["throughput/prefetched_batches"] = float(engine["num_ready"])
        if self._config.logging.log_per_loader_metrics:
            waits = stats["source_wait_s"]
            row.update({f"throughput/{n}/data_wait_s": s - self._waits.get(n, 0.0) for n, s in waits.items()})
            self._waits = waits
        return row

    def loader_proportions(self) -> dict[str, float]:
        """Share of each loader's batches since the epoch's start, and how far it is from what the weights promise."""
        multi = self._data.manager
        schedule = multi.schedule
        # The update has just committed its batches, so the schedule's cursor stands behind them.
        actual = schedule.counts(schedule.step, epoch=schedule.epoch)
        expected = schedule.expected_counts(schedule.step, epoch=schedule.epoch)
        # Removed loaders keep their indices in the schedule; what they gave belongs to no share any more.
        present = schedule.present
        return proportions(multi.names, list(compress(actual, present)), list(compress(expected, present)))

    def _latest(self, row: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, str]:
        facts = {"update": str(self._run.global_step)}
        if "train/loss" in row:
            facts["loss"] = f"{row['train/loss']:.4g}"
        facts["wait"] = f"{row['throughput/data_wait_share']:.0%}"
        multi = self._data.manager
        mix = [shares[f"loader_proportions/{name}_batches"] for name in multi.names]
        if 1 < len(mix) <= 6:
            facts["mix"] = "/".join(f"{share:.0%}" for share in mix)
        return facts

    # State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Run ids of the loggers, kept in checkpoints so that a resumed run continues in the same place."""
        return self._logger.state_dict() if self._logger is not None else self._logger_state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Only has an effect before the first ``fit``, which opens the loggers."""
        self._logger_state = dict(state)


def _tell(line: str, *, is_shown: bool) -> None:
    """Logs a fact, and prints it for people, but not a second time where the log goes to the terminal anyway."""
    _log.info("%s", line)
    if is_shown and not _is_printed(_log):
        print_line(line)


def _is_printed(logger: logging.Logger) -> bool:
    """Whether facts of this logger appear in the terminal."""
    if not logger.isEnabledFor(logging.INFO):
        return False
    found: logging.Logger | None = logger
    while found is not None:
        for handler in found.handlers:
            stream = getattr(handler, "stream", None) or getattr(
                getattr(handler, "console", None), "file", None
            )  # rich's
            if handler.level <= logging.INFO and stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
                return True
        found = found.parent if found.propagate else None
    return False


class _Clock:
    """Differences of totals."""

    def __init__(self) -> None:
        self.start((0.0, 0.0, 0))

    def start(self, totals: tuple[float, float, int]) -> None:
        self._last = totals

    def lap(self, totals: tuple[float, float, int]) -> tuple[float, float, int]:
        last, self._last = self._last, totals
        return totals[0] - last[0], totals[1] - last[1], totals[2] - last[2]
