"""Where a run stands: its counters, its phase, and the work that an interruption left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mtf.errors import ConfigError, UsageError


class Phase(Enum):
    """What ``fit`` is doing."""

    __hash__ = object.__hash__  # Enum's is a function of Python, and every update looks phases up six times

    IDLE = "idle"
    """``fit`` isn't running."""
    BETWEEN_UPDATES = "between updates"
    """The state is that of a whole update: rows, saves and most hooks happen here."""
    ACCUMULATING = "accumulating"
    """Forward and backward passes of an accumulation window; an error takes the whole window back."""
    STEPPING = "stepping"
    """From the first optimizer's step to the commit of the window; an error here leaves half an update."""
    VALIDATING = "validating"
    EPOCH_END = "epoch end"
    """Epoch schedulers, validation, ``on_epoch_end``."""


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = {
    Phase.IDLE: frozenset({Phase.BETWEEN_UPDATES}),
    Phase.BETWEEN_UPDATES: frozenset({Phase.ACCUMULATING, Phase.VALIDATING, Phase.EPOCH_END, Phase.IDLE}),
    Phase.ACCUMULATING: frozenset({Phase.STEPPING, Phase.BETWEEN_UPDATES}),
    Phase.STEPPING: frozenset({Phase.BETWEEN_UPDATES}),
    Phase.VALIDATING: frozenset({Phase.BETWEEN_UPDATES, Phase.EPOCH_END}),
    Phase.EPOCH_END: frozenset({Phase.VALIDATING, Phase.BETWEEN_UPDATES}),
}
"""The phases that may follow each phase. An error leads to ``BETWEEN_UPDATES`` from everywhere inside ``fit``."""


@dataclass(slots=True)
class PendingWork:
    """Work that must still run after an update. If an error interrupts it, the next ``fit`` finishes it first.

    Part of the state, so that a resumed run does what it would have done without the error.

    Attributes:
        passes: (loader, pass) of passes that ended with the update, and that hooks weren't notified of.
        row: whether a row for the logger is due.
        validation: whether a validation is due.
        save: whether the decision to save is due.
    """

    passes: list[tuple[str, int]] = field(default_factory=list)
    row: bool = False
    validation: bool = False
    save: bool = False

    @property
    def is_anything(self) -> bool:
        """Whether something is left to do."""
        return self.row or self.validation or self.save or bool(self.passes)

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"passes": list(self.passes), "row": self.row, "validation": self.validation, "save": self.save}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state."""
        self.passes = [(str(name), int(pass_)) for name, pass_ in state["passes"]]
        self.row, self.validation, self.save = (bool(state[name]) for name in ("row", "validation", "save"))


@dataclass(slots=True)
class RunState:
    """Where a run stands. The first six fields are part of the trainer's state.

    Attributes:
        epoch: the epoch that is under way, or the next one between two epochs.
        global_step: updates since the beginning of training.
        num_batches: batches (training steps) since the beginning of training.
        epoch_is_open: whether the current epoch has begun: its ``on_epoch_start`` was called.
        epoch_end_parts: how many parts of the current epoch's end are done; 0 before its last update.
        pending: work that must still run after the last update.
        logged: the latest value of everything that was logged at intervals or validated; part of the state.
        partial_row: between two calls of ``fit``: means of the interval that continues in the next call.
        phase: what ``fit`` is doing.
        num_committed: ``num_batches`` of the last update; an error in a window goes back to it.
        is_resumed: whether a state was loaded since the last ``fit`` began.
        stop_reason: why this rank wants ``fit`` to return; None: it doesn't.
        is_stopping: whether ``fit`` returns after this update, on all ranks.
        is_final: whether the last update is the one at which ``fit`` ends by ``max_steps``.
        late_error: of a hook, raised while its update had to be completed.
        is_out_of_time: whether ``preemption.max_time`` has passed.
        is_sanity_checking: whether the sanity validation before the first update is under way.
    """

    epoch: int = 0
    global_step: int = 0
    num_batches: int = 0
    epoch_is_open: bool = False
    epoch_end_parts: int = 0
    pending: PendingWork = field(default_factory=PendingWork)
    logged: dict[str, float] = field(default_factory=dict)
    partial_row: dict[str, float] = field(default_factory=dict)
    phase: Phase = Phase.IDLE
    num_committed: int = 0
    is_resumed: bool = False
    stop_reason: str | None = None
    is_stopping: bool = False
    is_final: bool = False
    late_error: BaseException | None = None
    is_out_of_time: bool = False
    is_sanity_checking: bool = False
    _is_broken: bool = False

    @property
    def is_new(self) -> bool:
        """Whether nothing was trained on yet."""
        return self.num_batches == 0 and self.epoch == 0 and not self.epoch_is_open

    def enter(self, phase: Phase) -> None:
        """Goes to another phase.

        Raises:
            UsageError: ``phase`` can't follow the present one.
        """
        if phase not in TRANSITIONS[self.phase]:
            raise UsageError(f"a run that is {self.phase.value} can't become {phase.value}")
        self.phase = phase

    def begin_fit(self) -> None:
        """A call of ``fit`` begins: no wish to stop is left of an earlier one."""
        self.stop_reason, self.late_error = None, None
        self.is_stopping = self.is_final = self.is_out_of_time = False

    def interrupt(self) -> None:
        """After an error: between two updates again; an optimizer that had begun to step leaves half an update."""
        self._is_broken = self.is_mid_update
        if self.phase not in (Phase.IDLE, Phase.BETWEEN_UPDATES):
            self.enter(Phase.BETWEEN_UPDATES)

    @property
    def metrics(self) -> dict[str, float]:
        """The latest value of every metric."""
        return {**self.logged, **self.partial_row}

    @property
    def is_fitting(self) -> bool:
        """Whether ``fit`` is running."""
        return self.phase is not Phase.IDLE

    @property
    def is_in_window(self) -> bool:
        """Whether an accumulation window is under way, so that the state is that of no update."""
        return self.phase in (Phase.ACCUMULATING, Phase.STEPPING)

    @property
    def is_mid_update(self) -> bool:
        """Whether an update broke off between its first and its last change."""
        return self._is_broken or self.phase is Phase.STEPPING

    def mend(self) -> None:
        """A whole state was loaded."""
        self._is_broken = False
        self.partial_row = {}
        self.is_resumed = True

    def require_whole(self) -> None:
        """Raises ``UsageError`` where the weights are between two states."""
        if self.is_mid_update:
            raise UsageError(
                f"update {self.global_step + 1} broke off in the middle (an optimizer or a scheduler raised, or a "
                "second signal came), so the weights belong to no state: use load_checkpoint or load_state"
            )


class RunField:
    """One number of a :class:`RunState` as a component of the state."""

    def __init__(self, run: RunState, name: str) -> None:
        self._run = run
        self._name = name

    def state_dict(self) -> Any:
        """The number.

        Raises:
            UsageError: an update broke off in the middle, so there is no state.
        """
        self._run.require_whole()
        return getattr(self._run, self._name)

    def check(self, state: Any) -> list[str]:
        """Differences in words."""
        kind = type(getattr(self._run, self._name))
        good = type(state) is kind and (kind is not int or state >= 0)
        return [] if good else [f"it is malformed: {self._name} is {state!r}"]

    def load_state_dict(self, state: Any) -> None:
        """Sets the number."""
        setattr(self._run, self._name, state)


class StopCondition:
    """Where a call of ``fit`` ends; both numbers count from the beginning of training.

    Raises:
        ConfigError: a number isn't a count.
    """

    def __init__(self, max_epochs: int | None, max_steps: int | None, epoch: int) -> None:
        for name, value in (("max_epochs", max_epochs), ("max_steps", max_steps)):
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ConfigError(f"{name} must be an int of at least 0, it is {value!r}")
        self._began_s = time.monotonic()
        self._epochs = epoch + 1 if max_epochs is None and max_steps is None else max_epochs
        self._steps = max_steps

    def describe(self) -> dict[str, int | None]:
        """Both numbers, by name."""
        return {"max_epochs": self._epochs, "max_steps": self._steps}

    def time_reached(self, max_time_s: float | None) -> bool:
        """Whether ``fit`` has taken as long as it may."""
        return max_time_s is not None and time.monotonic() - self._began_s >= max_time_s

    def steps_reached(self, run: RunState) -> bool:
        """Whether ``run`` has all its updates."""
        return self._steps is not None and run.global_step >= self._steps

    def steps_left(self, run: RunState) -> int | None:
        """Updates up to ``max_steps``; None without it."""
        return None if self._steps is None else max(0, self._steps - run.global_step)

    def reached(self, run: RunState) -> bool:
        """Whether ``run`` has all its updates or epochs."""
        return self.steps_reached(run) or (self._epochs is not None and run.epoch >= self._epochs)

    def reason(self, run: RunState) -> str:
        """Which of the two ``run`` has reached, in words."""
        if self.steps_reached(run):
            return f"the run has {run.global_step} updates and max_steps is {self._steps}"
        return f"the run has {run.epoch} epochs and max_epochs is {self._epochs}"
