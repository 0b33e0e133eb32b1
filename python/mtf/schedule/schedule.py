"""Which source gives the batch of every step: a pure function of configuration, lengths, seed, edits and position."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtf import _core
from mtf._core import Draw
from mtf.call_site import user_level
from mtf.config.checks import nearest, number_of, parse_enum
from mtf.config.mixture import MultiDataLoaderConfig, WeightCurve, require_mixture
from mtf.enums import EpochLengthPolicy, Interpolation, SamplingStrategy, WeightedOrder
from mtf.errors import ConfigError
from mtf.formatting import html_table
from mtf.schedule.caps import PassCaps
from mtf.schedule.core_config import check_length, check_seed, match_names, name_sources, to_core

if TYPE_CHECKING:
    from mtf.schedule.plan import Plan

__all__ = ["Draw", "Schedule"]

_logger = logging.getLogger("mtf.schedule")

#: Fields of the configuration that `Schedule.set_strategy` takes besides the strategy.
_EDITABLE = (
    "dataloader_weights",
    "alternating_pattern",
    "burst_size",
    "weighted_order",
    "epoch_length_policy",
    "steps_per_epoch",
    "cycle_short_loaders",
    "continue_across_epochs",
    "weight_curve",
)


class Schedule(_core.Schedule):
    """The schedule of a mixture, with a cursor.

    Indices of sources never change: a source that is added comes last, one that is removed keeps its index. Wherever
    ``epoch`` is left out, the cursor's epoch is meant.

    Args:
        config: how the sources are mixed; None: ROUND_ROBIN with its defaults.
        lengths: batches per pass of each source, None where unknown; in the order of the configuration's names, or
            by name.
        seed: in ``[0, 2**64)``; ``config.seed`` wins where it is set.
        caps: how often sources may be passed through; for WEIGHTED with FIXED_NUM_STEPS and cycling.

    Raises:
        ConfigError: the first rule that the configuration or a length breaks.
    """

    def __init__(
        self,
        config: MultiDataLoaderConfig | None = None,
        lengths: Sequence[int | None] | Mapping[str, int | None] = (),
        seed: int = 0,
        caps: PassCaps | None = None,
    ) -> None:
        """See the class."""
        config = MultiDataLoaderConfig() if config is None else config
        require_mixture(config)
        names, counts = name_sources(config.dataloader_names, lengths)
        mixture = to_core(config, len(names))
        capped = () if caps is None else caps.by_index(names)
        seed = check_seed(seed if config.seed is None else config.seed)
        super().__init__(mixture, names, counts, seed, capped, caps is not None and caps.stops)
        self._template = config
        for message in mixture.useless_options:
            warnings.warn(message, UserWarning, stacklevel=user_level())
        self._report_inactive()

    @classmethod
    def from_bytes(cls, data: bytes) -> Schedule:
        """The schedule that ``to_bytes`` wrote, cursor included.

        Raises:
            StateMismatch: damaged bytes, or a newer format.
        """
        schedule = cls.__new__(cls)
        _core.Schedule.__init__(schedule, bytes(data))
        schedule._template = MultiDataLoaderConfig()
        return schedule

    # Sources and position.

    @property
    def names(self) -> list[str]:
        """Names of all sources, by index; removed ones included."""
        return [name for name, _, _ in self.source_table]

    @property
    def lengths(self) -> list[int | None]:
        """Batches per pass of each source, by index; None where unknown."""
        return [length for _, length, _ in self.source_table]

    @property
    def present(self) -> list[bool]:
        """Whether each source is part of the mixture, by index; False once it was removed."""
        return [present for _, _, present in self.source_table]

    @property
    def position(self) -> tuple[int, int]:
        """Where the cursor stands, that is the next draw, as ``(epoch, step)``."""
        return self.epoch, self.step

    @property
    def config(self) -> MultiDataLoaderConfig:
        """The configuration in force at the cursor, edits included, for the sources that are present."""
        mixture, table = self.mixture, self.source_table
        kept = [i for i, (_, _, present) in enumerate(table) if present]
        weights, pattern = mixture.weights, mixture.pattern  # each look at the native mixture copies them
        curve = None
        if mixture.curve is not None:
            points, interpolation, every = mixture.curve
            curve = WeightCurve([(s, [w[i] for i in kept]) for s, w in points], Interpolation[interpolation], every)
        return dataclasses.replace(
            self._template,
            sampling_strategy=SamplingStrategy[mixture.strategy],
            dataloader_weights=[weights[i] for i in kept] if weights else None,
            alternating_pattern=[kept.index(i) for i in pattern] if pattern else None,
            burst_size=mixture.burst,
            dataloader_names=[table[i][0] for i in kept],
            epoch_length_policy=EpochLengthPolicy[mixture.policy],
            steps_per_epoch=mixture.steps_per_epoch,
            cycle_short_loaders=mixture.cycle,
            weighted_order=WeightedOrder[mixture.order],
            continue_across_epochs=mixture.continue_across_epochs,
            weight_curve=curve,
        )

    @property
    def start_counts(self) -> list[tuple[int, int]]:
        """Per source ``(pass, batch)`` that it would give next at step 0 of the cursor's epoch."""
        return self.opening_places()

    def batch_index(self, source: int, step: int | None = None) -> int:
        """Draws of a source since the beginning of the cursor's epoch, before ``step`` (default: the cursor)."""
        return int(self.counts(self.step if step is None else step)[source])

    def epochs(self, num_epochs: int | None = None) -> Iterator[Draw]:
        """Iterates from the cursor over the rest of this epoch and further ones.

        Args:
            num_epochs: epochs to iterate over, this one included; None: without end.
        """
        return self.iterate(num_epochs)

    # Edits: each takes effect at the cursor and becomes part of the state.

    def update_weights(self, weights: Sequence[float] | Mapping[str, float], *, keep_curve: bool = False) -> None:
        """New weights for all sources that are present: in their order, or by name.

        EVEN stays within its bound of the weights' integral over any number of changes, SHUFFLED within a block of it.

        Args:
            weights: relative to one another.
            keep_curve: under a weight curve, bend the curve instead of replacing it: later points are multiplied, per
                source, by its new weight over the one that the curve gives it here. A source that has no weight here
                gets its new weight added to later points. Without it the rest of the curve is dropped, with a warning.

        Raises:
            ConfigError: wrong number or names; negative, infinite, NaN or all-zero weights.
        """
        if isinstance(weights, Mapping):
            present = [name for name, _, here in self.source_table if here]
            match_names(present, weights, "dataloader_weights")
            weights = [weights[name] for name in present]
        self._warn_unless_weighted("update_weights")
        lost = () if keep_curve else self._points_to_come()
        if self.change_weights([number_of(f"weights[{i}]", w) for i, w in enumerate(weights)], keep_curve):
            self._warn_of_lost_points("update_weights", lost)

    def set_weight(self, name: str, weight: float, *, keep_curve: bool = False) -> None:
        """A new weight for one source; the others keep theirs.

        Args:
            name: of the source.
            weight: relative to the weights in force at the cursor.
            keep_curve: as in `update_weights`. Without it a weight curve is replaced by its weights here.

        Raises:
            ConfigError: no such source, or a weight that isn't finite and not negative.
        """
        self._warn_unless_weighted("set_weight")
        lost = () if keep_curve else self._points_to_come()
        if self.change_weight(name, number_of(f"the weight of {name!r}", weight), keep_curve):
            self._warn_of_lost_points("set_weight", lost)

    def add_source(
        self,
        name: str,
        length: int | None = None,
        weight: float | None = None,
        *,
        max_passes: int | None = None,
        per_draw: float = 1.0,
    ) -> None:
        """Adds a source behind all others, or brings back one that was removed.

        Args:
            name: not the name of a source that is present.
            length: batches in one pass, None if unknown.
            weight: WEIGHTED: relative to the weights of the others; needed where these are set.
            max_passes: passes after which it is spent; None: any number.
            per_draw: what a batch counts of what weights are of, for the heirs of sources that are spent.
        """
        number = None if weight is None else number_of(f"the weight of {name!r}", weight)
        self.append_source(name, check_length(length, name), number, max_passes, per_draw)
        if self.mixture.strategy == "ALTERNATING" and self.names.index(name) not in self.mixture.pattern:
            warnings.warn(
                f"dataloader {name!r} was added, but alternating_pattern doesn't name it: it is never drawn",
                UserWarning,
                stacklevel=user_level(),
            )

    def remove_source(self, name: str) -> None:
        """Takes a source out of the mixture; its index stays, and its entries leave the alternating pattern."""
        self.drop_source(name)

    def set_strategy(self, strategy: SamplingStrategy | str, **options: Any) -> None:
        """Another strategy, with options named as in ``MultiDataLoaderConfig``; options left out keep their values.

        Indices in ``alternating_pattern`` count the sources that are present.
        """
        for name in options:
            if name not in _EDITABLE:
                raise ConfigError(f"set_strategy has no option {name!r}{nearest(name, _EDITABLE)}")
        kind = parse_enum(SamplingStrategy, strategy, "sampling_strategy")
        self.set_config(dataclasses.replace(self.config, sampling_strategy=kind, **options))

    def set_config(self, config: MultiDataLoaderConfig) -> None:
        """All options of ``config`` that concern the schedule, from the cursor on (its names must be those present)."""
        table = self.source_table
        kept = [i for i, (_, _, present) in enumerate(table) if present]
        if config.dataloader_names and config.dataloader_names != [table[i][0] for i in kept]:
            raise ConfigError(
                f"dataloader_names can't be changed by an edit: {config.dataloader_names} instead of "
                f"{[table[i][0] for i in kept]}; use add_source and remove_source"
            )
        mixture = to_core(config, len(table), kept)
        self.change_config(mixture)
        for message in mixture.useless_options:
            warnings.warn(message, UserWarning, stacklevel=user_level())

    # Fingerprint and plan.

    def fingerprint(self) -> int:
        """A 64-bit number that is equal for schedules with the same configuration, lengths, seed and log."""
        key = 0
        for field in sorted(self.fingerprints):
            key = _core.fold_in(key, self.fingerprints[field])
        return key

    def plan(self, epochs: int = 1) -> Plan:
        """What will be drawn in ``epochs`` epochs from the cursor's on."""
        from mtf.schedule.plan import make_plan

        return make_plan(self, epochs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as bytes of the state."""
        return Schedule.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        """Strategy, sources and position."""
        if "_template" not in self.__dict__:  # a traceback shows the object whose constructor has raised
            return "Schedule(not constructed)"
        names = ", ".join(n for n, _, present in self.source_table if present)
        return f"Schedule({self.mixture.strategy}, [{names}], seed={self.seed}, epoch={self.epoch}, step={self.step})"

    def _repr_html_(self) -> str:
        drawn, weights = self.counts(self.step), self.mixture.weights
        rows = [
            (name, "unknown" if length is None else length, weights[i] if weights else None, int(drawn[i]))
            for i, (name, length, present) in enumerate(self.source_table)
            if present
        ]
        title = f"Schedule: {self.mixture.strategy}, seed {self.seed}, epoch {self.epoch}, step {self.step}"
        return html_table(title, ("source", "batches per pass", "weight", "drawn in this epoch"), rows)

    def _warn_unless_weighted(self, what: str) -> None:
        if self.mixture.strategy != "WEIGHTED":
            warnings.warn(
                f"{what} has no effect with sampling_strategy={self.mixture.strategy}",
                UserWarning,
                stacklevel=user_level(),
            )

    def _points_to_come(self) -> Sequence[int]:
        """Steps of the training at which the weight curve has points that aren't reached yet."""
        mixture = self.mixture
        if mixture.curve is None or mixture.strategy != "WEIGHTED":
            return ()
        here = self.first_step() + self.step
        return [step for step, _ in mixture.curve[0] if step > here]

    def _warn_of_lost_points(self, what: str, lost: Sequence[int]) -> None:
        if lost:
            listed = ", ".join(str(step) for step in lost[:5]) + (", ..." if len(lost) > 5 else "")
            points = f"point at step {listed}" if len(lost) == 1 else f"{len(lost)} points at steps {listed}"
            warnings.warn(
                f"{what} replaces weight_curve at step {self.first_step() + self.step} of the training: its {points} "
                f"won't take effect; keep_curve=True bends the curve from here on instead",
                UserWarning,
                stacklevel=user_level(),
            )

    def _report_inactive(self) -> None:
        mixture, names = self.mixture, self.names
        if mixture.strategy == "ALTERNATING":
            idle = [name for i, name in enumerate(names) if i not in mixture.pattern]
            if idle:
                _logger.info("never drawn, since alternating_pattern doesn't name them: %s", ", ".join(idle))
        elif mixture.strategy == "WEIGHTED" and mixture.weights and mixture.curve is None:
            idle = [name for name, weight in zip(names, mixture.weights, strict=True) if weight == 0]
            if idle:
                _logger.info("never drawn, since their weight is 0: %s", ", ".join(idle))
