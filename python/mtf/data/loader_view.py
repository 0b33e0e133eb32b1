"""What a MultiLoader shows of the mixture: names, position, plan and times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtf.data.cursor import Cursor
from mtf.data.delivery import Delivery
from mtf.data.mixture_plan import with_row_shares, with_windows
from mtf.data.source_set import SourceSet
from mtf.schedule.schedule import Schedule

if TYPE_CHECKING:
    from mtf.schedule.plan import Plan


class LoaderView:
    """The part of a MultiLoader that is read, without a batch being taken.

    Attributes:
        accumulation: Batches of an accumulation window, and the weights of losses, where a trainer has them.
    """

    accumulation: tuple[int, Mapping[str, float]]
    _cursor: Cursor
    _sources: SourceSet
    _delivery: Delivery

    @property
    def names(self) -> list[str]:
        """Names of the sources in the mixture, in the order of their indices."""
        cursor = self._cursor
        cursor.follow_if_stale()
        return [name for name, present in zip(cursor.names, cursor.present, strict=True) if present]

    @property
    def initial_names(self) -> list[str]:
        """Names of the sources that training began with, whatever was removed or added since."""
        return list(self._sources.initial)

    @property
    def schedule(self) -> Schedule:
        """What is drawn when, its cursor behind the last batch handed out. What is changed in it takes effect at the
        next batch; sources are added through the MultiLoader, which needs their loaders."""
        return self._cursor.expose()

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives (the rest of)."""
        return self._cursor.next_epoch

    @property
    def step(self) -> int:
        """Steps of the current epoch that were handed out."""
        schedule = self._cursor.schedule
        return 0 if schedule.epoch_done else int(schedule.step)

    @property
    def why_over(self) -> str | None:
        """Why no batch will come any more, in words: the next one is wanted from a source whose data are spent, as a
        ``Blend`` with ``max_passes`` can be. None: there is one. An iteration ends there as at the end of an epoch."""
        return self.why_over_within(1)

    def why_over_within(self, num_steps: int) -> str | None:
        """As ``why_over``, for any of the next ``num_steps`` batches of the epoch."""
        if not any(reader.source.has_end for reader in self._sources.readers.values()):
            return None
        schedule = self._cursor.schedule
        is_done = bool(schedule.epoch_done)
        first, epoch = 0 if is_done else schedule.step, schedule.epoch + is_done
        for step in range(first, first + num_steps):
            draw = schedule.at(step, epoch)
            name = schedule.names[draw.source]
            source = self._sources.readers[name].source
            if source.has_end and source.is_over(draw.pass_, draw.batch):
                return f"source {name!r}: {source.why_over(draw.pass_, draw.batch)}"
        return None

    def plan(
        self,
        epochs: int = 1,
        *,
        gradient_accumulation_steps: int | None = None,
        loss_weights: Mapping[str, float] | None = None,
    ) -> Plan:
        """What will be drawn; see ``Schedule.plan``. It also warns of sources whose share of the rows is smaller than
        that of the batches, and of a last accumulation window that is short under loss weights.

        Args:
            epochs: How many, from the current one on.
            gradient_accumulation_steps: Batches of an accumulation window; None: the trainer's, or 1.
            loss_weights: What each loader's loss is multiplied by; None: the trainer's, or 1 each.
        """
        schedule, ranks = self._cursor.schedule, self._sources.ranks.world_size
        length = self.accumulation[0] if gradient_accumulation_steps is None else gradient_accumulation_steps
        weights = self.accumulation[1] if loss_weights is None else loss_weights
        rows = {name: reader.source.mean_batch_size(ranks) for name, reader in self._sources.readers.items()}
        plan = with_row_shares(schedule.plan(epochs), rows)
        return with_windows(plan, schedule, length, weights)

    def stats(self) -> dict[str, Any]:
        """Where time goes.

        Returns:
            ``num_steps``; ``wait_s``, seconds spent waiting for batches; by name ``source_wait_s``, the part of each
            source in it, ``in_flight``, batches requested from workers, and ``notes``, what doesn't hold for the
            source, in words; ``engine``, see ``Engine.stats``.
        """
        return {
            "num_steps": self._delivery.num_steps,
            "wait_s": sum(self._delivery.wait_s),
            "source_wait_s": dict(zip(self._cursor.names, self._delivery.wait_s, strict=False)),
            **self._sources.stats(),
        }
