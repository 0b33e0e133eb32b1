"""Lets the fault tests import the helpers that lie beside them, and those of the Python tests."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "helpers")]
