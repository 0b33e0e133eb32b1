"""Checkpoints: a directory of plain files, written atomically, verified before anything in it is used.

The format is described in ``docs/checkpoint-format.md``.
Names load on first use: inspecting a checkpoint imports no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC: dict[str, str] = {
    "Checkpoint": "mtf.checkpoint.format.layout",
    "CheckpointManager": "mtf.checkpoint.manager",
    "CheckpointWarning": "mtf.checkpoint.storage.local",
    "FsspecStorage": "mtf.checkpoint.storage.object_store",
    "ObjectLock": "mtf.checkpoint.storage.object_lock",
    "SavePolicy": "mtf.checkpoint.policy",
    "Storage": "mtf.checkpoint.storage.base",
    "Transaction": "mtf.checkpoint.storage.transaction",
    "diff_checkpoints": "mtf.checkpoint.diff",
    "inspect_checkpoint": "mtf.checkpoint.inspect",
    "read": "mtf.checkpoint.format.layout",
    "read_manifest": "mtf.checkpoint.format.manifest",
    "register_storage": "mtf.checkpoint.storage.registry",
    "verify": "mtf.checkpoint.format.manifest",
    "write": "mtf.checkpoint.format.layout",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    try:
        module = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'mtf.checkpoint' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value
