"""Settings of learning rate schedulers as the script gave them, beside those of the run that is resumed."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mtf.call_site import user_level

_NO_SETTINGS = frozenset(
    {
        "last_epoch",
        "_step_count",
        "_last_lr",
        "_is_initial",
        "_get_lr_called_within_step",  # positions
        "base_lrs",
        "lr_lambdas",
        "_schedulers",  # compared elsewhere, or the script's
    }
)


class SchedulerSettings:
    """What the script gave each scheduler, such as the length of a cosine, as a component of the state.

    A scheduler's own state holds its settings too, so loading it brings the old ones back: a resumed run takes those
    and names each that the script has changed, or it takes the script's. Functions, such as those of ``LambdaLR``, are
    always the script's.

    Args:
        schedulers: name in messages -> scheduler, as they were constructed.
        source: ``"saved"``, or ``"script"``: then rates are put where the new settings have them, for schedulers of
            torch that can tell.
    """

    def __init__(self, schedulers: Mapping[str, Any], source: Literal["saved", "script"]) -> None:
        self._schedulers = dict(schedulers)
        self._source = source
        self._script = self._made_with = {name: _settings(s) for name, s in self._schedulers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Settings by scheduler; those of composed schedulers under ``"_schedulers"``."""
        return self._made_with

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """Whether it is a mapping of mappings."""
        good = isinstance(state, Mapping) and all(isinstance(entry, Mapping) for entry in state.values())
        return [] if good else ["scheduler_settings: it is malformed"]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """After the schedulers have loaded theirs."""
        differences: list[str] = []
        for name, scheduler in self._schedulers.items():
            saved = state.get(name)
            if saved is None:
                continue
            own = f"{name} ({type(scheduler).__name__})"
            differences += _differences(own, self._script[name], saved)
            if self._source == "script":
                _take(scheduler, self._script[name], saved, is_active=True)
        if self._source == "script":
            self._made_with = self._script
            return
        self._made_with = {**self._script, **{name: dict(entry) for name, entry in state.items()}}
        if differences:
            warnings.warn(
                f"the state's settings of schedulers are used, not the script's: {'; '.join(differences)}; set "
                "fault_tolerance.optimizer_settings='script' to use the script's",
                stacklevel=user_level(),
            )


def _settings(scheduler: Any) -> dict[str, Any]:
    """The plain settings in a scheduler's state, without those that name a position."""
    state = scheduler.state_dict()
    found = {name: value for name, value in state.items() if name not in _NO_SETTINGS and _is_plain(value)}
    parts = getattr(scheduler, "_schedulers", None)
    if isinstance(parts, (list, tuple)):
        found["_schedulers"] = [_settings(part) for part in parts]
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(inner) for inner in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _differences(where: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    changed = [name for name in here if name in there and name != "_schedulers" and here[name] != there[name]]
    # What follows from a public setting says nothing more.
    shown = [name for name in changed if not name.startswith("_")] or changed
    lines = [
        f"{where}: {name.lstrip('_')}={here[name]!r} in the script, {there[name]!r} in the state" for name in shown
    ]
    pairs = zip(here.get("_schedulers", ()), there.get("_schedulers", ()), strict=False)
    for i, (inner, saved) in enumerate(pairs):
        lines += _differences(f"{where}, part {i}", inner, saved)
    return lines


def _take(scheduler: Any, here: Mapping[str, Any], there: Mapping[str, Any], *, is_active: bool) -> None:
    """Gives ``scheduler`` the script's settings, except what steps have changed since, such as a rate's best value."""
    now, has_changed = _settings(scheduler), False
    for name, value in here.items():
        if name != "_schedulers" and name in there and value != there[name] and now.get(name) == there[name]:
            setattr(scheduler, name, value)
            has_changed = True
    parts: Sequence[Any] = getattr(scheduler, "_schedulers", ())
    milestones = getattr(scheduler, "_milestones", None)  # of SequentialLR: one part after the other sets the rates
    for i, (part, own, saved) in enumerate(
        zip(parts, here.get("_schedulers", ()), there.get("_schedulers", ()), strict=False)
    ):
        turn = is_active and (milestones is None or bisect_right(milestones, scheduler.last_epoch) == i)
        _take(part, own, saved, is_active=turn)
    closed_form = getattr(scheduler, "_get_closed_form_lr", None)
    if has_changed and is_active and closed_form is not None:
        for group, rate in zip(scheduler.optimizer.param_groups, closed_form(), strict=False):
            group["lr"] = rate
