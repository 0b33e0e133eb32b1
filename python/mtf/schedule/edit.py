"""Another configuration for a schedule that is under way: what differs, and the setup that follows from it.

Setups are those of a schedule's state: a configuration and its sources, as plain data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Setup = dict[str, Any]

_FIELDS = (
    "sampling_strategy",
    "weighted_order",
    "burst_size",
    "epoch_length_policy",
    "steps_per_epoch",
    "cycle_short_loaders",
    "continue_across_epochs",
)


def names_in(setup: Setup) -> list[str]:
    """Names of the sources that are present."""
    return [source["name"] for source in setup["sources"] if source["present"]]


def lengths_in(setup: Setup) -> dict[str, int | None]:
    """Batches per pass of the sources that are present."""
    return {source["name"]: source["length"] for source in setup["sources"] if source["present"]}


def weights_in(setup: Setup) -> dict[str, float] | None:
    """Weights by name; None where all are equal."""
    weights = setup["config"]["dataloader_weights"]
    return _by_name(setup, weights) if weights else None


def merge(declared: Setup, now: Setup, given: Setup) -> Setup:
    """The setup after ``given`` has replaced ``declared``, for a schedule in which ``now`` is in force.

    What ``given`` and ``declared`` agree on stays as it is, so edits that the run made by itself are kept; what they
    differ in becomes as in ``given``. Sources keep their indices, and new ones come last.
    """
    old, new, here = names_in(declared), names_in(given), names_in(now)
    removed = {name for name in old if name not in new}
    added = [name for name in new if name not in old and name not in here]
    after: Setup = {"config": copy.deepcopy(now["config"]), "sources": copy.deepcopy(now["sources"])}
    lengths = lengths_in(given)
    known = {source["name"]: source for source in after["sources"]}
    for name, source in known.items():
        if name in removed:
            source["present"] = False
        elif source["present"] and name in lengths:
            source["length"] = lengths[name]
    for name in added:
        entry = {"name": name, "length": lengths[name], "present": True}
        if name in known:
            known[name].update(entry)
        else:
            after["sources"].append(entry)
    for field in _FIELDS:
        if given["config"][field] != declared["config"][field]:
            after["config"][field] = given["config"][field]
    _merge_pattern(declared, now, given, after)
    _merge_caps(declared, now, given, after)
    _merge_weights(declared, now, given, after, added)
    return after


def _merge_pattern(declared: Setup, now: Setup, given: Setup, after: Setup) -> None:
    def named(setup: Setup) -> list[str]:
        return [setup["sources"][i]["name"] for i in setup["config"]["alternating_pattern"]]

    wanted = named(given) if named(given) != named(declared) else named(now)
    index = {source["name"]: i for i, source in enumerate(after["sources"]) if source["present"]}
    after["config"]["alternating_pattern"] = [index[name] for name in wanted if name in index]


def _merge_caps(declared: Setup, now: Setup, given: Setup, after: Setup) -> None:
    """How often sources may be passed through: as given where that was changed, and of sources that are new."""

    def named(setup: Setup) -> tuple[bool, dict[str, tuple[int | None, str | None, float]]]:
        caps, names = setup.get("caps"), [source["name"] for source in setup["sources"]]
        if caps is None:
            return False, {}
        heirs = [None if heir is None else names[heir] for heir in caps["heir"]]
        rows = zip(names, caps["max_passes"], heirs, caps["per_draw"], strict=True)
        return caps["stop"], {name: (most, heir, per_draw) for name, most, heir, per_draw in rows}

    (stops, wanted), (_, fresh) = named(given if named(given) != named(declared) else now), named(given)
    merged = {**{name: cap for name, cap in fresh.items() if name not in names_in(now)}, **wanted}
    if all(most is None for most, _, _ in merged.values()):
        return
    names = [source["name"] for source in after["sources"]]
    caps = [merged.get(name, (None, None, 1.0)) for name in names]
    after["caps"] = {
        "stop": stops,
        "max_passes": [most for most, _, _ in caps],
        "heir": [names.index(heir) if heir in names_in(after) else None for _, heir, _ in caps],
        "per_draw": [per_draw for _, _, per_draw in caps],
    }


def _merge_weights(declared: Setup, now: Setup, given: Setup, after: Setup, added: Sequence[str]) -> None:
    common = [name for name in names_in(declared) if name in names_in(given)]
    curve = given["config"]["weight_curve"]
    differ = _weights_of(declared, common) != _weights_of(given, common)
    source = given if differ or (added and curve is not None) else now
    after["config"]["weight_curve"] = None
    if source["config"]["weight_curve"] is not None:
        points = [
            {"step": point["step"], "weights": _spread(after, _by_name(source, point["weights"]))}
            for point in source["config"]["weight_curve"]["points"]
        ]
        after["config"]["weight_curve"] = {**source["config"]["weight_curve"], "points": points}
    weights = weights_in(source)
    if weights is None:
        after["config"]["dataloader_weights"] = []
        return
    # Sources that the run has added by itself, and that `given` doesn't name, keep their weights; new ones get theirs.
    others = {**(weights_in(now) or dict.fromkeys(names_in(now), 1.0)), **(weights_in(given) or {})}
    missing = [name for name in names_in(after) if name not in weights]
    after["config"]["dataloader_weights"] = _spread(after, {**weights, **{n: others.get(n, 1.0) for n in missing}})


def _weights_of(setup: Setup, names: Sequence[str]) -> Any:
    """All that says what sources weigh, for a comparison."""

    def chosen(values: Sequence[float]) -> dict[str, float]:
        by_name = _by_name(setup, values)
        return {name: by_name[name] for name in names}

    curve, weights = setup["config"]["weight_curve"], setup["config"]["dataloader_weights"]
    points = None if curve is None else [(point["step"], chosen(point["weights"])) for point in curve["points"]]
    rest = None if curve is None else (curve["interpolation"], curve["every"])
    return (chosen(weights) if weights else None), points, rest


def _by_name(setup: Setup, values: Sequence[float]) -> dict[str, float]:
    return {source["name"]: value for source, value in zip(setup["sources"], values, strict=True) if source["present"]}


def _spread(setup: Setup, by_name: Mapping[str, float]) -> list[float]:
    """Values by index, 0 for sources that aren't present."""
    return [by_name.get(source["name"], 0.0) if source["present"] else 0.0 for source in setup["sources"]]


def set_weights(setup: Setup, weights: Mapping[str, float]) -> None:
    """Other weights for some sources; those of a curve end."""
    has_curve = setup["config"]["weight_curve"] is not None
    before = {} if has_curve else weights_in(setup) or dict.fromkeys(names_in(setup), 1.0)
    setup["config"]["dataloader_weights"] = _spread(setup, {**before, **weights})
    setup["config"]["weight_curve"] = None


def describe_changes(before: Setup, after: Setup, unit: Callable[[str], str] = lambda name: "batches") -> list[str]:
    """What differs between two setups of a schedule, in words."""
    old, new = lengths_in(before), lengths_in(after)
    lines = []
    for name, length in new.items():
        size = "an unknown number of" if length is None else length
        if name not in old:
            lines.append(f"added {name!r}: {size} {unit(name)} a pass")
        elif old[name] != length:
            was = "an unknown number of" if old[name] is None else old[name]
            lines.append(f"length of {name!r}: {was} -> {size} {unit(name)} a pass")
    lines += [f"removed {name!r}" for name in old if name not in new]
    for field in _FIELDS:
        if before["config"][field] != after["config"][field]:
            lines.append(f"{field}: {before['config'][field]} -> {after['config'][field]}")
    if [*_pattern_names(before)] != [*_pattern_names(after)]:
        lines.append(f"alternating_pattern: {_pattern_names(before)} -> {_pattern_names(after)}")
    if before.get("caps") != after.get("caps"):
        lines.append(f"max_passes: {_capped(before)} -> {_capped(after)}")
    was_weights, weights = weights_in(before), weights_in(after)
    if was_weights != weights:
        lines.append(f"dataloader_weights: {_shown(was_weights)} -> {_shown(weights)}")
    if before["config"]["weight_curve"] != after["config"]["weight_curve"]:
        lines.append(f"weight_curve: {_points(before)} -> {_points(after)}")
    return lines


def _pattern_names(setup: Setup) -> list[str]:
    return [setup["sources"][i]["name"] for i in setup["config"]["alternating_pattern"]]


def _capped(setup: Setup) -> str:
    caps = setup.get("caps")
    if caps is None:
        return "none"
    rows = zip(setup["sources"], caps["max_passes"], strict=True)
    return ", ".join(f"{source['name']} {most}" for source, most in rows if most is not None) or "none"


def _shown(weights: Mapping[str, float] | None) -> str:
    return "all equal" if weights is None else ", ".join(f"{name} {weight:g}" for name, weight in weights.items())


def _points(setup: Setup) -> str:
    curve = setup["config"]["weight_curve"]
    if curve is None:
        return "none"
    points = [f"step {point['step']}: {_shown(_by_name(setup, point['weights']))}" for point in curve["points"]]
    return f"{curve['interpolation'].lower()} ({'; '.join(points)})"
