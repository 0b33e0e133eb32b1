"""Another blend at a resume: the state of a run that continues with it, in which no row is lost or repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtf.data.blend.rows import may_grow
from mtf.data.blend.run import BlendRun
from mtf.data.blend.sizes import BatchSizes
from mtf.data.sources.rest_of_pass import PassCut, cut_again, rest_from
from mtf.errors import ConfigError, StateMismatch
from mtf.schedule.edit import Setup, describe_changes, lengths_in, merge, names_in
from mtf.schedule.schedule import Schedule

Stages = Sequence[Sequence[int]]


def edited_run(run: BlendRun, saved: Mapping[str, Any], number: int) -> tuple[dict[str, Any], list[str]]:
    """The state of a run that continues at batch ``number`` of ``saved`` with the blend of ``run``. Changes nothing.

    Args:
        run: The blend here, at its beginning.
        saved: What ``BlendRun.state_dict`` gave.
        number: The next batch, counted over the whole run.

    Returns:
        The state, and what was changed, in words.

    Raises:
        StateMismatch: Something differs that can't be edited.
    """
    if saved["fingerprints"] == run.fingerprints:
        return dict(saved), []
    if "initial" not in saved:
        raise StateMismatch(
            "the state of the blend doesn't say what it was mixed of, because an earlier version of mtf saved it: give "
            "the blend that the run began with, and edit it by update_weights, add_source and remove_source"
        )
    start = saved["schedule"] or saved["initial"]
    if start["seed"] != run.schedule.seed:
        raise StateMismatch(
            "the seed of the blend differs from that of the state. The order of all rows follows from it, so it can't "
            "be edited: give the seed, and the name in the mixture, that the run began with"
        )
    before, given = BatchSizes([tuple(s) for s in saved["stages"]]), run.sizes
    declared_stages = [tuple(stage) for stage in saved["declared_stages"]]
    after = before if declared_stages == given.stages else _sizes_from(before, given, number)
    inner = Schedule.from_bytes(Schedule.pack_state(start))
    here = before.start(number)
    inner.seek(0, here)
    now = start["setups"][start["tail"]["setup"]]
    declared, target = saved["initial"]["setups"][0], run.initial["setups"][0]
    setup = merge(declared, now, target)
    is_kept = setup["config"]["weight_curve"] == now["config"]["weight_curve"]
    if run.curve_counts_batches:
        _move_curve(setup, before if is_kept else given, after)
    places = dict(zip(inner.names, inner.places(here), strict=True))
    lines = describe_changes(now, setup, lambda name: "rows")
    rests, lefts = _grow(run, saved, now, setup, places)
    index = {name: i for i, name in enumerate(inner.names)}
    try:
        inner.edit(setup, [(index[name], left) for name, left in lefts.items()], target)
    except ConfigError as error:
        raise StateMismatch(f"the blend that the edit makes can't be: {error}") from None
    if after.stages != before.stages:
        lines.append(f"global_batch_size: {before.size(number)} -> {after.size(number)} samples, stages {after.stages}")
    lines += [f"{left} rows of {name!r} are left of the pass under way" for name, left in lefts.items() if left]
    new = {
        "version": saved["version"],
        "fingerprints": run.fingerprints,
        "schedule": inner.state_dict(),
        "initial": run.initial,
        "stages": [list(stage) for stage in after.stages],
        "declared_stages": [list(stage) for stage in given.stages],
        "batches_per_pass": saved["batches_per_pass"],
    }
    return {**new, "rests": rests} if rests else new, lines


def _sizes_from(before: BatchSizes, given: BatchSizes, number: int) -> BatchSizes:
    """The sizes there were up to batch ``number``, and from it on those given."""
    stages = [stage for stage in before.stages if stage[0] < number]
    later = [(number, given.size(number)), *(stage for stage in given.stages if stage[0] > number)]
    for stage in later:
        if not stages or stages[-1][1] != stage[1]:
            stages.append(stage)
    return BatchSizes(stages)


def _move_curve(setup: Setup, counted: BatchSizes, sizes: BatchSizes) -> None:
    """Points of a weight curve are counted in batches, and kept in samples: those of batches stay where they were."""
    curve = setup["config"]["weight_curve"]
    if curve is None or counted.stages == sizes.stages:
        return
    for point in curve["points"]:
        batch = counted.batch_of(point["step"])
        if counted.start(batch) == point["step"]:
            point["step"] = sizes.start(batch)


def _grow(
    run: BlendRun, saved: Mapping[str, Any], now: Setup, setup: Setup, places: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Passes under way of sources that have grown: what has to be kept of them, and how many rows they have left."""
    known = {name: rest_from(entry) for name, entry in saved.get("rests", {}).items()}
    rests, lefts = {name: rest.to_list() for name, rest in known.items() if rest and name in names_in(setup)}, {}
    old, new = lengths_in(now), lengths_in(setup)
    for name in names_in(setup):
        if name not in old or old[name] == new[name] or name not in run.rows:
            continue
        cuts = [PassCut(int(length or 0), 1, may_grow=may_grow(run.rows[name])) for length in (old[name], new[name])]
        left, rest = cut_again(name, places[name], cuts[0], cuts[1], known.get(name))
        rests.pop(name, None)
        if left is not None:
            lefts[name] = left
        if rest is not None:
            rests[name] = rest.to_list()
    return rests, lefts
