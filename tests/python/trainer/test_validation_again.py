"""A validation in which a hook raised is made anew, as a whole and with all its hooks, when ``fit`` is called again."""

from __future__ import annotations

from typing import Any

import pytest
from trainer_tools import config, loader, trainer

import mtf

EVENTS = ["on_validation_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_end"]


class Once(mtf.TrainerHooks):
    """Raises in the first call of one event."""

    def __init__(self, event: str | None) -> None:
        self.event = event
        self.seen: list[tuple[int, str]] = []

    def on_validation_start(self, trainer: Any) -> None:
        self.note(EVENTS[0], trainer)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        self.note(EVENTS[1], trainer)

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.note(EVENTS[2], trainer)

    def on_validation_end(self, trainer: Any, metrics: Any) -> None:
        self.note(EVENTS[3], trainer)

    def note(self, event: str, trainer: Any) -> None:
        self.seen.append((trainer.global_step, event))
        if event == self.event:
            self.event = None
            raise ValueError("wanted")


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("frequency", [{"frequency": "EVERY_N_STEPS", "every_n_steps": 2}, {}])
def test_it_is_made_anew_as_a_whole(event: str, frequency: dict[str, Any]) -> None:
    def fit(hook: Once) -> mtf.Trainer:
        one = trainer(config(validation=mtf.ValidationConfig(**frequency)), hooks=[hook])
        if hook.event is not None:
            with pytest.raises(ValueError, match="wanted"):
                one.fit([loader(12, 1)], [loader(8, 2)], max_epochs=2)
        failed_at, number = one.global_step, len(hook.seen)
        one.fit([loader(12, 1)], [loader(8, 2)], max_epochs=2)
        if number:
            again = [name for step, name in hook.seen[number:] if step == failed_at]
            assert again == [EVENTS[0], *EVENTS[1:3] * 2, EVENTS[3]]
        return one

    assert fit(Once(event)).get_state() == fit(Once(None)).get_state()
