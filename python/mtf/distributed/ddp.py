"""DDP around the user's model: every rank holds the whole model and gradients are averaged."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtf.config.distributed import DDPConfig
from mtf.distributed import collectives
from mtf.distributed.forward_wrapper import run_as_forward
from mtf.distributed.process_group import ProcessGroup
from mtf.distributed.sync_batch_norm import synchronise_batch_norm
from mtf.errors import ConfigError

# Newer releases of torch warn about the older name.
_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS_OPTION = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"


class DDPStrategy:
    """The whole model on every rank.

    Args:
        group: the ranks.
        config: buckets, buffers, unused parameters.
    """

    is_sharded = False

    def __init__(self, group: ProcessGroup, config: DDPConfig) -> None:
        self._config = config
        self._group = group
        self._model: nn.Module | None = None
        self._wrapper: DistributedDataParallel | None = None
        self._finds_unused = False
        self._trained: list[str] = []

    def wrap(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Notes the model; DDP itself comes with ``open``, as it depends on the number of loaders.

        Raises:
            ConfigError: parameters that are sharded already, as by tensor parallelism.
        """
        for name, parameter in model.named_parameters():
            if hasattr(parameter, "device_mesh"):
                raise ConfigError(
                    f"parameter {name!r} is a DTensor, and DDP would average different shards: apply "
                    'fully_shard(model, mesh=mesh["dp"]) to it as well, and set ddp.strategy="fsdp"'
                )
        if self._config.sync_batch_norm:
            synchronise_batch_norm(model, self._group.device.type)
        self._model = model

    def open(self, num_loaders: int) -> None:
        """Makes DDP, which gives every rank the weights of rank 0; again when a second loader has come, or when other
        parameters are trained, as it reduces the gradients only of those that were when it was made."""
        assert self._model is not None
        asked = self._config.find_unused_parameters
        finds = num_loaders > 1 if asked is None else asked
        trained = [name for name, p in self._model.named_parameters() if p.requires_grad]
        if self._wrapper is not None and (self._finds_unused or not finds) and trained == self._trained:
            return
        self._trained = trained
        if not any(p.requires_grad for p in self._model.parameters()):
            self._wrapper = None
            return
        self._finds_unused = finds = finds or self._finds_unused
        if finds and asked is None:
            _use_up_warning()
        options: dict[str, Any] = {_BUFFERS_OPTION: self._config.broadcast_buffers}
        self._wrapper = DistributedDataParallel(
            self._model,
            find_unused_parameters=finds,
            **options,
            bucket_cap_mb=self._config.bucket_cap_mb,
            gradient_as_bucket_view=self._config.gradient_as_bucket_view,
        )

    def run(self, step: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """``step(*args)`` as one forward pass. Without gradients nothing has to be reduced, so ranks may then run
        different numbers of steps."""
        if self._wrapper is None or not torch.is_grad_enabled():
            return step(*args)
        assert self._model is not None
        return run_as_forward(self._wrapper, self._model, lambda *inner: only_loss_has_graph(step(*inner)), args)

    def window(self, is_last: bool, is_mixed: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced in the last step of a window only."""
        if is_last or self._wrapper is None:
            return nullcontext()
        return self._wrapper.no_sync()

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """Gradients are the same on every rank, and so is their norm."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)


_warning_is_used_up = False


class _Call(torch.autograd.Function):
    """Calls a function while torch's C++ warnings become Python's."""

    @staticmethod
    def forward(ctx: Any, call: Callable[[], Any]) -> Tensor:
        with torch.enable_grad():
            call()
        return torch.zeros(())


def _use_up_warning() -> None:
    """Lets DDP say, once and unheard, that no parameter was unused.

    With several loaders mtf can't know whether any will be, so the advice to switch the search off is noise. torch
    prints it past Python's warnings, once in a process: in the forward pass of this wrapper. A collective.
    """
    global _warning_is_used_up
    if _warning_is_used_up:
        return
    _warning_is_used_up = True
    device = collectives.device()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        wrapper = DistributedDataParallel(nn.Linear(1, 1).to(device), find_unused_parameters=True)
        _Call.apply(lambda: wrapper(torch.zeros(1, 1, device=device)))  # type: ignore[no-untyped-call]


def only_loss_has_graph(result: Any) -> Any:
    """What a step returned, with every metric detached.

    DDP waits for the gradient of each parameter that any output depends on; one that only a metric depends on would
    never get any.
    """
    if not isinstance(result, Mapping):
        return result
    return {
        name: value.detach() if isinstance(value, Tensor) and name != "loss" else value
        for name, value in result.items()
    }
