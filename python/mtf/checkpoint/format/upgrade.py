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
    # Format 1 had the schedule here as well as in its own file, and the pending work under another name.
    trainer = {"pending_work" if _is_pending_work(value) else name: value for name, value in state["trainer"].items()}
    if isinstance(trainer.get("multi"), Mapping):
        trainer["multi"] = {name: value for name, value in trainer["multi"].items() if name != "schedule"}
    return {**state, "trainer": trainer}


def _is_pending_work(value: Any) -> bool:
    """By what the entry holds: no other entry of a trainer's state has these fields."""
    return isinstance(value, Mapping) and set(value) == {"passes", "row", "validation", "save"}
