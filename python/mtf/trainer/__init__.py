"""The trainer and everything that its users need with it. Names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC: dict[str, str] = {
    "Trainer": "mtf.trainer.trainer",
    "GenericTrainer": "mtf.trainer.trainer",
    "TrainerState": "mtf.trainer.state",
    "TrainerHooks": "mtf.trainer.hooks",
    "NonFiniteLoss": "mtf.trainer.nonfinite",
    "TrainerConfig": "mtf.config.trainer",
    "GenericTrainerConfig": "mtf.config.trainer",
    "PerformanceConfig": "mtf.config.trainer",
    "ValidationConfig": "mtf.config.trainer",
    "ValidationFrequency": "mtf.config.trainer",
    "CheckpointConfig": "mtf.config.trainer",
    "FaultToleranceConfig": "mtf.config.trainer",
    "PreemptionConfig": "mtf.config.trainer",
    "LoggingConfig": "mtf.config.trainer",
    "MultiDataLoaderConfig": "mtf.config.multi",
    "WeightCurve": "mtf.config.multi",
    "SamplingStrategy": "mtf.enums",
    "EpochLengthPolicy": "mtf.enums",
    "WeightedOrder": "mtf.enums",
    "ValAggregation": "mtf.enums",
    "EarlyStopping": "mtf.trainer.builtin_hooks",
    "GradientMonitor": "mtf.trainer.builtin_hooks",
    "LearningRateMonitor": "mtf.trainer.builtin_hooks",
    "BestCheckpoint": "mtf.trainer.builtin_hooks",
    "ThroughputMonitor": "mtf.trainer.builtin_hooks",
    "Curriculum": "mtf.trainer.builtin_hooks",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    try:
        module = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'mtf.trainer' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
