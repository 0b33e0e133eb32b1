"""What people see of a run: rows for the logger at intervals, and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import compress
from typing import TYPE_CHECKING, Any

from mtf.loggers.base import Logger, RunInfo, SafeLogger
from mtf.loggers.registry import make_logger
from mtf.trainer.metrics import proportions
from mtf.trainer.optimizers import learning_rates
from mtf.trainer.progress_bar import Progress
from mtf.trainer.reporting.schedule_recorder import ScheduleRecorder

if TYPE_CHECKING:
    from mtf.data.multi_loader import MultiLoader
    from mtf.trainer.trainer import Trainer


class Reporter:
    """Turns what the loop notes into rows. Only rank 0 writes."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._logger: Logger | None = None
        self._logger_state: dict[str, Any] = {}
        self._chronicle: ScheduleRecorder | None = None
        self._progress = Progress("", None, is_shown=False)
        self._clock = _Clock()
        self._waits: dict[str, float] = {}
        self._validation_s = 0.0
        self.num_samples = 0
        self.advance = self._progress.advance

    # The loop tells -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """A call of ``fit`` begins."""
        trainer = self._trainer
        if self._logger is None and trainer.rank == 0:
            info = RunInfo(
                name=trainer.config.experiment_name,
                config=trainer.config.describe(),
                step=trainer.global_step,
                state=self._logger_state,
            )
            self._logger = SafeLogger(make_logger(trainer.config.logging, info))
            self._chronicle = self._chronicle or ScheduleRecorder(trainer, info)
        self.note_schedule()
        trainer.partial_row = {}
        self._clock.start(self.totals())

    def begin_epoch(self, multi: MultiLoader) -> None:
        """The bar of an epoch, also of one that goes on."""
        trainer = self._trainer
        shown = trainer.config.logging.progress_bar and trainer.rank == 0
        total = multi.schedule.num_steps(multi.epoch)
        self._progress.close()
        self._progress = Progress(f"epoch {trainer.epoch}", total, multi.step, is_shown=shown)
        self.advance = self._progress.advance

    def note_schedule(self) -> None:
        """Before the schedule leaves an epoch: keeps what was drawn in it, for the run's report."""
        if self._chronicle is not None:
            self._chronicle.note()

    def end_epoch(self) -> None:
        """Brings ``trainer.metrics`` up to date for schedulers and hooks; the interval goes on."""
        if not self._trainer.metric_table.is_empty:
            self._trainer.logged.update(self._training_row())
        if self._chronicle is not None and self._logger is not None:
            self._chronicle.draw(self._logger)
        self._progress.close()

    def pause(self) -> None:
        """``fit`` ends: what was noted since the last row is written, and the interval goes on in the next call."""
        if not self._trainer.metric_table.is_empty:
            self._trainer.partial_row = self._training_row()
            self.write(self._trainer.partial_row)
        if self._chronicle is not None:
            self._chronicle.pause()
        if self._logger is not None:
            self._logger.flush()

    def close(self) -> None:
        """Also after an exception."""
        self._progress.close()

    def close_logs(self) -> None:
        """Until the next ``open``, which goes on in the same place."""
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
        return self._trainer.global_step % self._trainer.config.logging.log_scalars_every_n_steps == 0

    def log(self) -> dict[str, float]:
        """Writes a row, starts the next interval, and returns the row."""
        trainer = self._trainer
        row = self._training_row()
        row.update(self._rates())
        row.update(self._throughput())
        shares = self.loader_proportions()
        if trainer.config.logging.log_loader_proportions:
            row.update(shares)
        trainer.metric_table.clear()
        trainer.logged.update(row)
        self.write(row)
        self._progress.describe(self._facts(row, shares))
        return row

    def write(self, row: Mapping[str, float]) -> None:
        """Gives a row to the logger."""
        if self._logger is not None and row:
            self._logger.log_metrics(row, self._trainer.global_step)

    # Rows ---------------------------------------------------------------------------------------------------------

    def _training_row(self) -> dict[str, float]:
        trainer = self._trainer
        return trainer.metric_table.means(trainer.ranks, per_loader=trainer.config.logging.log_per_loader_metrics)

    def _rates(self) -> dict[str, float]:
        """``lr/optimizer0``, and ``lr/optimizer0/group1`` where an optimizer has several groups."""
        row = {}
        for i, optimizer in enumerate(self._trainer.optimizers):
            rates = learning_rates(optimizer)
            for j, rate in enumerate(rates):
                if rate is not None:
                    row[f"lr/optimizer{i}" + (f"/group{j}" if len(rates) > 1 else "")] = rate
        return row

    def totals(self) -> tuple[float, float, int]:
        """Seconds of training on a steady clock, seconds waited for data and samples trained on, each since some fixed
        point. Validations are left out."""
        multi = self._trainer.multi
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
        }
        assert self._trainer.multi is not None
        stats = self._trainer.multi.stats()
        engine = stats["engine"]
        if engine:
            row["throughput/prefetched_batches"] = float(engine["num_ready"])
        if self._trainer.config.logging.log_per_loader_metrics:
            waits = stats["source_wait_s"]
            row.update({f"throughput/{n}/data_wait_s": s - self._waits.get(n, 0.0) for n, s in waits.items()})
            self._waits = waits
        return row

    def loader_proportions(self) -> dict[str, float]:
        """Share of each loader's batches since the epoch's start, and how far it is from what the weights promise."""
        multi = self._trainer.multi
        assert multi is not None
        schedule = multi.schedule
        # The update has just committed its batches, so the schedule's cursor stands behind them.
        actual = schedule.counts(schedule.step, epoch=schedule.epoch)
        expected = schedule.expected_counts(schedule.step, epoch=schedule.epoch)
        # Removed loaders keep their indices in the schedule; what they gave belongs to no share any more.
        present = schedule.present
        return proportions(multi.names, list(compress(actual, present)), list(compress(expected, present)))

    def _facts(self, row: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, str]:
        facts = {}
        if "train/loss" in row:
            facts["loss"] = f"{row['train/loss']:.4g}"
        facts["wait"] = f"{row['throughput/data_wait_share']:.0%}"
        multi = self._trainer.multi
        assert multi is not None
        mix = [shares[f"loader_proportions/{name}_batches"] for name in multi.names]
        if 1 < len(mix) <= 6:
            facts["mix"] = "/".join(f"{share:.0%}" for share in mix)
        return facts

    # State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Run ids of the loggers, kept in checkpoints so that a resumed run goes on in the same place."""
        return self._logger.state_dict() if self._logger is not None else self._logger_state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Only has an effect before the first ``fit``, which opens the loggers."""
        self._logger_state = dict(state)


class _Clock:
    """Differences of totals."""

    def __init__(self) -> None:
        self.start((0.0, 0.0, 0))

    def start(self, totals: tuple[float, float, int]) -> None:
        self._last = totals

    def lap(self, totals: tuple[float, float, int]) -> tuple[float, float, int]:
        last, self._last = self._last, totals
        return totals[0] - last[0], totals[1] - last[1], totals[2] - last[2]
