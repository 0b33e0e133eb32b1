"""What is kept of a run for its report: the run log beside its rows, and pictures for loggers that can show them."""

from __future__ import annotations

import importlib.util
import warnings

from mtf.call_site import user_level
from mtf.config.logging import LoggingConfig
from mtf.config.trainer import TrainerConfig
from mtf.errors import ConfigError
from mtf.loggers.base import Logger, RunInfo
from mtf.loggers.run_log import RUN_LOG_NAME, RunLog, run_log_directory
from mtf.schedule.schedule import Schedule
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.state.run_state import RunState


class ScheduleRecorder:
    """Follows the schedule of one run. On rank 0 only.

    A state of the schedule tells of its own epoch and of all later ones up to the next edit, so a state is kept only
    where those before it don't foretell what has happened since.

    Raises:
        ConfigError: pictures are asked for, and matplotlib isn't installed.
    """

    def __init__(
        self, config: TrainerConfig, info: RunInfo, run: RunState, data: TrainingData, world_size: int
    ) -> None:
        logging = config.logging
        self._config = config
        self._run = run
        self._data = data
        self._draws = logging.log_pictures
        if self._draws and importlib.util.find_spec("matplotlib") is None:
            raise ConfigError("logging.log_pictures needs matplotlib: pip install 'mtf-torch[plot]'")
        directory = run_log_directory(logging, info.name)
        self._states: list[bytes] = self._states_so_far(logging, info) if self._draws else []
        self._run_log = None if directory is None else RunLog(directory, info, world_size)
        self._known: Schedule | None = None
        self._failed = False

    def record(self) -> None:
        """Keeps the schedule as it is now, where earlier notes don't tell it."""
        if self._run_log is None and not self._draws:
            return
        multi = self._data.manager
        _ = multi.step  # looking at it brings the schedule's cursor there
        position, state = multi.schedule.position, multi.schedule.to_bytes()
        if self._known is not None and _foretells(self._known, position, state):
            return
        self._known = Schedule.from_bytes(state)
        if self._run_log is not None:
            self._run_log.note_schedule(state, self._run.global_step)
        if self._draws:
            self._states.append(state)

    def pause(self) -> None:
        """``fit`` ends."""
        self.record()
        if self._run_log is not None:
            self._run_log.note_pause(self._run.global_step, self._run.epoch, self._run.stop_reason)

    def draw(self, logger: Logger) -> None:
        """Gives pictures of the run so far to the logger; one that can't be drawn is a warning."""
        if not self._draws:
            return
        from mtf.report import data_wait, passes, schedule_raster, shares
        from mtf.report.pictures.style import Palette
        from mtf.report.timeline import Timeline

        multi = self._data.manager
        try:
            states = [Schedule.from_bytes(state) for state in self._states]
            timeline = Timeline(states, self._config.describe()["multi"])
            history = timeline.history(multi.epoch, multi.step)
            waits = {name: (wait_s, 0) for name, wait_s in multi.stats()["source_wait_s"].items()}
            figures = {
                "schedule": schedule_raster(history),
                "shares": shares(history),
                "passes": passes(history),
                "data_wait": data_wait(None, waits, Palette(history.names, history.totals.tolist())),
            }
        except Exception as error:  # whatever a picture fails of, training is worth more
            if not self._failed:
                self._failed = True
                warnings.warn(
                    f"pictures of the run can't be drawn: {error!r}; training continues", stacklevel=user_level()
                )
            return
        for name, figure in figures.items():
            logger.log_figure(f"pictures/{name}", figure, self._run.global_step)

    @staticmethod
    def _states_so_far(logging: LoggingConfig, info: RunInfo) -> list[bytes]:
        """Those that the run log has of a run that continues."""
        from mtf.report.run_log import read_run_log

        directory = run_log_directory(logging, info.name)
        if info.step == 0 or directory is None or not (directory / RUN_LOG_NAME).is_file():
            return []
        kept = read_run_log(directory / RUN_LOG_NAME).schedules
        return [schedule.to_bytes() for update, schedule in kept if update <= info.step]


def _foretells(known: Schedule, position: tuple[int, int], state: bytes) -> bool:
    """Whether ``known``, moved to ``position``, is what ``state`` says."""
    try:
        known.seek(*position)
    except ConfigError:  # the epoch's end was not known then
        return False
    return known.to_bytes() == state
