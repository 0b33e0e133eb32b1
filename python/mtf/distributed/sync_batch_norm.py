"""Batch normalisation over the batches of all ranks."""

from __future__ import annotations

from torch import nn

from mtf.errors import ConfigError


def synchronise_batch_norm(model: nn.Module, device_type: str) -> int:
    """Replaces every batch normalisation in ``model`` by ``nn.SyncBatchNorm`` with the same parameters, in place.

    Args:
        device_type: where the model runs; torch synchronises on accelerators only.

    Returns:
        Number of modules replaced.

    Raises:
        ConfigError: on the CPU, or where there is nothing to replace.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if device_type == "cpu":
        raise ConfigError("ddp.sync_batch_norm needs GPUs, because torch.nn.SyncBatchNorm does: unset it on the CPU")
    if not found:
        raise ConfigError("ddp.sync_batch_norm has no effect, because the model has no batch normalisation: unset it")
    if "" in found:
        raise ConfigError(
            "ddp.sync_batch_norm: the model itself is a batch normalisation, which can't be replaced inside itself"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return len(found)
