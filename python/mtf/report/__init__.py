"""Pictures that explain a mixture and a run, and a run's report as one HTML page.

    report = mtf.report.read_run("logs/my-run")    # folder of logs, of checkpoints, or one above both
    report.save("report.html")
    mtf.report.schedule_raster(schedule.plan(epochs=3)).savefig("plan.png")

Pictures are matplotlib figures (``pip install 'mtf-torch[plot]'``); names load on first use.
Nothing here imports torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC: dict[str, str] = {
    "RunReport": "mtf.report.report",
    "read_run": "mtf.report.read",
    "Comparison": "mtf.report.compare",
    "compare_runs": "mtf.report.compare",
    "History": "mtf.report.history",
    "plan_history": "mtf.report.history",
    "Palette": "mtf.report.pictures.style",
    "palette_of": "mtf.report.pictures.schedule",
    "schedule_raster": "mtf.report.pictures.schedule",
    "weights": "mtf.report.pictures.schedule",
    "shares": "mtf.report.pictures.schedule",
    "passes": "mtf.report.pictures.schedule",
    "losses": "mtf.report.pictures.metrics",
    "validation": "mtf.report.pictures.metrics",
    "learning_rates": "mtf.report.pictures.metrics",
    "others": "mtf.report.pictures.metrics",
    "data_wait": "mtf.report.pictures.metrics",
    "plan_overview": "mtf.report.pictures.schedule",
    "svg": "mtf.report.pictures.style",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    try:
        module = _PUBLIC[name]
    except KeyError:
        raise AttributeError(f"module 'mtf.report' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value
