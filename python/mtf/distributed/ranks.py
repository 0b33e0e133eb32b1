"""What the trainer needs from the other ranks, in one place.

The trainer calls nothing of ``torch.distributed`` itself. Everything that a rank shares with the others goes
through this object: the forward pass of a whole training step, sums of metrics, agreed names and decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from mtf.config.distributed import DDPConfig
from mtf.distributed.data_group import DataGroup, make_data_group
from mtf.errors import ConfigError

if TYPE_CHECKING:
    from mtf.distributed.ddp import DDPStrategy
    from mtf.distributed.fsdp import FSDPStrategy
    from mtf.distributed.process_group import ProcessGroup

T = TypeVar("T")

_NOTHING: AbstractContextManager[Any] = nullcontext()


class SingleRank:
    """One process: every reduction is the identity and a training step is called directly."""

    rank = 0
    world_size = 1
    data = DataGroup()
    """The ranks that divide batches among themselves; peers that are equal in it get the same rows."""
    is_sharded = False
    """Whether each rank holds a part of the model only."""

    def wrap(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Prepares ``model`` and ``optimizers``; called once, after the model was moved to its device."""

    def open(self, num_loaders: int) -> None:
        """Called when ``fit`` begins, and when a loader was added."""

    def run(self, step: Callable[..., T], *args: Any) -> T:
        """Calls ``step(*args)`` inside the wrapper's forward, so that whatever the user's step does with the
        bare model counts as one forward pass of the wrapper."""
        return step(*args)

    def window(self, is_last: bool, is_mixed: bool = False) -> AbstractContextManager[Any]:
        """Surrounds forward and backward of one step; gradients are reduced in the last step of a window only.

        Args:
            is_last: whether it is the window's last step.
            is_mixed: whether the window has batches of several loaders.
        """
        return _NOTHING

    def failures(self, where: Callable[[], str]) -> AbstractContextManager[Any]:
        """Surrounds what all ranks do together: a rank that fails inside says why, and the others name it.

        Args:
            where: where this rank is, for the others' message.
        """
        return _NOTHING

    def sum(self, values: Tensor) -> Tensor:
        """Sum of ``values`` (float64, any shape) over all ranks."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; a collective, so all ranks call it at the same update."""
        return flag

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        """Elementwise largest over all ranks; a collective."""
        return list(numbers)

    def union(self, names: Iterable[str]) -> list[str]:
        """The names that occur on any rank, in the same order on all of them."""
        return sorted(set(names))

    def gather(self, value: T) -> list[T]:
        """``value`` of every rank, on every rank; a collective."""
        return [value]

    def broadcast_object(self, value: T) -> T:
        """Rank 0's ``value``; a collective."""
        return value

    def new_flag(self) -> str:
        """A name that every rank gives next, for something that any of them may say at any time."""
        return ""

    def raise_flag(self, flag: str) -> None:
        """Says it to all ranks. No collective."""

    def sees_flag(self, flag: str) -> bool:
        """Whether a rank has said it. No collective; a look into the ranks' store."""
        return False

    def require_equal(self, what: str, fields: Mapping[str, Any]) -> None:
        """Compares plain data on all ranks; a collective.

        Raises:
            ConfigError: on all ranks; names each rank and field that differs.
        """

    def full(self, tree: T) -> T:
        """``tree`` with sharded tensors gathered; a collective where there are any."""
        return tree

    def distribute_like(self, value: Any, like: Any) -> Any:
        """``value`` sharded as ``like`` is, where it is a whole tensor of the same shape; else ``value``."""
        return value

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """Scales the gradients so that their joint 2-norm is at most ``max_norm``; returns the norm before (0-dim)."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def all_finite(self, parameters: Sequence[Tensor]) -> bool:
        """Whether every gradient is finite on every rank. Synchronises the host with the device."""
        return _local_all_finite(parameters)


class MultiRank(SingleRank):
    """Ranks that train one model together.

    Args:
        group: the process group.
        strategy: how the model is spread over it.
        data: the ranks that divide batches; None: all.
    """

    def __init__(
        self, group: ProcessGroup, strategy: DDPStrategy | FSDPStrategy, data: DataGroup | None = None
    ) -> None:
        self.group = group
        self.strategy = strategy
        self.rank = group.rank
        self.world_size = group.world_size
        self.data = DataGroup(group.rank, group.world_size) if data is None else data
        self.is_sharded = strategy.is_sharded
        self._union: tuple[frozenset[str], list[str]] | None = None
        self._num_flags = 0

    def wrap(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        shapes = {name: list(p.shape) for name, p in model.named_parameters()}
        with self.failures(lambda: "while the trainer is made"):
            self.require_equal("the model", {"parameters": shapes, "optimizers": len(optimizers)})
            self.strategy.wrap(model, optimizers)

    def open(self, num_loaders: int) -> None:
        self.strategy.open(num_loaders)

    def run(self, step: Callable[..., T], *args: Any) -> T:
        result: T = self.strategy.run(step, args)
        return result

    def window(self, is_last: bool, is_mixed: bool = False) -> AbstractContextManager[Any]:
        return self.strategy.window(is_last, is_mixed)

    def failures(self, where: Callable[[], str]) -> AbstractContextManager[Any]:
        return _failures(self.group, where)

    def sum(self, values: Tensor) -> Tensor:
        return self.group.reduce(values)

    def any(self, flag: bool) -> bool:
        return bool(self.all_reduce_max([int(flag)])[0])

    def all_reduce_max(self, numbers: Sequence[int]) -> list[int]:
        return self.group.all_reduce_max(numbers)

    def union(self, names: Iterable[str]) -> list[str]:
        from mtf.distributed.consistency import fingerprint

        own = frozenset(names)
        known = self._union is not None and self._union[0] == own
        # Metrics rarely change their names: one small reduction says that nobody's have, and all use the last answer.
        mark = fingerprint(dict.fromkeys(own, 1))
        high, low, unknown = self.all_reduce_max([mark, -mark, int(not known)])
        if high != -low or unknown:
            found = sorted(set().union(*self.gather(sorted(own))))
            if high != -low:
                return found
            self._union = (own, found)
        assert self._union is not None
        return self._union[1]

    def gather(self, value: T) -> list[T]:
        return self.group.gather(value)

    def broadcast_object(self, value: T) -> T:
        result: T = self.group.broadcast_object(value)
        return result

    def new_flag(self) -> str:
        self._num_flags += 1
        return f"flag/{self._num_flags}"

    def raise_flag(self, flag: str) -> None:
        self.group.store.set(flag, "")

    def sees_flag(self, flag: str) -> bool:
        return bool(self.group.store.check([flag]))

    def require_equal(self, what: str, fields: Mapping[str, Any]) -> None:
        from mtf.distributed.consistency import require_equal

        require_equal(what, fields, self.all_reduce_max, self.gather)

    def full(self, tree: T) -> T:
        return _full(tree) if self.is_sharded else tree

    def distribute_like(self, value: Any, like: Any) -> Any:
        dtensor = _dtensor()
        whole = isinstance(value, Tensor) and not isinstance(value, dtensor)
        if not (whole and isinstance(like, dtensor) and value.shape == like.shape):
            return value
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(like, DTensor)
        # Every rank has the whole tensor and keeps its part of it: nothing is sent.
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        return self.strategy.clip_grad_norm(parameters, max_norm)

    def all_finite(self, parameters: Sequence[Tensor]) -> bool:
        return not self.any(not _local_all_finite(parameters))


def local_gpu() -> torch.device | None:
    """The GPU of this rank; None in a process that was started alone, and without GPUs."""
    from mtf.distributed.launch import find_launch

    if find_launch() is None:
        return None
    from mtf.distributed import process_group

    return process_group.local_device()


def make_ranks(config: DDPConfig, device_type: str, process_group: Any = None) -> SingleRank:
    """Joins the other ranks of this launch; ``SingleRank`` for a process that was started alone.

    Args:
        config: strategy, backend, timeout.
        device_type: where the model is going to be.
        process_group: the ranks that divide batches, as ``make_data_group`` takes them; None: all.

    Raises:
        ConfigError: ``process_group`` can't be.
    """
    from mtf.distributed.launch import find_launch

    if find_launch() is None and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        if process_group is not None:
            raise ConfigError("process_group was given, but this process was started alone: there are no other ranks")
        return SingleRank()
    from mtf.distributed.process_group import join

    group = join(config, device_type)
    if group is None:
        return SingleRank()
    data = None if process_group is None else make_data_group(process_group)
    if config.strategy == "fsdp":
        from mtf.distributed.fsdp import FSDPStrategy

        return MultiRank(group, FSDPStrategy(group, config), data)
    from mtf.distributed.ddp import DDPStrategy

    return MultiRank(group, DDPStrategy(group, config), data)


@contextmanager
def _failures(group: ProcessGroup, where: Callable[[], str]) -> Iterator[None]:
    from mtf.distributed import process_group
    from mtf.errors import MtfError, RankFailed

    try:
        yield
    except RankFailed:
        process_group.mark_broken()
        raise
    except Exception as error:
        # A collective fails with RuntimeError on those ranks that are well; everything else is this rank's own fault.
        is_own = isinstance(error, MtfError) or not isinstance(error, RuntimeError) or not _is_collective(error)
        process_group.mark_broken()
        if is_own:
            # guard: report of a rank
            group.monitor.report(error, where())
            raise
        found = group.monitor.find_failure()
        if found is None:
            found = (
                f"every rank answers, but a collective took longer than ddp.timeout_s={group.timeout_s:g}, or its "
                f"connections broke: raise ddp.timeout_s, or look at the network ({str(error).splitlines()[0]})"
            )
        group.monitor.publish(found)
        # torch's own trace says nothing of the cause, and would stand around the line that does.
        raise RankFailed(f"rank {group.rank} stops {where()}, because {found}") from None


_COLLECTIVE_WORDS = (
    "gloo",
    "connection",
    "pair closure",
    "timed out",
    "timeout",
    "nccl",
    "socket",
    "process group",
    "broken pipe",
)


def _is_collective(error: BaseException) -> bool:
    """Whether ``error`` came from a collective. gloo raises plain RuntimeErrors, so its words decide."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(word in text for word in _COLLECTIVE_WORDS)


def _local_all_finite(parameters: Sequence[Tensor]) -> bool:
    grads = [p.grad for p in parameters if p.grad is not None]
    local = [g.to_local() if isinstance(g, _dtensor()) else g for g in grads]
    local = [g.coalesce().values() if g.is_sparse else g for g in local]
    largest = nn.utils.get_total_norm([g for g in local if g.numel()], norm_type=float("inf"))
    return bool(torch.isfinite(largest).item())


def _full(node: Any) -> Any:
    if isinstance(node, _dtensor()):
        return node.detach().full_tensor()
    if type(node) is dict:
        return {key: _full(value) for key, value in node.items()}
    return type(node)(_full(value) for value in node) if type(node) in (list, tuple) else node


def _dtensor() -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor
