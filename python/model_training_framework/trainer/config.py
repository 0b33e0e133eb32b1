"""Every configuration and the enums that they use."""

from model_training_framework.config.schemas import *  # noqa: F403
