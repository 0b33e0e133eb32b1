"""Configuration of training on several ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mtf.config.base import Config
from mtf.config.checks import one_of, positive, require_kinds

WrapRule = Callable[[str, Any], bool]

_DTYPES = ("fp32", "bf16", "fp16")


@dataclass
class DDPConfig(Config):
    """How several ranks train one model. Without effect in a process that was started alone.

    Attributes:
        strategy: ``"ddp"``: every rank holds the whole model; ``"fsdp"``: parameters, gradients and optimizer state
            are sharded (``fully_shard``).
        backend: of the process group. None: ``nccl`` where a GPU is used, else ``gloo``.
        timeout_s: seconds after which a rank that doesn't take part in a collective is an error on the others; also
            for the start.
        find_unused_parameters: DDP: look for parameters that a step didn't use. None: with more than one loader (those
            in ``loader_factories`` count), as loaders may use different parts of the model.
        broadcast_buffers: DDP: rank 0's buffers (running means and such) are used by all ranks in each step.
        sync_batch_norm: batch normalisation over the batches of all ranks (``nn.SyncBatchNorm``); needs GPUs.
        bucket_cap_mb: DDP: size of the buckets in which gradients are reduced, in MiB. None: torch's default.
        gradient_as_bucket_view: DDP: gradients are views of the buckets, which saves their memory once.
        fsdp_wrap: FSDP: which modules become a group of their own, besides the whole model: names of module classes,
            or a function ``(name, module) -> bool``. None: the whole model is one group.
        fsdp_param_dtype: FSDP: ``"bf16"`` or ``"fp16"``: parameters are gathered and used in it. None: as they are.
        fsdp_reduce_dtype: FSDP: dtype in which gradients are reduced. None: that of the parameters as used.
        fsdp_reshard_after_forward: FSDP: give gathered parameters back between forward and backward. None: torch's
            default (all groups but the whole model's).
    """

    SPELLINGS: ClassVar[Mapping[str, Mapping[Any, Any]]] = {"strategy": {"fsdp2": "fsdp", "fully_shard": "fsdp"}}

    strategy: Literal["ddp", "fsdp"] = "ddp"
    backend: str | None = None
    timeout_s: float = 600.0
    find_unused_parameters: bool | None = None
    broadcast_buffers: bool = True
    sync_batch_norm: bool = False
    bucket_cap_mb: float | None = None
    gradient_as_bucket_view: bool = False
    fsdp_wrap: list[str] | WrapRule | None = None
    fsdp_param_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    fsdp_reduce_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    fsdp_reshard_after_forward: bool | None = None

    def require_valid(self) -> None:
        """Checks choices and ranges."""
        require_kinds(self, DDPConfig, "ddp.")
        one_of("ddp.strategy", self.strategy, ("ddp", "fsdp"))
        for name in ("fsdp_param_dtype", "fsdp_reduce_dtype"):
            if getattr(self, name) is not None:
                one_of(f"ddp.{name}", getattr(self, name), _DTYPES)
        for name in ("timeout_s", "bucket_cap_mb"):
            positive(f"ddp.{name}", getattr(self, name))
