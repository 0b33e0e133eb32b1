"""FSDP2: parameters, gradients and optimizer state are sharded over the ranks (``torch.distributed.fsdp``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mtf.config.distributed import DDPConfig
from mtf.distributed.ddp import only_loss_has_graph
from mtf.distributed.forward_wrapper import run_as_forward
from mtf.distributed.process_group import ProcessGroup
from mtf.distributed.sync_batch_norm import synchronise_batch_norm
from mtf.errors import ConfigError

_DTYPES = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FSDPStrategy:
    """The model sharded over all ranks.

    Args:
        group: the ranks.
        config: wrap rule and dtypes.
    """

    is_sharded = True

    def __init__(self, group: ProcessGroup, config: DDPConfig) -> None:
        self._group = group
        self._config = config
        self._model: nn.Module | None = None
        self._num_groups = 0
        self._mesh: DeviceMesh | None = None

    @property
    def mesh(self) -> DeviceMesh:
        """The ranks as a mesh of one dimension."""
        assert self._mesh is not None
        return self._mesh

    def wrap(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Shards ``model`` in place, from rank 0's weights, and gives ``optimizers`` the sharded parameters by name.

        Raises:
            ConfigError: parameters on the meta device, optimizers with state, or a wrap rule that matches nothing.
        """
        self._model = model
        if isinstance(model, FSDPModule):
            self._mesh = next(p.device_mesh for p in model.parameters() if isinstance(p, DTensor))
            self._num_groups = 2  # the user has sharded it; how isn't known
            return
        names = {p: name for name, p in model.named_parameters()}
        if self._config.sync_batch_norm:
            synchronise_batch_norm(model, self._group.device.type)
        for name, p in model.named_parameters():
            if p.is_meta:
                raise ConfigError(f"parameter {name!r} is on the meta device: initialise the model before the trainer")
        for i, optimizer in enumerate(optimizers):
            if optimizer.state:
                raise ConfigError(
                    f"optimizers[{i}] has state already, which can't be sharded by name: make it anew, and load state "
                    "through the trainer"
                )
        owned = [
            [[names.get(p) for p in group["params"]] for group in optimizer.param_groups] for optimizer in optimizers
        ]
        for tensor in [*model.parameters(), *model.buffers()]:
            # guard: weights of rank 0
            dist.broadcast(tensor.data, src=0)
        device_type = self._group.device.type
        self._mesh = init_device_mesh(device_type, (self._group.world_size,))
        options: dict[str, Any] = {"mesh": self._mesh}
        if self._config.fsdp_reshard_after_forward is not None:
            options["reshard_after_forward"] = self._config.fsdp_reshard_after_forward
        parts = self._parts(model)
        for part in parts:
            fully_shard(part, mp_policy=self._policy(is_root=False), **options)
        fully_shard(model, mp_policy=self._policy(is_root=True), **options)
        self._num_groups = len(parts) + 1
        sharded = dict(model.named_parameters())
        for optimizer, groups in zip(optimizers, owned, strict=True):
            for group, group_names in zip(optimizer.param_groups, groups, strict=True):
                # A parameter that isn't the model's stays as it is.
                group["params"] = [
                    p if name is None else sharded[name] for p, name in zip(group["params"], group_names, strict=True)
                ]

    def _parts(self, model: nn.Module) -> list[nn.Module]:
        """Modules that the wrap rule names, inner ones first."""
        rule = self._config.fsdp_wrap
        if rule is None:
            return []
        if callable(rule):
            found = [module for name, module in model.named_modules() if name and rule(name, module)]
        else:
            found = [module for name, module in model.named_modules() if name and type(module).__name__ in rule]
        if not found:
            kinds = sorted({type(module).__name__ for name, module in model.named_modules() if name})
            raise ConfigError(f"ddp.fsdp_wrap matches no module: {rule!r}; classes in the model: {', '.join(kinds)}")
        return found[::-1]

    def _policy(self, *, is_root: bool) -> MixedPrecisionPolicy:
        param, reduce = _DTYPES[self._config.fsdp_param_dtype], _DTYPES[self._config.fsdp_reduce_dtype]
        # The root's output is the loss: it leaves in full precision.
        output = torch.float32 if is_root and param is not None else None
        return MixedPrecisionPolicy(param_dtype=param, reduce_dtype=reduce, output_dtype=output)

    def open(self, num_loaders: int) -> None:
        """Nothing depends on the number of loaders."""

    def run(self, step: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """``step(*args)`` as one forward pass. Every pass gathers parameters, so all ranks run equally many."""
        assert self._model is not None
        return run_as_forward(self._model, self._model, lambda *inner: only_loss_has_graph(step(*inner)), args)

    def window(self, is_last: bool, is_mixed: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced in the last step of a window only, where that is safe.

        A group whose gradients wait, and which the window's last step doesn't use, would keep them: so with several
        groups a window of different loaders reduces in every step.
        """
        if is_last or (is_mixed and self._num_groups > 1):
            return nullcontext()
        return self._unsynchronised()

    @contextmanager
    def _unsynchronised(self) -> Iterator[None]:
        model = self._model
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def clip_grad_norm(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """The norm over all shards."""
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
