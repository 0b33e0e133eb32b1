"""Updates whose data are left out: ranges of update numbers, which are part of the state."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from mtf.data.steering.update_ranges import Range, UpdateRanges
from mtf.distributed.ranks import SingleRank
from mtf.schedule.accumulation import AccumulationSchedule
from mtf.trainer.data_setup import TrainingData
from mtf.trainer.state.run_state import RunState, StopCondition

_log = logging.getLogger("mtf")


class SkippedUpdates(UpdateRanges):
    """The updates of a run whose data are left out. A component of the state."""

    def add_on_all_ranks(self, given: Sequence[Range], global_step: int, ranks: SingleRank) -> None:
        """As ``add``. A collective on several ranks.

        Raises:
            ConfigError: as ``add``, or ranks differ in what they leave out.
        """
        self.add(given, global_step)
        if ranks.world_size > 1:
            ranks.require_equal("the updates to skip", self.state_dict())

    def leave_out(self, run: RunState, data: TrainingData, windows: AccumulationSchedule, limits: StopCondition) -> int:
        """Passes over the data of the updates that are due, up to the epoch's end or the last update of ``fit``.

        Args:
            run: Where the run stands; moved on.
            data: The loaders; moved on.
            windows: Batches of each update.
            limits: Where ``fit`` ends.

        Returns:
            The number of batches.
        """
        due, left = self.due(run.global_step), limits.steps_left(run)
        num_updates = due if left is None else min(due, left)
        if not num_updates:
            return 0
        multi = data.manager
        epoch, step = multi.epoch, multi.step
        first = run.global_step
        num_batches = multi.skip(windows.batches_of(num_updates, sys.maxsize, epoch, first))
        run.global_step += windows.updates_in(num_batches, epoch, first)
        run.num_batches += num_batches
        run.num_committed = run.num_batches
        multi.commit()
        _log.info(
            "left out the data of updates %d to %d: batches %d to %d of epoch %d",
            *(first, run.global_step - 1, step, step + num_batches - 1, epoch),
        )
        return num_batches
