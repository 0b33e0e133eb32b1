"""What follows an update and isn't done yet: an error in the middle of it leaves it to the next ``fit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class PendingWork:
    """Part of the state, so that a run that goes on does what one without the error had done.

    Attributes:
        passes: (loader, pass) of passes that ended with the update, and that hooks weren't told of.
        row: whether a row for the logger is due.
        validation: whether a validation is due.
        save: whether nobody has asked yet if a save is due.
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
        """Puts a state in place."""
        self.passes = [(str(name), int(pass_)) for name, pass_ in state["passes"]]
        self.row, self.validation, self.save = (bool(state[name]) for name in ("row", "validation", "save"))
