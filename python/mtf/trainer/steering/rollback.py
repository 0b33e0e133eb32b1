"""How a run goes back after a spike."""

from __future__ import annotations

import logging

from mtf.trainer.checkpointing import Checkpointer
from mtf.trainer.reporting.reporter import Reporter
from mtf.trainer.state.run_state import RunState
from mtf.trainer.steering.skips import SkippedUpdates
from mtf.trainer.steering.spike_guard import GoBack
from mtf.trainer.step import TrainStep

_log = logging.getLogger("mtf")


def go_back(
    spike: GoBack, run: RunState, step: TrainStep, reporter: Reporter, checkpointer: Checkpointer, skips: SkippedUpdates
) -> None:
    """Puts the run back to its newest checkpoint, and leaves out the data from there to the spike. A collective.

    Nothing of it has to be saved: a run that is killed resumes from the same checkpoint, finds the same spike, and goes
    back in the same way.
    """
    guard, update = spike.guard, run.global_step
    num_rollbacks, num_skipped = guard.num_rollbacks + 1, guard.num_skipped + 1
    step.roll_back(run, warns=False)
    run.interrupt()
    reporter.close_logs()
    resumed = checkpointer.go_back()
    run.is_resumed = False
    if resumed is None:
        guard.num_skipped = num_skipped
        skips.extend(update, update + 1)
        _log.info("left out update %d, because there is no checkpoint to go back to yet: %s", update, spike.spike)
    else:
        guard.num_rollbacks = num_rollbacks
        skips.extend(resumed.step, spike.end)
        _log.info(
            "update %d: %s; went back to %s (rollback %d of at most %d), and leaves out the data of updates %d to %d",
            *(update, spike.spike, resumed.path, num_rollbacks, guard.max_rollbacks, resumed.step, spike.end - 1),
        )
    reporter.open()
