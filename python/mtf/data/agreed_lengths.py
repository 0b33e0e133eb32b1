"""What the ranks of one training have to agree on before the first batch."""

from __future__ import annotations

import dataclasses
import warnings
from enum import Enum
from typing import TYPE_CHECKING, Any

from mtf.call_site import user_level
from mtf.distributed.consistency import name_ranks, require_equal
from mtf.distributed.data_group import DataGroup
from mtf.distributed.failure_detection import place
from mtf.errors import ConfigError

if TYPE_CHECKING:
    from mtf.schedule.schedule import Schedule

_UNKNOWN = 2**62  # in place of a length


def agree_on_lengths(
    names: list[str],
    lengths: list[int | None],
    cycling: bool,
    rank: int,
    world_size: int,
    sizes: list[int | None] | None = None,
    group: DataGroup | None = None,
) -> list[int | None]:
    """The lengths that every rank can give: the shortest of each source. Collective when there are several ranks.

    One reduction of four integers per source, whatever the number of ranks. Without a process group the ranks can't be
    asked, and are taken to be like this one.

    Args:
        names: Names of the sources.
        lengths: Batches in a pass on this rank, None where unknown.
        cycling: Whether sources that run out start again.
        rank: This process among ``world_size``.
        world_size: Number of processes.
        sizes: Samples of what mtf divides over the ranks, None where each rank's data is its own.
        group: These ranks; None: those of the default process group.

    Raises:
        ConfigError: The ranks have different sources; a source that ends at an unknown place, differently on each
            rank; or other data for a source that mtf divides, which is named with the sizes, ranks and machines.
    """
    if world_size == 1:
        return lengths
    for name, length in zip(names, lengths, strict=True):
        if length is None and not cycling:
            raise ConfigError(
                f"source {name!r} has no known length, so {world_size} ranks could end it at different steps: set "
                "cycle_short_loaders=True, or give it a length"
            )
    group = DataGroup(rank, world_size) if group is None else group
    if not group.can_ask:
        return lengths
    require_equal("the sources", {"names": names}, group.all_reduce_max, group.gather)
    sizes = sizes or [None] * len(names)
    known = [_UNKNOWN if length is None else length for length in (*lengths, *sizes)]
    reduced = group.all_reduce_max([*known, *(-length for length in known)])
    if reduced[len(names) : len(known)] != [-size for size in reduced[len(known) + len(names) :]]:
        _refuse_other_data(names, sizes, group)
    agreed: list[int | None] = []
    bounds = zip(names, reduced[: len(names)], reduced[len(known) : len(known) + len(names)], strict=True)
    for name, longest, shortest in bounds:
        if longest == _UNKNOWN:
            agreed.append(None)
            continue
        if longest != -shortest and rank == 0:
            warnings.warn(
                f"{name}: the ranks have between {-shortest} and {longest} batches in a pass; all give {-shortest}. "
                "Divide the data evenly, or let mtf divide it (map-style DataLoader, ArrayLoader)",
                stacklevel=user_level(),
            )
        agreed.append(-shortest)
    return agreed


def _refuse_other_data(names: list[str], sizes: list[int | None], group: DataGroup) -> None:
    everywhere = group.gather((sizes, place()["host"]))
    hosts = [host for _, host in everywhere]
    lines = []
    for i, name in enumerate(names):
        per_rank = [there[i] for there, _ in everywhere]
        counts = sorted({-1 if size is None else size for size in per_rank}, reverse=True)
        if len(counts) > 1:
            ranks = {count: [rank for rank, size in enumerate(per_rank) if size == count] for count in counts}
            shown = [f"{count} samples on {name_ranks(ranks[count], hosts)}" for count in counts if count >= 0]
            lines.append(f"{name!r} has {', '.join(shown)}")
    raise ConfigError(
        "mtf divides each global batch over the ranks, so every rank must hold the same whole data, but source "
        + "; source ".join(lines)
    )


def warn_of_same_data(name: str, digest: str, group: DataGroup) -> None:
    """Warns where a source that each rank reads as it is gives the same batch on several. A collective.

    Args:
        name: Of the source.
        digest: Of its first batch on this rank; empty where none can be taken.
        group: The ranks that divide batches among themselves.
    """
    if not group.can_ask:
        return
    everywhere = group.gather(digest)
    ranks = [rank for rank, other in enumerate(everywhere) if other and everywhere.count(other) > 1]
    if ranks and group.rank == 0:
        warnings.warn(
            f"{name}: ranks {', '.join(map(str, ranks))} got the same first batch, so they train on the same samples: "
            "the loader doesn't look at its rank. Let it give each rank a part by torch.distributed.get_rank() "
            "(datasets.distributed.split_dataset_by_node, webdataset's nodesplitter), or use a map-style dataset, "
            "which mtf divides",
            stacklevel=user_level(),
        )


def check_same_schedule(schedule: Schedule, world_size: int, state: Any = None, group: DataGroup | None = None) -> None:
    """Raises if the ranks would draw from different schedules. Collective when there are several ranks.

    Args:
        schedule: This rank's.
        world_size: Number of processes.
        state: Of the schedule, where the position and the edits so far are compared as well.
        group: These ranks; None: those of the default process group.

    Raises:
        ConfigError: On every rank; names the ranks and fields that differ.
    """
    group = DataGroup(0, world_size) if group is None else group
    if group.can_ask:
        # guard: same schedule on all ranks
        require_equal("the schedule", describe(schedule, state), group.all_reduce_max, group.gather)


def describe(schedule: Schedule, state: Any = None) -> dict[str, Any]:
    """What decides a schedule, as plain data by field."""
    config = _plain(schedule.config)
    sources = dict(zip(schedule.names, schedule.lengths, strict=True))
    fields = {"config": config, "seed": str(schedule.seed), "lengths": sources}
    return fields if state is None else {**fields, "position": [schedule.epoch, schedule.step], "log": _plain(state)}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
