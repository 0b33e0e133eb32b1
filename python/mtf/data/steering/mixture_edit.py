"""Another mixture for a saved position: the state that continues with it, in which nothing is lost or repeated."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mtf.data.sources.base import Source
from mtf.data.sources.rest_of_pass import PassCut, RestOfPass, cut_again, cut_from, rest_from
from mtf.data.tracing.past_cuts import PastCut, followed_by
from mtf.errors import ConfigError, MtfError, StateMismatch
from mtf.schedule.edit import Setup, describe_changes, lengths_in, merge, names_in
from mtf.schedule.schedule import Schedule

_log = logging.getLogger("mtf")

State = dict[str, Any]
RunEdit = Callable[[Any], "tuple[Any, list[str]]"]

OnOtherMixture = Literal["refuse", "edit"]

WAY_OUT = "on_other_mixture='edit', of fit and load_state_dict, continues with what is given here as an edit"
"""What messages about another mixture at a resume end with."""

_SEED_DIFFERS = "\n  seed: "  # a line of the core's message
_SEED_STAYS = "no edit can change the seed: give the one that the run began with, or start a new run"

STATE_VERSION = 1
"""Of a MultiLoader's state."""

MAX_RECORDS = 32
"""Edits that a state describes in words, the latest ones."""


@dataclass(frozen=True)
class GivenSource:
    """What an edit has to know of a source.

    Attributes:
        length: Batches in a pass, None where unknown.
        cut: How samples are cut into batches; None where a pass can't be opened at any sample.
        order: How the samples of a pass are ordered, in words.
        edit_run: For a source with a state of the run: see ``Source.edited_run_state``.
    """

    length: int | None
    cut: PassCut | None = None
    order: str | None = None
    edit_run: RunEdit | None = None


@dataclass
class _Edited:
    """What an edit makes of the sources that stay."""

    rests: dict[str, int] = field(default_factory=dict)
    finish: dict[str, RestOfPass | None] = field(default_factory=dict)
    before: dict[str, tuple[PassCut, RestOfPass | None]] = field(default_factory=dict)
    snapshots: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def given_source(source: Source, length: int | None, world_size: int) -> GivenSource:
    """A source as it is here."""
    edit_run = source.edited_run_state if source.has_run_state else None
    return GivenSource(length, source.pass_cut(world_size), source.order(), edit_run)


def check_on_other_mixture(value: Any) -> OnOtherMixture:
    """The value, if it is one.

    Raises:
        ConfigError: It isn't.
    """
    if value not in ("refuse", "edit"):
        raise ConfigError(f"on_other_mixture must be 'refuse' or 'edit', but is {value!r}")
    chosen: OnOtherMixture = value
    return chosen


def resumed_state(
    state: Mapping[str, Any],
    target: Setup,
    seed: int,
    sources: Callable[[Mapping[str, int | None]], dict[str, GivenSource]],
    on_other_mixture: OnOtherMixture,
) -> Mapping[str, Any]:
    """The state that a resume loads.

    Args:
        state: Of a MultiLoader.
        target: The configuration here, as the initial setup of a schedule.
        seed: Of the schedule here.
        sources: Given lengths by name, says what an edit has to know of the sources here.
        on_other_mixture: ``"edit"``: differences become an edit. ``"refuse"``: only lengths are filled in that
            ``mtf edit --add`` left open.

    Raises:
        StateMismatch: The state is of another kind, or something differs that no edit can bring about.
        ConfigError: ``on_other_mixture`` is neither of both.
    """
    is_edit = check_on_other_mixture(on_other_mixture) == "edit"
    if state.get("version") != STATE_VERSION:
        raise StateMismatch(
            f"a MultiLoader's state of version {state.get('version')!r} can't be loaded here, where it is "
            f"{STATE_VERSION}"
        )
    try:
        return _edited_or_measured(state, target, seed, sources, is_edit=is_edit)
    except MtfError:
        raise
    except Exception as error:  # whatever a look into something of another kind raises
        raise StateMismatch(f"the loaders' state is malformed: {type(error).__name__}: {error}") from error


def _edited_or_measured(
    state: Mapping[str, Any],
    target: Setup,
    seed: int,
    sources: Callable[[Mapping[str, int | None]], dict[str, GivenSource]],
    *,
    is_edit: bool,
) -> Mapping[str, Any]:
    if is_edit:
        return edit_state(state, target, seed, sources(lengths_in(target)))
    left_open = [name for name in state.get("unmeasured", ()) if name in names_in(target)]
    if not left_open:
        return state
    setups = state["schedule"]["setups"]
    after = copy.deepcopy(setups[state["schedule"]["tail"]["setup"]])
    for source in after["sources"]:
        if source["name"] in left_open and source["present"]:
            source["length"] = lengths_in(target)[source["name"]]
    new = apply_setup(state, after, setups[0], {})
    new["unmeasured"] = [name for name in state["unmeasured"] if name not in left_open]
    return new


def with_way_out(error: StateMismatch, on_other_mixture: str) -> StateMismatch:
    """The error, with what to do about it where an edit may help."""
    if on_other_mixture == "refuse" and "another schedule" in str(error) and WAY_OUT not in str(error):
        return StateMismatch(f"{error}\n{_SEED_STAYS if _SEED_DIFFERS in str(error) else WAY_OUT}")
    return error


def edit_state(state: Mapping[str, Any], target: Setup, seed: int, sources: Mapping[str, GivenSource]) -> State:
    """The state of a mixture that continues at the position of ``state`` with another configuration.

    What differs between the configuration that the state was saved under and ``target`` becomes one event of the
    schedule's log. Changes nothing.

    Args:
        state: Of a MultiLoader.
        target: The configuration here, as the initial setup of a schedule.
        seed: Of the schedule here.
        sources: The sources here, by name.

    Raises:
        StateMismatch: Something differs that no edit can bring about.
    """
    schedule = state["schedule"]
    if schedule["seed"] != seed:
        raise StateMismatch(
            f"seed: {schedule['seed']} in the state, {seed} here. The order of all data follows from the seed, so it "
            "can't be edited: give the seed that the run began with"
        )
    declared, now = schedule["setups"][0], schedule["setups"][schedule["tail"]["setup"]]
    after, lengths = merge(declared, now, target), lengths_in(now)
    for source in after["sources"]:  # a pass of a blend is as many batches as it was
        name = source["name"]
        if name in lengths and name in sources and sources[name].edit_run is not None and state["sources"].get(name):
            source["length"] = lengths[name]
    return apply_setup(state, after, target, sources)


def apply_setup(state: Mapping[str, Any], after: Setup, declared: Setup, sources: Mapping[str, GivenSource]) -> State:
    """The state that continues with the setup ``after``.

    Args:
        state: Of a MultiLoader.
        after: Has the sources of the state's schedule at their indices, and new ones behind them.
        declared: What a configuration is compared with at the next resume.
        sources: What is known of the sources here, those that an edit changes or adds among them.
    """
    now = state["schedule"]["setups"][state["schedule"]["tail"]["setup"]]
    saved = Schedule.from_bytes(Schedule.pack_state(state["schedule"]))
    places = dict(zip(saved.names, saved.places(saved.step), strict=True))
    index = {name: i for i, name in enumerate(saved.names)}
    staying = [name for name in names_in(now) if name in names_in(after) and name in sources]
    edited = _Edited()
    for name in staying:
        _edit_source(state, name, places[name], lengths_in(now)[name], sources[name], edited)
    before = copy.deepcopy(now)
    rests = [(index[name], left) for name, left in edited.rests.items()]
    try:
        is_changed = saved.edit(after, rests, declared)
    except ConfigError as error:
        raise StateMismatch(f"the mixture that the edit makes can't be: {error}") from None
    lines = describe_changes(before, after) + edited.lines
    if not is_changed and not lines and declared == state["schedule"]["setups"][0]:
        return dict(state)
    return _new_state(state, saved, after, sources, edited, lines)


def _edit_source(
    state: Mapping[str, Any],
    name: str,
    place: tuple[int, int],
    length: int | None,
    given: GivenSource,
    edited: _Edited,
) -> None:
    """Notes what an edit means for one source that stays."""
    snapshot = state["sources"].get(name)
    if given.edit_run is not None and snapshot is not None:
        edited.snapshots[name], lines = given.edit_run(snapshot)
        edited.lines += [f"{name}: {line}" for line in lines]
        return
    before = cut_from(state.get("cuts", {}).get(name))
    if before is None or given.cut is None:
        batches = state["global_batch_sizes"].get(name), given.cut and given.cut.global_batch_size
        if length != given.length or (None not in batches and batches[0] != batches[1]):
            _refuse_length(name, length, given, before)
        return
    if before == given.cut:
        return
    if before.drop_last != given.cut.drop_last and before.num_samples % before.global_batch_size:
        edited.lines.append(f"drop_last of {name!r}: {before.drop_last} -> {given.cut.drop_last}")
    rest_before = rest_from(state.get("rests", {}).get(name))
    rest, finish = cut_again(name, place, before, given.cut, rest_before)
    edited.finish[name], edited.before[name] = finish, (before, rest_before)
    if rest is not None:
        edited.rests[name] = rest
    if before.global_batch_size != given.cut.global_batch_size:
        edited.lines.append(
            f"global batch of {name!r}: {before.global_batch_size} -> {given.cut.global_batch_size} samples"
        )
    if before.num_samples != given.cut.num_samples:
        edited.lines.append(
            f"samples of {name!r}: {before.num_samples} -> {given.cut.num_samples}, from its next pass on"
        )
    if rest is not None:
        edited.lines.append(f"{name!r}: {rest} batches are left of pass {place[0]}, of the samples it began with")


def _refuse_length(name: str, length: int | None, given: GivenSource, before: PassCut | None) -> None:
    if before is None and given.cut is not None:
        reason = "the state doesn't say how its samples were cut, because an earlier version of mtf saved it"
    else:
        reason = "a pass of it can't be opened at any sample, so the one under way can't be finished as it began"
    raise StateMismatch(
        f"source {name!r} has {given.length} batches a pass here and {length} in the state, or others: {reason}; "
        "give it as it was, or remove it and add it under another name"
    )


def _new_state(
    state: Mapping[str, Any],
    schedule: Schedule,
    after: Setup,
    sources: Mapping[str, GivenSource],
    edited: _Edited,
    lines: Sequence[str],
) -> State:
    present = names_in(after)
    known = [source["name"] for source in state["schedule"]["setups"][state["schedule"]["tail"]["setup"]]["sources"]]
    new: State = {**state, "schedule": schedule.state_dict()}
    declared = {source["name"] for source in new["schedule"]["setups"][0]["sources"]}
    parts = ("global_batch_sizes", "orders", "sources", "order_states", "cuts", "rests", "past_cuts", "last_batches")
    for part in parts:
        new[part] = {name: value for name, value in state.get(part, {}).items() if name in present}
    was_there = set(state["sources"])
    for name in present:
        if name not in was_there:
            new["sources"][name] = None
            new["orders"][name] = sources[name].order if name in sources else None
        if name in sources and (name not in was_there or name in edited.finish or name in edited.snapshots):
            given = sources[name]
            new["global_batch_sizes"][name] = None if given.cut is None else given.cut.global_batch_size
            if given.cut is not None:
                new["cuts"][name] = given.cut.to_list()
            new["last_batches"].pop(name, None)  # they have other numbers now
            new["rests"].pop(name, None)
    new["sources"].update(edited.snapshots)
    came_back = [name for name in present if name not in was_there and name in known]
    for name in [*edited.before, *came_back]:  # data that come back may be others than they were
        past = PastCut(schedule.epoch, schedule.step, *edited.before.get(name, ()))
        new["past_cuts"][name] = followed_by(new["past_cuts"].get(name, ()), past)
    new["rests"].update({name: rest.to_list() for name, rest in edited.finish.items() if rest is not None})
    # A source that is named from the beginning is found among the loaders, whichever addition it was.
    additions = {name: n for name, n in state.get("additions", {}).items() if name not in declared}
    optional = {part: new[part] for part in ("rests", "past_cuts", "order_states")}
    for part, value in {"additions": additions, **optional}.items():
        new.pop(part, None)
        if value:
            new[part] = value
    if lines:
        record = {
            "epoch": schedule.epoch,
            "step": schedule.step,
            "batches": schedule.first_step() + schedule.step,
            "changes": list(lines),
        }
        new["edits"] = [*state.get("edits", []), record][-MAX_RECORDS:]
    return new


def log_edit(saved: Mapping[str, Any], loaded: Mapping[str, Any]) -> None:
    """Says in the log what was edited at a resume."""
    before, after = saved.get("edits", []), loaded.get("edits", [])
    if after and after != before:
        edit = after[-1]
        changes = "; ".join(edit["changes"])
        _log.info("another mixture from batch %d of epoch %d on: %s", edit["step"], edit["epoch"], changes)
