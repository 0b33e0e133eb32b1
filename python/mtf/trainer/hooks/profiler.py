"""A profile of some updates by torch.profiler."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from mtf.config.checks import at_least
from mtf.config.keywords import checked_keywords
from mtf.trainer.hooks.base import Trainer, TrainerHooks

_log = logging.getLogger("mtf.trainer")


class Profiler(TrainerHooks):
    """Profiles some updates with ``torch.profiler``, data loading between them included, and changes nothing.

    Each profile is a trace for https://ui.perfetto.dev or ``chrome://tracing``, and a table of the operations that took
    longest, beside it and in the log.

    Args:
        directory: where traces are written, as ``updates-<first>-<last>.json``, with the rank where there are several.
        skip: updates of this start before the first profile, which compile, warm caches and start workers.
        warmup: updates of each profile whose numbers are dropped, as starting a profile costs time.
        active: updates that are profiled.
        repeat: number of profiles, one after the other.
        top: rows of the table.
        options: further arguments of ``torch.profiler.profile``, such as ``with_stack=True``.

    Attributes:
        paths: traces that were written.

    Raises:
        ConfigError: a number out of its range.
    """

    @checked_keywords(words={"dirpath": "directory", "output_dir": "directory", "wait": "skip"})
    def __init__(
        self,
        directory: str | Path = "profile",
        skip: int = 10,
        warmup: int = 2,
        active: int = 3,
        repeat: int = 1,
        top: int = 15,
        **options: Any,
    ) -> None:
        for name, value, low in (
            ("skip", skip, 0), ("warmup", warmup, 1), ("active", active, 1), ("repeat", repeat, 1), ("top", top, 1)
        ):  # fmt: skip
            at_least(f"Profiler: {name}", value, low)
        self.directory = Path(directory)
        self.skip, self.warmup, self.active, self.repeat, self.top = skip, warmup, active, repeat, top
        self.paths: list[Path] = []
        self._options = options
        self._profile: Any = None
        self._num_updates = 0
        self._update = -1

    def on_train_start(self, trainer: Trainer) -> None:
        """The counts are those of this start."""
        self._update = -1

    def on_train_batch_start(
        self, trainer: Trainer, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_name: str
    ) -> None:
        """Between two updates: begins a profile, or ends one."""
        if trainer.global_step == self._update:
            return
        if self._update >= 0:
            self._num_updates += 1
            if self._profile is not None:
                self._profile.step()
        self._update = trainer.global_step
        done = self._num_updates - self.skip
        length = self.warmup + self.active
        if self._profile is not None and done % length == 0:
            self._end(trainer)
        if self._profile is None and 0 <= done < length * self.repeat and done % length == 0:
            self._begin()

    def _begin(self) -> None:
        schedule = torch.profiler.schedule(wait=0, warmup=self.warmup, active=self.active, repeat=1)
        self._profile = torch.profiler.profile(schedule=schedule, **self._options)
        self._profile.start()

    def _end(self, trainer: Trainer) -> None:
        profile, self._profile = self._profile, None
        profile.stop()
        last = trainer.global_step
        rank = f"-rank{trainer.rank}" if trainer.world_size > 1 else ""
        path = self.directory / f"updates-{last - self.active + 1}-{last}{rank}.json"
        self.directory.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(path))
        key = "self_cuda_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=key, row_limit=self.top)
        path.with_suffix(".txt").write_text(table)
        self.paths.append(path)
        _log.info("profile of updates %d to %d in %s\n%s", last - self.active + 1, last, path, table)

    def on_train_end(self, trainer: Trainer) -> None:
        """A profile that isn't complete is dropped, unless its last update was the run's."""
        if self._profile is None:
            return
        if (self._num_updates + 1 - self.skip) % (self.warmup + self.active) == 0:
            self._profile.step()
            self._end(trainer)
        else:
            self._drop()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Ends the profile."""
        self._drop()

    def _drop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is not None:
            profile.stop()
