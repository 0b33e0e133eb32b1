"""The name under which the guide imports mtf: re-exports only."""

from mtf import *  # noqa: F403
from mtf import __version__ as __version__
