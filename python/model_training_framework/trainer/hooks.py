"""Every hook."""

from mtf.trainer.hooks.averaging import AveragedWeights as AveragedWeights
from mtf.trainer.hooks.base import TrainerHooks as TrainerHooks
from mtf.trainer.hooks.builtin import BestCheckpoint as BestCheckpoint
from mtf.trainer.hooks.builtin import Curriculum as Curriculum
from mtf.trainer.hooks.builtin import EarlyStopping as EarlyStopping
from mtf.trainer.hooks.builtin import GradientMonitor as GradientMonitor
from mtf.trainer.hooks.builtin import LearningRateMonitor as LearningRateMonitor
from mtf.trainer.hooks.builtin import ThroughputMonitor as ThroughputMonitor
