"""Shared by all tests: how hypothesis looks for counterexamples, and that Ctrl-C means something."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# No deadlines: machines are shared. In CI the examples are the same in every run; elsewhere each run looks at new ones.
settings.register_profile(
    "mtf",
    deadline=None,
    derandomize="CI" in os.environ,
    database=None if "CI" in os.environ else settings.default.database,
)
settings.load_profile("mtf")

# A shell ignores SIGINT for what it starts in the background, and that is inherited: tests of Ctrl-C need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
