"""The loaders given to ``fit``: their names, the mixture made of them, and its place in the state."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from mtf.call_site import user_level
from mtf.config.convert import describe
from mtf.config.loader_names import name_loaders
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.config.trainer import TrainerConfig
from mtf.data.agreed_lengths import check_same_schedule
from mtf.data.batch import Batch
from mtf.data.multi_loader import MultiLoader
from mtf.data.steering.mixture_edit import OnOtherMixture
from mtf.data.workers.supervision import collect_left_behind, end_kept_workers
from mtf.distributed.ranks import SingleRank
from mtf.enums import SamplingStrategy
from mtf.errors import StateMismatch, UsageError

_log = logging.getLogger("mtf.trainer")

RANK_KEYS = ("sources", "last_batches")
"""Parts of the mixture's state that differ between ranks."""


def name_validation(given: Any, config: MultiDataLoaderConfig | None, training_names: Sequence[str]) -> dict[str, Any]:
    """Validation loaders by name: the dict's keys, else ``config``'s names, else the training names if equally many."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if config is not None and config.dataloader_names:
        return name_loaders(listed, config.dataloader_names, "val_loaders")
    if not listed:
        return {}
    return name_loaders(listed, training_names if len(training_names) == len(listed) else (), "val_loaders")


class TrainingData:
    """The mixture of training loaders, which exists from the first ``fit`` on, and the loaders that it is made of.

    Args:
        config: read when a mixture is made, but for the seed.
        factories: name -> function that makes a loader that was added during training again.
        device: where batches go.

    Attributes:
        multi: the mixture; None before the first ``fit``.
        pending_state: state of a mixture that was loaded before there is one.
        given: the loaders of the first ``fit``, or those that replaced them.
        added: the loaders that were added during training.
        on_other_mixture: what a state of another mixture is, see ``Trainer.fit``.
        is_announced: whether the other ranks' wrappers know how many loaders there are.
    """

    def __init__(
        self,
        config: TrainerConfig,
        factories: Mapping[str, Callable[[], Any]],
        device: torch.device,
        ranks: SingleRank,
    ) -> None:
        self._config = config
        self._seed = config.seed
        self.factories = dict(factories)
        self._device = device
        self._ranks = ranks
        self.multi: MultiLoader | None = None
        self.pending_state: Mapping[str, Any] | None = None
        self.given: dict[str, Any] = {}
        self.added: dict[str, Any] = {}
        self._recorded: dict[str, Any] = {}
        self.is_announced = False
        self.on_other_mixture: OnOtherMixture = "refuse"
        self.config_when_made: dict[str, Any] = describe(config.multi)

    @property
    def manager(self) -> MultiLoader:
        """The mixture.

        Raises:
            UsageError: there is none yet.
        """
        if self.multi is None:
            raise UsageError("there are no loaders yet: multi_loader_manager exists from the first fit on")
        return self.multi

    @property
    def setting_names(self) -> list[str]:
        """Names that settings may use: also those of removed loaders, and of loaders that a factory can make."""
        return list(dict.fromkeys((*self.manager.schedule.names, *self.factories)))

    def open(self, given: Any) -> bool:
        """Makes the mixture, or keeps the one there is when ``fit`` is called again. Loads no state.

        Returns:
            Whether there was none.

        Raises:
            StateMismatch: other loaders than the state knows, by name.
        """
        config = self._config.multi
        new = name_loaders(given, config.dataloader_names, "train_loaders", may_have_more=True)
        if self.multi is None:
            collect_left_behind()
            self.multi = self._make(new)
            self.given = new
            self.config_when_made = describe(config)
            return True
        self._refuse_others(new)
        # A name that was removed and added again stands for either.
        if any(
            loader is not self.given.get(name) and loader is not self.added.get(name) for name, loader in new.items()
        ):
            state = self.multi.state_dict()
            self.multi.close()
            self.multi = self._make(new)
            # guard: position with other loaders
            self.multi.load_state_dict(state)
            self.multi.commit()
            self.given = new
        return False

    def record(self) -> dict[str, Any]:
        """How the rows of the loaders are numbered, for a checkpoint's manifest."""
        if self.multi is not None:
            # A mixture that is closed, after fit, doesn't know; its loaders are those of before.
            self._recorded = self.multi.record() or self._recorded
        return self._recorded

    def load_pending(self) -> None:
        """Loads the state that came before the mixture into it, and commits its position."""
        multi = self.manager
        if self.pending_state is not None:
            multi.load_state_dict(self.pending_state, on_other_mixture=self.on_other_mixture)
            self.pending_state = None
        multi.commit()

    def warn_of_idle(self) -> None:
        """Warns of loaders that give no batch."""
        chosen = self._config.multi.dataloader_names
        known = {*(chosen or self.given), *self.manager.names}
        idle = [name for name in self.given if name not in known]
        if idle:
            warnings.warn(
                f"train_loaders has {idle}, which aren't among the dataloader_names {chosen}: they give no batch "
                "unless add_dataloader adds them",
                stacklevel=user_level(),
            )

    def end_workers(self, val_loaders: Iterable[Any]) -> None:
        """Ends the worker processes that ``fit`` has started, those of validation loaders among them."""
        kept = [] if self.multi is None else self.multi.end_workers()
        if kept:
            _log.info(
                "the worker processes of %s stay after fit, which stopped inside a pass, so that another fit continues "
                "without producing its batches again: they end with the trainer, or by "
                "trainer.multi_loader_manager.end_workers(replay=True)",
                ", ".join(map(repr, kept)),
            )
        for loader in val_loaders:
            end_kept_workers(loader)

    def drop(self) -> None:
        """Closes the mixture; the next ``open`` makes another, from its start."""
        if self.multi is not None:
            self.multi.close()
        self.multi = self.pending_state = None
        self.given, self.added = {}, {}

    def add(self, loader: Any, name: str, weight: float | None) -> None:
        """Adds a loader to the mixture."""
        strategy = self.manager.config.sampling_strategy
        if weight is not None and strategy is not SamplingStrategy.WEIGHTED:
            warnings.warn(
                f"add_dataloader({name!r}): weight={weight} has no effect under {strategy.name}, which reads no "
                "weights: set sampling_strategy WEIGHTED, or omit the weight",
                stacklevel=user_level(),
            )
        self.manager.add_source(name, loader, weight=weight)
        self.is_announced = False
        self.added[name] = loader

    def remove(self, name: str, *, is_final: bool) -> None:
        """Removes a loader from the mixture. One that isn't ``is_final`` may be taken back with its window."""
        self.manager.remove_source(name)
        if is_final:
            self.added.pop(name, None)

    def undo_open(self) -> None:
        """Closes a mixture that was just made; what ``load_pending`` hasn't loaded stays pending."""
        assert self.multi is not None
        self.multi.close()
        self.multi = None

    def require_same_schedule(self) -> None:
        """A collective on several ranks.

        Raises:
            ConfigError: on all ranks, where their schedules are no longer the same; names ranks and fields.
        """
        if self._ranks.world_size > 1 and self.multi is not None:
            check_same_schedule(self.multi.schedule, self._ranks.world_size, self.multi.state_dict()["schedule"])

    # A component of the state

    def state_dict(self) -> Mapping[str, Any] | None:
        """The mixture's state, or the one that waits for it."""
        return self.multi.state_dict() if self.multi is not None else self.pending_state

    def check(self, state: Mapping[str, Any] | None) -> list[str]:
        """Differences in words; the mixture itself compares the rest, and refuses a state as a whole."""
        if state is None or isinstance(state["sources"], Mapping):
            if state is not None and self.multi is not None and self.on_other_mixture == "edit":
                self.multi.edited_state(state)  # raises for what can't be edited, before anything is loaded
            return []
        return [f"multi: it is malformed: sources is {state['sources']!r}"]

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Puts the mixture where ``state`` is; without a mixture it waits for one.

        A state from before the first ``fit`` closes the mixture: the next ``fit`` makes one from its loaders' start.
        """
        if self.multi is None:
            self.pending_state = state
        elif state is None:
            # guard: state from before the first fit
            self.drop()
        else:
            self.multi.load_state_dict(state, on_other_mixture=self.on_other_mixture)
            self.multi.commit()
            self.pending_state = None

    def for_rank(self, parts: Sequence[Mapping[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
        """What a rank takes of the parts of another number of ranks.

        Raises:
            StateMismatch: a source's own state can't be divided anew.
        """
        first = parts[0]
        for name, snapshot in first.get("sources", {}).items():
            if snapshot is not None and not snapshot.get("global"):
                raise StateMismatch(
                    f"the state was saved by {len(parts)} ranks, here are {world_size}: loader {name!r} resumes from a "
                    f"state of its own on each rank, which can't be divided anew. Resume on {len(parts)} ranks, or use "
                    "a map-style DataLoader or an ArrayLoader"
                )
        return {**first, "last_batches": {}} if first else {}  # each rank has another part of the batches now

    def _refuse_others(self, new: Mapping[str, Any]) -> None:
        names = self.manager.names
        strange = [name for name in new if name not in self.given and name not in names]
        missing = [name for name in self.given if name not in new]
        if strange or missing:
            said = [
                f"{strange} aren't known to the state" if strange else "",
                f"{missing} are missing" if missing else "",
            ]
            raise StateMismatch(
                f"fit was called again with other loaders than before: {' and '.join(s for s in said if s)}; it knows "
                f"{list(names)}. Use add_dataloader and remove_dataloader to change them"
            )

    def _make(self, new: Mapping[str, Any]) -> MultiLoader:
        """The mixture. Loaders that were added during training are found by name when its state is loaded.

        It gets a configuration of its own, which then shows edits; the trainer's stays as the user wrote it.
        """
        config, performance = self._config.multi, self._config.performance
        configured = config.dataloader_names or list(new)
        added = {name: loader for name, loader in new.items() if name not in configured}
        factories: dict[str, Callable[[], Any]] = {
            **self.factories,
            **{name: partial(_itself, loader) for name, loader in {**self.added, **added}.items()},
        }
        multi = MultiLoader(
            {name: new[name] for name in configured},
            copy.deepcopy(config),
            self._seed,
            None if self._device.type == "cpu" else self._device,
            loader_factories=factories,
            process_group=self._ranks.data,
            seed_each_batch=self._config.fault_tolerance.seed_each_batch,
            fetch_timeout_s=performance.fetch_timeout_s,
            pin_memory=performance.pin_memory,
            device_prefetch=performance.device_prefetch,
            remember_batches=self._config.fault_tolerance.verify_deterministic_resume,
        )
        window = performance.gradient_accumulation_steps
        # Windows that change their length on the way don't end with an epoch by arithmetic.
        multi.accumulation = window if isinstance(window, int) else 1, self._config.loss_weights_per_loader or {}
        multi.warns_of_edits = False  # the loop does, in the trainer's words
        return multi


def _itself(loader: Any) -> Any:
    return loader


def ended_passes(multi: MultiLoader, window: Sequence[Batch]) -> list[tuple[str, int]]:
    """Loaders and passes whose last batch is in ``window``, and those that turned out to have ended before it."""
    lengths = multi.schedule.lengths
    return multi.take_ended_passes() + [(b.name, b.pass_) for b in window if b.batch + 1 == lengths[b.source]]
