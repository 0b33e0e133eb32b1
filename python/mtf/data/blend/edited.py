"""Edits of a blend: other weights, and sources that come and go."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtf.config.mixture import WeightCurve
from mtf.data.blend.mixture import require_one_structure
from mtf.data.blend.rows import NativeRows, Rows, as_rows
from mtf.data.blend.run import BlendRun, require_names
from mtf.data.blend.running import RunningBlend
from mtf.errors import ConfigError
from mtf.schedule.caps import check_max_passes
from mtf.schedule.schedule import Schedule


class EditedBlend(RunningBlend):
    """The part of a Blend that has the weights and changes what is in force."""

    _gathers: bool

    @property
    def weight_curve(self) -> WeightCurve | None:
        """The weight curve in force, its points in samples of the run; None where the weights are fixed."""
        return self._run.schedule.config.weight_curve

    @property
    def weights(self) -> dict[str, float]:
        """The shares in force for the next batch, of what ``weights_count`` says; they sum to 1."""
        run = self._run
        self._mark_taken(run)
        schedule = run.schedule
        rows = schedule.mixture.weights or [1.0] * len(schedule.names)
        if schedule.mixture.curve is not None:
            at = self._sizes.start(run.next_batch)
            before, after = (schedule.expected_counts(position, 0) for position in (at, at + 1))
            rows = [b - a for a, b in zip(before, after, strict=True)]
        present = zip(schedule.names, rows, schedule.present, strict=True)
        counted = {name: share * self._row_weights.per_row(name) for name, share, here in present if here}
        total = math.fsum(counted.values())
        return {name: share / total for name, share in counted.items()}

    def update_weights(self, weights: Mapping[str, float] | Sequence[float]) -> None:
        """New weights from the next batch on, by name or one per source in their order. Replaces a weight curve.

        On several ranks each has to make the same edits at the same step.

        Raises:
            ConfigError: Wrong number or names; negative, infinite, NaN or all-zero weights.
        """
        in_rows = self._row_weights.of(self.names, weights)
        self._edit(lambda schedule: schedule.update_weights(in_rows))

    def set_weight(self, name: str, weight: float) -> None:
        """A new weight of one source from the next batch on; the others keep theirs."""
        in_rows = self._row_weights.one(name, weight)
        self._edit(lambda schedule: schedule.set_weight(name, in_rows))

    def add_source(self, name: str, data: Any, weight: float | None = None, *, max_passes: int | None = None) -> None:
        """Adds a source from the next batch on. A resume needs it again: as ``source_factories``.

        Args:
            name: Of the source.
            data: As in ``sources``.
            weight: Relative to those of the others; needed where these have weights.
            max_passes: How often each of its rows is drawn at most. Passes that a removed source of this name has begun
                count.

        Raises:
            ConfigError: A name that is there, or data whose rows can't be stacked with those of the others.
        """
        require_names([name])
        run = self._run
        if name in self.names:
            raise ConfigError(f"there is already a source {name!r}; the sources are {self.names}")
        rows = as_rows(data, name)
        self._check_addition(run, name, rows)
        self._row_weights.add(name, rows)
        self._mark_taken(run)
        self._check_cap(run, name, max_passes)
        per_draw = self._row_weights.per_row(name)
        run.add_source(
            name, rows, None if weight is None else self._row_weights.one(name, weight), max_passes, per_draw
        )
        run.set_cap(name, max_passes)

    def remove_source(self, name: str) -> None:
        """Takes a source out from the next batch on."""
        self._edit(lambda schedule: schedule.remove_source(name))

    def _edit(self, change: Callable[[Schedule], Any]) -> None:
        self._mark_taken(self._run)
        self._run.edit(change)

    def _check_cap(self, run: BlendRun, name: str, max_passes: int | None) -> None:
        if max_passes is None:
            return
        check_max_passes(name, max_passes)
        if run.caps is None:
            raise ConfigError(
                f"max_passes of {name!r}: this blend was made without max_passes, so that it has no rule for what "
                "happens when a source is spent: give max_passes and when_spent to Blend"
            )

    def _check_addition(self, run: BlendRun, name: str, rows: Rows) -> None:
        if self._gathers and not isinstance(rows, NativeRows):
            raise ConfigError(
                f"source {name!r} is read in Python, but this blend gathers natively: give collate_fn=... to Blend, so "
                "that it reads all sources in Python"
            )
        if not self._by_source:
            present = {known: run.rows[known] for known in self.names}
            require_one_structure({**present, name: rows})
