"""Keys and orders of random numbers, for sources of one's own: functions of a position, without a state."""

from __future__ import annotations

from mtf._core import Permutation, fold_in

__all__ = ["Permutation", "fold_in"]
