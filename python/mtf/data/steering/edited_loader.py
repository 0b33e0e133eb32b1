"""Edits of a mixture that is being read: each takes effect at the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.delivery import Lifetime
from mtf.data.determinism.recent_batches import RecentBatches
from mtf.data.live_schedule import warn_of_forgotten_edits
from mtf.data.loader_view import LoaderView
from mtf.errors import ConfigError, UsageError
from mtf.schedule.schedule import Schedule


class EditedLoader(LoaderView):
    """The part of a MultiLoader that changes the mixture, and keeps ``config`` up to date with it."""

    config: MultiDataLoaderConfig
    _lifetime: Lifetime
    _recent_batches: RecentBatches | None
    _said_edits: dict[str, Any]

    def update_weights(self, weights: Sequence[float] | Mapping[str, float], *, keep_curve: bool = False) -> None:
        """New weights from the next step on, one per source in their order, or by name."""
        self._edit(lambda schedule: schedule.update_weights(weights, keep_curve=keep_curve))

    def set_weight(self, name: str, weight: float, *, keep_curve: bool = False) -> None:
        """A new weight of one source from the next step on."""
        self._edit(lambda schedule: schedule.set_weight(name, weight, keep_curve=keep_curve))

    def set_strategy(self, strategy: Any, **options: Any) -> None:
        """Another way of mixing from the next step on; options are those of the configuration."""
        self._edit(lambda schedule: schedule.set_strategy(strategy, **options))

    def rebuild_schedule(self) -> None:
        """Reads ``config`` again, which the user has changed; takes effect from the next step on.

        Raises:
            ConfigError: It can't be; ``config`` shows what is in force again, or a later edit would bring it back.
        """
        try:
            self._edit(lambda schedule: schedule.set_config(self.config))
        except ConfigError:
            self._show_config()
            raise

    def add_source(self, name: str, loader: Any, weight: float | None = None) -> None:
        """Adds a loader from the next step on. A resume needs it again: by ``loaders`` or ``loader_factories``."""
        if not isinstance(name, str):
            raise ConfigError(f"the name of a loader must be a string, got {name!r}")
        if name in self.names:
            raise ConfigError(f"there is already a source {name!r}; the sources are {self.names}")
        source = self._sources.adapt(loader, name)
        length = self._sources.agreed_lengths({name: source})[name]
        with self._cursor.editing() as schedule:
            self._sources.add(name, source, schedule, length, weight, self._delivery.num_steps)
            if self._cursor.is_committed:
                self._sources.commit_addition(name)
        self._show_config()

    def remove_source(self, name: str) -> None:
        """Takes a source out from the next step on."""
        self._edit(lambda schedule: schedule.remove_source(name))
        self._sources.readers[name].close()
        if self._recent_batches is not None:
            self._recent_batches.forget(name, is_committed=self._cursor.is_committed)

    def _edit(self, change: Callable[[Schedule], Any]) -> None:
        self._lifetime.check()
        with self._cursor.editing() as schedule:
            change(schedule)
        self._show_config()

    @contextmanager
    def _changing_schedule(self, method: str) -> Iterator[None]:
        """Around each change of the schedule."""
        if self._cursor.is_busy:
            yield
            return
        self._lifetime.check()
        if method == "append_source":
            raise UsageError("the schedule alone can't add a source, which needs a loader: call MultiLoader.add_source")
        with self._cursor.changing_by_hand(method):
            yield
        self._show_config()

    def _warn_of_forgotten_edits(self) -> None:
        """Says once what was changed in ``config`` and isn't in force."""
        self._said_edits = warn_of_forgotten_edits(self.config, self._cursor.schedule.config, self._said_edits)

    def _show_config(self) -> None:
        """Lets ``config`` show what the schedule's log made of it."""
        current = self._cursor.schedule.config
        for field in fields(current):
            setattr(self.config, field.name, getattr(current, field.name))
