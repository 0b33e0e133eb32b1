"""Trees of older formats as the present one has them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgrade_state(state: Any, version: int) -> Any:
    """The state tree of a checkpoint in the form that the newest format gives it.

    Args:
        state: as read; a tree that no trainer saved stays as it is.
        version: the checkpoint's format.
    """
    if version > 1 or not isinstance(state, Mapping) or not isinstance(state.get("trainer"), Mapping):
        return state
    # Format 1 had the schedule here as well as in its own file, and another word for pending work.
    trainer = {"pending_work" if name == "owed" else name: value for name, value in state["trainer"].items()}
    if isinstance(trainer.get("multi"), Mapping):
        trainer["multi"] = {name: value for name, value in trainer["multi"].items() if name != "schedule"}
    return {**state, "trainer": trainer}
