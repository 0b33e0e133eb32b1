"""Configurations, also under ``schemas``."""

from model_training_framework.config.schemas import *  # noqa: F403
