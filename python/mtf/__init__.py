"""mtf: train PyTorch models on several dataloaders at once, deterministically, with exact resume.

Names load on first use, so that schedules, configurations and plans work without importing torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it. The table is the public interface; a test compares it with the docs.
_PUBLIC: dict[str, str] = {
    "MtfError": "mtf.errors",
    "ConfigError": "mtf.errors",
    "UsageError": "mtf.errors",
    "StateMismatch": "mtf.errors",
    "CheckpointError": "mtf.errors",
    "CheckpointIOError": "mtf.errors",
    "SourceError": "mtf.errors",
    "FetchTimeout": "mtf.errors",
    "Closed": "mtf.errors",
    "RankFailed": "mtf.errors",
    "Source": "mtf.data.sources.base",
    "Stream": "mtf.data.sources.base",
    "Snapshot": "mtf.data.sources.base",
    "ResumeMode": "mtf.data.sources.base",
    "fold_in": "mtf.random",
    "Permutation": "mtf.random",
    "MultiLoader": "mtf.data.multi_loader",
    "Batch": "mtf.data.batch",
    "check_source": "mtf.data.check_source",
    "SamplingStrategy": "mtf.enums",
    "WeightedOrder": "mtf.enums",
    "EpochLengthPolicy": "mtf.enums",
    "Interpolation": "mtf.enums",
    "ValAggregation": "mtf.enums",
    "ArrayLoader": "mtf.data.sources.array",
    "TokenCorpus": "mtf.data.tokens.corpus",
    "TokenRows": "mtf.data.tokens.rows",
    "TokenOrigin": "mtf.data.tracing.samples",
    "SamplePlace": "mtf.data.tracing.samples",
    "DrawnSample": "mtf.data.tracing.samples",
    "BatchTrace": "mtf.data.tracing.samples",
    "ThreadLoader": "mtf.data.sources.threaded",
    "Blend": "mtf.data.blend.blend",
    "Windows": "mtf.data.blend.rows",
    "RowSource": "mtf.data.blend.rows",
    "SampleTable": "mtf.data.blend.run",
    "Together": "mtf.data.blend.together",
    "sources_of": "mtf.data.blend.tracing.origins",
    "RowSources": "mtf.data.blend.tracing.origins",
    "SourceMeans": "mtf.data.blend.tracing.origins",
    "batch_rng": "mtf.data.rng.batch_rng",
    "seed_everything": "mtf.data.rng.generators",
    "Config": "mtf.config.base",
    "MultiDataLoaderConfig": "mtf.config.mixture",
    "WeightCurve": "mtf.config.mixture",
    "Schedule": "mtf.schedule.schedule",
    "Draw": "mtf.schedule.schedule",
    "TrainerConfig": "mtf.config.trainer",
    "GenericTrainerConfig": "mtf.config.trainer",
    "PerformanceConfig": "mtf.config.execution",
    "ValidationConfig": "mtf.config.validation",
    "ValidationFrequency": "mtf.enums",
    "CheckpointConfig": "mtf.config.checkpoint",
    "FaultToleranceConfig": "mtf.config.execution",
    "PreemptionConfig": "mtf.config.execution",
    "LoggingConfig": "mtf.config.logging",
    "DDPConfig": "mtf.config.distributed",
    "TrainerState": "mtf.trainer.state.trainer_state",
    "Preempted": "mtf.trainer.preemption",
    "PreemptionGuard": "mtf.trainer.preemption",
    "Trainer": "mtf.trainer.trainer",
    "GenericTrainer": "mtf.trainer.trainer",
    "TrainerHooks": "mtf.trainer.hooks.base",
    "total_updates": "mtf.trainer.optimization.total_updates",
    "size_weights": "mtf.schedule.size_weights",
    "NonFiniteLoss": "mtf.trainer.optimization.nonfinite",
    "EarlyStopping": "mtf.trainer.hooks.builtin",
    "AveragedWeights": "mtf.trainer.hooks.averaging",
    "FreezeSchedule": "mtf.trainer.hooks.freezing",
    "Profiler": "mtf.trainer.hooks.profiler",
    "GradientMonitor": "mtf.trainer.hooks.builtin",
    "LossSpike": "mtf.trainer.steering.spike_guard",
    "SpikeGuard": "mtf.trainer.steering.spike_guard",
    "LearningRateMonitor": "mtf.trainer.hooks.builtin",
    "BestCheckpoint": "mtf.trainer.hooks.builtin",
    "ThroughputMonitor": "mtf.trainer.hooks.builtin",
    "Curriculum": "mtf.trainer.hooks.builtin",
    "OnlineMixing": "mtf.trainer.hooks.online_mixing",
    "MixingRound": "mtf.trainer.hooks.online_mixing",
    "Logger": "mtf.loggers.base",
    "RunInfo": "mtf.loggers.base",
    "register_logger": "mtf.loggers.registry",
}

# Public modules that stand deeper in the package: `from mtf import preemption`.
_MODULES = {"preemption": "mtf.trainer.preemption"}

__all__ = ["__version__", *_PUBLIC]


# A library leaves it to the program where its log goes; what a user has to act on is a warning or an error.
logging.getLogger("mtf").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    try:
        module = _PUBLIC[name]
    except KeyError:
        from mtf.config.checks import nearest
        from mtf.config.foreign_names import FOREIGN_OBJECTS

        way = f"; here it is {FOREIGN_OBJECTS[name]}" if name in FOREIGN_OBJECTS else nearest(name, _PUBLIC)
        raise AttributeError(f"module 'mtf' has no attribute {name!r}{way}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_MODULES})
