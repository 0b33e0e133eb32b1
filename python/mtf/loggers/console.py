"""Rows as lines on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from mtf.loggers.base import Logger


class ConsoleLogger(Logger):
    """Prints one line per row to standard output, above a progress bar where there is one."""

    def log_metrics(self, row: Mapping[str, float], step: int) -> None:
        """Prints ``step 50  train/loss 0.123  ...``."""
        line = f"step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stdout)
        else:
            print(line, flush=True)
