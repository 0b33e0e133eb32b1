"""Everything of ``mtf.trainer``."""

from mtf.trainer import *  # noqa: F403
