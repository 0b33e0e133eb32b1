"""Every configuration and the enums that they use."""

from mtf.config.checkpoint import CheckpointConfig as CheckpointConfig
from mtf.config.distributed import DDPConfig as DDPConfig
from mtf.config.execution import FaultToleranceConfig as FaultToleranceConfig
from mtf.config.execution import PerformanceConfig as PerformanceConfig
from mtf.config.execution import PreemptionConfig as PreemptionConfig
from mtf.config.logging import LoggingConfig as LoggingConfig
from mtf.config.mixture import MultiDataLoaderConfig as MultiDataLoaderConfig
from mtf.config.mixture import WeightCurve as WeightCurve
from mtf.config.trainer import GenericTrainerConfig as GenericTrainerConfig
from mtf.config.trainer import TrainerConfig as TrainerConfig
from mtf.config.validation import ValidationConfig as ValidationConfig
from mtf.enums import EpochLengthPolicy as EpochLengthPolicy
from mtf.enums import Interpolation as Interpolation
from mtf.enums import SamplingStrategy as SamplingStrategy
from mtf.enums import ValAggregation as ValAggregation
from mtf.enums import ValidationFrequency as ValidationFrequency
from mtf.enums import WeightedOrder as WeightedOrder
