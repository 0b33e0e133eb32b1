"""The ranks that divide batches among themselves: all of them, or one dimension of a mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtf.distributed import collectives
from mtf.errors import ConfigError


class DataGroup:
    """The ranks among which global batches are divided, as this rank sees them.

    Args:
        rank: This process among ``world_size``.
        world_size: Number of processes, or of groups of processes that get the same rows.
        group: Their process group; None: the default one, where it has ``world_size`` ranks. Without one, or with
            another number, the ranks can't be asked, and are taken to be like this one.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, group: Any = None) -> None:
        self.rank, self.world_size, self.group = rank, world_size, group

    @property
    def can_ask(self) -> bool:
        """Whether there are other ranks, and a process group to ask them in."""
        if self.world_size == 1 or not collectives.is_joined():
            return False
        return self.group is not None or collectives.size() == self.world_size

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """Elementwise largest of equally many integers over these ranks; a collective."""
        return collectives.all_reduce_max(numbers, self.group)

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every one of these ranks; a collective."""
        return collectives.gather(value, self.group)


def make_data_group(process_group: Any, rank: int = 0, world_size: int = 1) -> DataGroup:
    """The ranks of ``process_group``, or ``rank`` of ``world_size`` where it is None.

    Args:
        process_group: A ``torch.distributed.ProcessGroup``, or a ``DeviceMesh`` of one dimension, as ``mesh["dp"]`` is.
        rank: This process among ``world_size``.
        world_size: Number of processes.

    Raises:
        ConfigError: Something else; a mesh of several dimensions; a group that this rank isn't part of; or ranks given
            beside a group.
    """
    if process_group is None:
        return DataGroup(rank, world_size)
    if isinstance(process_group, DataGroup):
        return process_group
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    if (rank, world_size) != (0, 1):
        raise ConfigError(f"give either process_group or rank and world_size ({rank} of {world_size}), not both")
    if isinstance(process_group, DeviceMesh):
        if process_group.ndim != 1:
            names = process_group.mesh_dim_names or ()
            example = f"mesh[{names[0]!r}]" if names else 'init_device_mesh(..., mesh_dim_names=...)["dp"]'
            raise ConfigError(
                f"process_group must be a mesh of one dimension, that of the ranks that divide batches, but has "
                f"{process_group.ndim} ({', '.join(names) or 'without names'}): give {example}, for instance"
            )
        if process_group.get_coordinate() is None:
            raise _not_a_member()
        process_group = process_group.get_group()
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise _not_a_member()
    if not isinstance(process_group, dist.ProcessGroup):
        raise ConfigError(
            "process_group must be a torch.distributed.ProcessGroup or a DeviceMesh of one dimension, but is a "
            f"{type(process_group).__name__}"
        )
    number = dist.get_rank(process_group)
    if number < 0:
        raise _not_a_member()
    return DataGroup(number, dist.get_world_size(process_group), process_group)


def _not_a_member() -> ConfigError:
    import torch.distributed as dist

    return ConfigError(
        f"process_group doesn't have rank {dist.get_rank()}, on which this is called: give the group that this rank is "
        "part of, or make no loader on ranks that load nothing"
    )
