"""What the ranks of one training have to agree on before the first batch."""

from __future__ import annotations

import logging
from typing import Any

from mtf.errors import ConfigError

_log = logging.getLogger("mtf")


def agree_on_lengths(
    names: list[str], lengths: list[int | None], cycling: bool, rank: int, world_size: int
) -> list[int | None]:
    """The lengths that every rank can give: the shortest of each source. Collective when there are several ranks.

    Args:
        names: Names of the sources.
        lengths: Batches in a pass on this rank, None where unknown.
        cycling: Whether sources that run out start again.
        rank: This process among ``world_size``.
        world_size: Number of processes.

    Raises:
        ConfigError: The ranks have different sources, or a source that ends at an unknown place, differently on each
            rank.
    """
    if world_size == 1:
        return lengths
    for name, length in zip(names, lengths, strict=True):
        if length is None and not cycling:
            raise ConfigError(
                f"source {name!r} has no known length, so ranks could end it at different steps: set "
                "cycle_short_loaders=True, or give it a length"
            )
    gathered = _gather((names, lengths), world_size)
    for other, (other_names, _) in enumerate(gathered):
        if other_names != names:
            raise ConfigError(f"rank {rank} has the sources {names}, rank {other} has {other_names}")
    agreed: list[int | None] = []
    for index, name in enumerate(names):
        everywhere = [rank_lengths[index] for _, rank_lengths in gathered]
        known = [length for length in everywhere if length is not None]
        shortest = min(known) if len(known) == len(everywhere) else None
        if shortest is not None and shortest != max(known):
            _log.warning("%s: the ranks have %s batches, all give %d", name, known, shortest)
        agreed.append(shortest)
    return agreed


def check_fingerprints(fingerprint: int, rank: int, world_size: int) -> None:
    """Raises if the ranks would draw from different schedules. Collective when there are several ranks.

    Raises:
        ConfigError: A rank has another configuration, seed or log.
    """
    if world_size == 1:
        return
    for other, theirs in enumerate(_gather(fingerprint, world_size)):
        if theirs != fingerprint:
            raise ConfigError(
                f"rank {rank} and rank {other} have different schedules (fingerprints {fingerprint} and {theirs}): "
                "give all ranks the same configuration, seed, loaders and state"
            )


def _gather(value: Any, world_size: int) -> list[Any]:
    """The value of every rank. Without a process group the ranks can't be asked, and are taken to be like this one."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, value)
    return gathered
