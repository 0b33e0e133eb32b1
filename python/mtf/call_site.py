"""Where a warning points: at the line of the user's that led to it, not at a line inside of mtf."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import FrameType

_INSIDE = (str(Path(__file__).parent), sysconfig.get_paths()["stdlib"])
_THEIRS = ("site-packages", "dist-packages")


def user_level() -> int:
    """The ``stacklevel`` of the nearest line that is neither mtf's nor the standard library's.

    Call it in the arguments of ``warnings.warn``. In a thread of mtf's, where no such line is, the place of the
    warning itself.
    """
    level = 1
    found: FrameType | None = sys._getframe(1)
    while found is not None:
        if not _is_library(found.f_code.co_filename):
            return level
        level, found = level + 1, found.f_back
    return 1


def _is_library(filename: str) -> bool:
    if filename.startswith(_INSIDE[0]):
        return True
    return filename.startswith((_INSIDE[1], "<frozen")) and not any(part in filename for part in _THEIRS)
