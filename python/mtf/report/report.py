"""The report of a run: its figures and its page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtf.report.run import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(repr=False)
class RunReport(RunData):
    """What is known of a run. ``save`` writes it as one HTML file; a notebook shows the same page."""

    def pictures(self) -> dict[str, Figure]:
        """The figures that this run has data for, by name.

        Raises:
            ConfigError: matplotlib isn't installed.
        """
        from mtf.report.pictures import metrics, schedule

        colors = self.palette
        figures: dict[str, Figure] = {}
        if losses := self.training_losses():
            figures["losses"] = metrics.losses(losses, colors, self.update)
        if validation := self.validation_metrics():
            figures["validation"] = metrics.validation(validation, colors, self.update)
        if rates := self.learning_rates():
            figures["learning_rates"] = metrics.learning_rates(rates, self.update)
        if others := self.other_metrics():
            figures["others"] = metrics.others(others, colors, self.update)
        share, waits = self.metrics.series.get("throughput/data_wait_share"), self.waits()
        if share is not None or waits:
            figures["data_wait"] = metrics.data_wait(share, waits, colors)
        if self.history is not None and self.history.num_steps:
            if self.history.is_weighted:
                figures["weights"] = schedule.weights(self.history)
            figures["shares"] = schedule.shares(self.history)
            figures["passes"] = schedule.passes(self.history)
            figures["schedule"] = schedule.schedule_raster(self.history)
        return figures

    def to_html(self) -> str:
        """One page that needs nothing else: pictures inside, light and dark, printable."""
        from mtf.report.page import page

        return page(self, self.pictures())

    def save(self, path: str | Path) -> None:
        """Writes the page."""
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        """In a frame, so that the page's style stays inside it."""
        import html

        return (
            f'<iframe srcdoc="{html.escape(self.to_html())}" title="{html.escape(self.name)}" '
            'style="width:100%;height:42em;border:0"></iframe>'
        )
