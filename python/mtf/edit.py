"""Edits of checkpoints: another mixture, or data that are left out, for a run that resumes without a change of its
script."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtf.checkpoint import sharded
from mtf.checkpoint.format import layout
from mtf.checkpoint.format.layout import Checkpoint
from mtf.checkpoint.storage.registry import open_storage, place_of
from mtf.checkpoint.storage.root import begin
from mtf.config.checks import nearest
from mtf.data.sources.rest_of_pass import cut_from, with_batch_size
from mtf.data.steering.mixture_edit import GivenSource, apply_setup
from mtf.data.steering.update_ranges import UpdateRanges, check_ranges
from mtf.errors import CheckpointError, ConfigError
from mtf.schedule.edit import Setup, names_in, set_weights, weights_in
from mtf.schedule.schedule import Schedule


@dataclass(frozen=True)
class CheckpointEdit:
    """What an edit makes of a checkpoint.

    Attributes:
        source: the checkpoint that was read; it stays as it is.
        path: the new one; None where it was only planned.
        changes: what differs, in words.
        plan: what will be drawn in the rest of the epoch.
    """

    source: str
    path: str | None
    changes: list[str]
    plan: Any

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        plan = None if self.plan is None else self.plan.to_dict()
        return {"source": self.source, "path": self.path, "changes": self.changes, "plan": plan}

    def __str__(self) -> str:
        """The changes, the plan and where it is."""
        lines = [f"edit of {self.source}", *(f"  {change}" for change in self.changes), ""]
        lines += [] if self.plan is None else [str(self.plan), ""]
        lines.append(f"written: {self.path}" if self.path else "nothing was written (--show-plan)")
        return "\n".join(lines)


def edit_checkpoint(
    path: str | Path,
    out: str | Path | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    add: Mapping[str, int | None] | None = None,
    remove: Sequence[str] = (),
    steps: int | None = None,
    batch_size: Mapping[str, int] | None = None,
    skip: Sequence[tuple[int, int] | int] = (),
    only_plan: bool = False,
) -> CheckpointEdit:
    """Writes a new checkpoint that continues with another mixture; the old one is never changed.

    The script needn't change but for what it has to give: the loaders that were added, and batch sizes. A script that
    says the same as the edit resumes with ``on_other_mixture="edit"``.

    Args:
        path: the checkpoint's folder, or its URL.
        out: the new one; None: beside the old one, its name with ``-edited``.
        weights: new weights of some loaders, by name; the others keep theirs.
        add: name -> batches per pass of each new loader; None where the script's loader will say.
        remove: names of loaders.
        steps: ``steps_per_epoch`` from here on, batches; the epoch length policy becomes FIXED_NUM_STEPS.
        batch_size: name -> samples of a global batch, of loaders that open at any sample.
        skip: ranges of updates whose data are left out, as ``fit(skip=...)`` takes them; a number leaves out that many
            from the checkpoint on.
        only_plan: say what would change, and write nothing.

    Raises:
        CheckpointError: the checkpoint is damaged, or of no trainer with loaders; or ``out`` is there.
        ConfigError: an edit that can't be.
    """
    found = layout.read(path, verify_shards=only_plan)  # else they are verified while they are copied
    trainer = _trainer_state(found)
    multi = {**trainer["multi"], "schedule": Schedule.from_bytes(found.schedule).state_dict()}
    new = _edited(multi, weights or {}, add or {}, remove, steps, batch_size or {})
    step = int(found.manifest["step"])
    ranges = check_ranges([(step, step + entry) if isinstance(entry, int) else entry for entry in skip])
    skips = UpdateRanges()
    skips.load_state_dict(trainer.get("skips") or {"ranges": []})
    skips.add(ranges, step)
    changes = new["edits"][-1]["changes"] if new.get("edits") != multi.get("edits") else []
    changes = [*changes, *(f"data of updates {begin} to {end - 1} are left out" for begin, end in ranges)]
    if not changes:
        raise ConfigError("the edit changes nothing: the checkpoint is like that already, or no edit was given")
    plan = _plan(new["schedule"])
    written = None if only_plan else _write(found, trainer, new, skips, out)
    return CheckpointEdit(str(found.path), written, changes, plan)


def _edited(
    multi: Mapping[str, Any],
    weights: Mapping[str, float],
    add: Mapping[str, int | None],
    remove: Sequence[str],
    steps: int | None,
    batch_size: Mapping[str, int],
) -> dict[str, Any]:
    """The state of the mixture that continues otherwise."""
    setups = multi["schedule"]["setups"]
    after, declared = copy.deepcopy(setups[multi["schedule"]["tail"]["setup"]]), copy.deepcopy(setups[0])
    for name in remove:
        _present(after, name, "--remove")["present"] = False
    if not names_in(after) and not add:
        raise ConfigError("--remove: no loader would be left")
    _add(after, add, weights)
    if weights:
        _weigh(after, weights)
    _drop_removed(after)
    if steps is not None:
        after["config"]["epoch_length_policy"], after["config"]["steps_per_epoch"] = "FIXED_NUM_STEPS", steps
    sources = {name: _cut(multi, after, declared, name, size) for name, size in batch_size.items()}
    new = apply_setup(multi, after, declared, sources)
    left_open = [name for name, length in add.items() if length is None]
    if left_open:
        new["unmeasured"] = [*multi.get("unmeasured", ()), *left_open]
    return new


def _trainer_state(found: Checkpoint) -> dict[str, Any]:
    state = found.state.get("trainer") if isinstance(found.state, dict) else None
    if not isinstance(state, dict) or state.get("multi") is None:
        raise CheckpointError(f"{found.path}: holds no mixture: no Trainer saved it, or it had no loaders")
    return state


def _present(setup: Setup, name: str, option: str) -> dict[str, Any]:
    for source in setup["sources"]:
        if source["name"] == name and source["present"]:
            found: dict[str, Any] = source
            return found
    names = names_in(setup)
    raise ConfigError(f"{option}: there is no loader {name!r}{nearest(name, names)} (loaders: {', '.join(names)})")


def _add(setup: Setup, add: Mapping[str, int | None], weights: Mapping[str, float]) -> None:
    known = {source["name"]: source for source in setup["sources"]}
    for name, length in add.items():
        if name in names_in(setup):
            raise ConfigError(f"--add: there is already a loader {name!r}")
        if name not in weights and weights_in(setup) is not None:
            raise ConfigError(f"--add {name}: give its weight, --weights {name}=..., because the others have weights")
        entry = {"name": name, "length": length, "present": True}
        if name in known:
            known[name].update(entry)
            continue
        setup["sources"].append(entry)
        if setup["config"]["dataloader_weights"]:
            setup["config"]["dataloader_weights"].append(0.0)
        if setup["config"]["weight_curve"] is not None:
            for point in setup["config"]["weight_curve"]["points"]:
                point["weights"].append(0.0)


def _weigh(setup: Setup, weights: Mapping[str, float]) -> None:
    for name in weights:
        _present(setup, name, "--weights")
    if setup["config"]["sampling_strategy"] != "WEIGHTED":
        raise ConfigError(
            f"--weights: the mixture is {setup['config']['sampling_strategy']}, which has none: resume with another "
            "strategy by fit(on_other_mixture='edit')"
        )
    missing = [name for name in names_in(setup) if name not in weights]
    if setup["config"]["weight_curve"] is not None and missing:
        raise ConfigError(
            f"--weights replaces the weight curve that is in force, so it must name all loaders; {missing} are missing"
        )
    set_weights(setup, weights)


def _drop_removed(setup: Setup) -> None:
    config, sources = setup["config"], setup["sources"]
    config["alternating_pattern"] = [i for i in config["alternating_pattern"] if sources[i]["present"]]
    if config["dataloader_weights"]:
        pairs = zip(sources, config["dataloader_weights"], strict=True)
        config["dataloader_weights"] = [weight if source["present"] else 0.0 for source, weight in pairs]


def _cut(multi: Mapping[str, Any], after: Setup, declared: Setup, name: str, size: int) -> GivenSource:
    """The loader with batches of another size; ``after`` and ``declared`` get its new length."""
    source = _present(after, name, "--batch-size")
    cut = cut_from(multi.get("cuts", {}).get(name))
    if cut is None:
        raise ConfigError(
            f"--batch-size {name}={size}: this loader can't be opened at any sample, so that the pass under way can't "
            "be cut otherwise"
        )
    if size < 1:
        raise ConfigError(f"--batch-size {name}={size}: must be at least 1")
    new = with_batch_size(cut, size)
    source["length"] = new.num_batches()
    for entry in declared["sources"]:
        if entry["name"] == name:
            entry["length"] = new.num_batches()
    return GivenSource(new.num_batches(), new)


def _plan(schedule: Any) -> Any:
    try:
        return Schedule.from_bytes(Schedule.pack_state(schedule)).plan(1)
    except ConfigError:  # lengths are open, so the epoch's length isn't known
        return None


def _write(
    found: Checkpoint, trainer: Mapping[str, Any], multi: dict[str, Any], skips: UpdateRanges, out: str | Path | None
) -> str:
    place = str(out) if out is not None else f"{str(found.path).rstrip('/')}-edited"
    folder = open_storage(place)
    if folder.list():
        raise CheckpointError(f"{place}: is there already; an edit never replaces a checkpoint: give another --out")
    names = list(multi["sources"])
    others = [_other_rank(part, names, multi["last_batches"]) for part in trainer["other_ranks"]]
    schedule = Schedule.pack_state(multi.pop("schedule"))
    state = {**trainer, "multi": multi, "skips": skips.state_dict(), "other_ranks": others}
    fields = {
        name: value for name, value in found.manifest.items() if name not in ("files", "sha256", "kind", "format")
    }
    payload = layout.CheckpointPayload.take(found.model, {**found.state, "trainer": state}, schedule, copy=False)
    with begin(folder) as transaction:
        if sharded.holds_pieces(found.manifest):
            sharded.copy_pieces(open_storage(found.path), found.manifest, transaction)
        layout.fill(transaction, payload)
        transaction.commit(layout.manifest_fields({**fields, "edited_from": str(found.path)}))
    return str(place_of(folder))


def _other_rank(part: Mapping[str, Any], names: Sequence[str], last_batches: Mapping[str, Any]) -> dict[str, Any]:
    multi = part.get("multi")
    if not multi:
        return dict(part)
    sources = {name: multi["sources"].get(name) for name in names}
    return {**part, "multi": {"sources": sources, "last_batches": {n: b for n, b in multi["last_batches"].items()
                                                                 if n in last_batches}}}  # fmt: skip
