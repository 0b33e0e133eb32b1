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
    "RunReport": "mtf.report.run",
    "read_run": "mtf.report.read",
    "Comparison": "mtf.report.compare",
    "compare_runs": "mtf.report.compare",
    "History": "mtf.report.history",
    "plan_history": "mtf.report.history",
    "Palette": "mtf.report.style",
    "palette_of": "mtf.report.schedule_pictures",
    "schedule_raster": "mtf.report.schedule_pictures",
    "weights": "mtf.report.schedule_pictures",
    "shares": "mtf.report.schedule_pictures",
    "passes": "mtf.report.schedule_pictures",
    "losses": "mtf.report.metric_pictures",
    "validation": "mtf.report.metric_pictures",
    "learning_rates": "mtf.report.metric_pictures",
    "others": "mtf.report.metric_pictures",
    "data_wait": "mtf.report.metric_pictures",
    "plan_overview": "mtf.report.schedule_pictures",
    "svg": "mtf.report.style",
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
