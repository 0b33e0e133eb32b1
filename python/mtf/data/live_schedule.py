"""The schedule of a mixture that is being read: what its users change in it takes effect at the next batch."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, TypeAlias

from mtf.call_site import user_level
from mtf.config.convert import describe
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.schedule.schedule import Schedule

Around: TypeAlias = Callable[[str], AbstractContextManager[None]]

_CHANGES = (
    "advance",
    "append_source",
    "change_config",
    "change_weight",
    "change_weights",
    "drop_source",
    "end_pass",
    "extend_pass",
    "load_bytes",
    "load_state_dict",
    "next_epoch",
    "seek",
)

#: Those that go to another position; the others edit what is drawn from the position on.
MOVES = frozenset({"advance", "load_bytes", "load_state_dict", "next_epoch", "seek"})


class LiveSchedule(Schedule):
    """A schedule whose changes are made inside what its mixture puts around them.

    A mixture hands out draws that it has taken ahead. A change of the schedule alone would come too early or too late.
    """

    _around: weakref.WeakMethod[Around] | None = None

    def observe(self, around: Around) -> None:
        """From now on every change happens inside ``around(name of the method)``, a bound method, held weakly."""
        self._around = weakref.WeakMethod(around)


def _observed(change: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(change)
    def method(self: LiveSchedule, *args: Any, **kwargs: Any) -> Any:
        around = None if self._around is None else self._around()
        if around is None:
            return change(self, *args, **kwargs)
        with around(name):
            return change(self, *args, **kwargs)

    return method


for _name in _CHANGES:
    setattr(LiveSchedule, _name, _observed(getattr(Schedule, _name), _name))


def warn_of_forgotten_edits(
    config: MultiDataLoaderConfig, in_force: MultiDataLoaderConfig, said: dict[str, Any]
) -> dict[str, Any]:
    """Warns of what was changed in a mixture's ``config`` and isn't ``in_force``; returns it, as ``said`` next time."""
    now, there = describe(config), describe(in_force)
    changed = {n: v for n, v in now.items() if n not in ("dataloader_names", "seed") and v != there[n]}
    if changed and changed != said:
        warnings.warn(
            f"config.{', '.join(changed)} of this MultiLoader was changed, which has no effect yet: call "
            "rebuild_schedule()",
            stacklevel=user_level(),
        )
    return changed
