"""Shared by all tests: how hypothesis looks for counterexamples."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadlines: machines are shared. In CI the examples are the same in every run; elsewhere each run looks at new ones.
settings.register_profile(
    "mtf",
    deadline=None,
    derandomize="CI" in os.environ,
    database=None if "CI" in os.environ else settings.default.database,
)
settings.load_profile("mtf")
