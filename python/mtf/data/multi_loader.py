"""A mixture of loaders as one iterable: the schedule says which source comes next, the sources give their batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mtf.config.mixture import MultiDataLoaderConfig, require_mixture
from mtf.data.agreed_lengths import check_same_schedule
from mtf.data.batch import Batch
from mtf.data.cursor import Cursor
from mtf.data.delivery import Delivery, EpochIterator, Lifetime
from mtf.data.determinism.recent_batches import RecentBatches
from mtf.data.live_schedule import LiveSchedule, warn_of_forgotten_edits
from mtf.data.mixture_plan import with_row_shares, with_windows
from mtf.data.source_set import SourceSet, name_loaders
from mtf.data.steering.mixture_edit import STATE_VERSION, OnOtherMixture, log_edit, resumed_state, with_way_out
from mtf.data.steering.skip import skip_batches
from mtf.data.tracing.loader import TracedLoader
from mtf.data.transfer import mover_to
from mtf.data.workers.fetch_timeout import FetchGuard
from mtf.distributed.data_group import make_data_group
from mtf.errors import ConfigError, MtfError, StateMismatch, UsageError
from mtf.formatting import html_table
from mtf.schedule.schedule import Schedule

if TYPE_CHECKING:
    import torch

    from mtf.schedule.plan import Plan


class MultiLoader(TracedLoader):
    """Batches of several loaders in the order of a schedule, with an exact state between any two of them.

    Iterating gives the rest of the current epoch; then the position is the start of the next one. All iterators of one
    MultiLoader share its position. To be used from one thread, the main thread where loaders have worker processes.

    Args:
        loaders: A dict or list of loaders (anything that ``as_source`` accepts), or one.
        config: How they are mixed.
        seed: Of the schedule, the shuffling and the batches; ``config.seed`` wins.
        device: Batches are moved there; None leaves them where the loader made them.
        loader_factories: Name -> function that makes the loader, for sources that a loaded state has and ``loaders``
            hasn't.
        rank: This process among ``world_size`` that train together.
        world_size: Number of processes.
        process_group: The ranks that divide the batches, instead of ``rank`` and ``world_size``: a
            ``torch.distributed.ProcessGroup``, or a ``DeviceMesh`` of one dimension, as ``mesh["dp"]``. Ranks that are
            equal in it, the peers in a tensor or context dimension, get the same rows; ranks that load nothing make no
            MultiLoader, and nothing waits for them.
        seed_each_batch: Produce every batch under generators seeded from its position.
        fetch_timeout_s: Seconds after which a fetch is given up, None for no limit.
        pin_memory: Copy to the device from pinned memory; None: where the device is CUDA.
        device_prefetch: On CUDA, copy on a stream of its own, which overlaps with the step before.
        remember_batches: Keep hashes of each source's last batches in the state, for ``verify_recent_batches``.

    Attributes:
        accumulation: Batches of an accumulation window, and the weights of losses, where a trainer has them; ``plan``
            reads it.
        config: A copy of what was given, kept up to date with edits and loaded states. ``rebuild_schedule`` reads what
            was changed in it.
        warns_of_edits: Whether an epoch's start warns of changes in ``config`` that aren't in force.

    Raises:
        ConfigError: A name, loader or option is wrong; no data has been read.
    """

    def __init__(
        self,
        loaders: Mapping[str, Any] | Sequence[Any] | Any,
        config: MultiDataLoaderConfig | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        *,
        loader_factories: Mapping[str, Callable[[], Any]] | None = None,
        rank: int = 0,
        world_size: int = 1,
        process_group: Any = None,
        seed_each_batch: bool = True,
        fetch_timeout_s: float | None = None,
        pin_memory: bool | None = None,
        device_prefetch: bool = True,
        remember_batches: bool = False,
    ) -> None:
        self.config = MultiDataLoaderConfig() if config is None else copy.deepcopy(config)
        require_mixture(self.config)
        self._seed = seed if self.config.seed is None else self.config.seed
        self._guard = None if fetch_timeout_s is None else FetchGuard(fetch_timeout_s)
        self._lifetime = Lifetime()
        self.accumulation: tuple[int, Mapping[str, float]] = (1, {})
        ranks = make_data_group(process_group, rank, world_size)
        self._sources = SourceSet(
            name_loaders(loaders, self.config.dataloader_names),
            self.config,
            self._seed,
            factories=loader_factories or {},
            ranks=ranks,
            seed_each_batch=seed_each_batch,
            fetch_timeout_s=fetch_timeout_s,
        )
        lengths = self._sources.agreed_lengths(self._sources.initial)
        schedule = LiveSchedule(self.config, lengths, seed=self._seed)
        self._cursor = Cursor(schedule)
        schedule.observe(self._changing_schedule)
        self.warns_of_edits = True
        self._said_edits: dict[str, Any] = {}
        check_same_schedule(self._cursor.schedule, ranks.world_size, group=ranks)
        self._declared = self._cursor.schedule.state_dict()["setups"][0], self._cursor.schedule.seed
        self._edits: list[Any] = []  # in words, of resumes with another mixture
        self._recent_batches = RecentBatches() if remember_batches else None
        self._delivery = Delivery(
            self._cursor,
            self._sources,
            guard=self._guard,
            mover=mover_to(device, pin_memory, device_prefetch),
            recent_batches=self._recent_batches,
            world_size=ranks.world_size,
            lifetime=self._lifetime,
        )

    def __iter__(self) -> Iterator[Batch]:
        self._lifetime.check()
        self._cursor.open_next_epoch()
        if self.warns_of_edits:
            self._warn_of_forgotten_edits()
        return EpochIterator(self._delivery, self._cursor)

    def __len__(self) -> int:
        """Steps of the current epoch.

        Raises:
            TypeError: It isn't known before the end.
        """
        num_steps: int | None = self._cursor.schedule.num_steps(self.epoch)
        if num_steps is None:
            raise TypeError("the epoch's length isn't known: a source has no len(), and the epoch ends where it does")
        return num_steps

    @property
    def why_over(self) -> str | None:
        """Why no batch will come any more, in words: the next one is wanted from a source whose data are spent, as a
        ``Blend`` with ``max_passes`` can be. None: there is one. An iteration ends there as at the end of an epoch."""
        return self.why_over_within(1)

    def why_over_within(self, num_steps: int) -> str | None:
        """As ``why_over``, for any of the next ``num_steps`` batches of the epoch."""
        if not any(reader.source.has_end for reader in self._sources.readers.values()):
            return None
        schedule = self._cursor.schedule
        is_done = bool(schedule.epoch_done)
        first, epoch = 0 if is_done else schedule.step, schedule.epoch + is_done
        for step in range(first, first + num_steps):
            draw = schedule.at(step, epoch)
            name = schedule.names[draw.source]
            source = self._sources.readers[name].source
            if source.has_end and source.is_over(draw.pass_, draw.batch):
                return f"source {name!r}: {source.why_over(draw.pass_, draw.batch)}"
        return None

    def take_ended_passes(self) -> list[tuple[str, int]]:
        """(name, pass) of passes whose end no length had told before, each once: found since the last call."""
        found, self._delivery.ended_passes = self._delivery.ended_passes, []
        return found

    @property
    def names(self) -> list[str]:
        """Names of the sources in the mixture, in the order of their indices."""
        cursor = self._cursor
        cursor.follow_if_stale()
        return [name for name, present in zip(cursor.names, cursor.present, strict=True) if present]

    @property
    def initial_names(self) -> list[str]:
        """Names of the sources that training began with, whatever was removed or added since."""
        return list(self._sources.initial)

    @property
    def schedule(self) -> Schedule:
        """What is drawn when, its cursor behind the last batch handed out. What is changed in it takes effect at the
        next batch; sources are added through the MultiLoader, which needs their loaders."""
        return self._cursor.expose()

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration gives (the rest of)."""
        return self._cursor.next_epoch

    @property
    def step(self) -> int:
        """Steps of the current epoch that were handed out."""
        schedule = self._cursor.schedule
        return 0 if schedule.epoch_done else int(schedule.step)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of ``epoch``; the current epoch's position stays."""
        if epoch != self.epoch:
            self._cursor.seek_epoch(epoch)
        else:
            self._cursor.open_next_epoch()

    def skip(self, num_batches: int) -> int:
        """Leaves the next batches of the epoch out, without reading them: the iteration continues behind them.

        A loader without a length is read and its batches dropped, because only reading shows where its passes end; so
        are those of a loader with a state of its own.

        Args:
            num_batches: How many, of all loaders together.

        Returns:
            How many there were: fewer than asked for at the epoch's end.

        Raises:
            ConfigError: ``num_batches`` isn't a whole number of at least 0.
        """
        self._lifetime.check()
        return skip_batches(num_batches, self._cursor, self._sources, self._delivery)

    def commit(self) -> None:
        """Declares every batch handed out so far as trained on. From now on only committed batches are state."""
        self._cursor.commit()
        self._sources.commit(self._delivery.num_steps)
        if self._recent_batches is not None:
            self._recent_batches.commit()

    def rewind(self) -> None:
        """Goes back to the last ``commit()``: the next iteration gives batches handed out since again."""
        self._cursor.sync()
        if self._cursor.can_rewind:
            self.load_state_dict(self.state_dict())
            self.commit()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch committed, or handed out if ``commit`` was never called.

        Nothing in it grows with the step, except what sources with a state of their own put there.
        """
        schedule = self._cursor.state_dict()
        # Those in the mixture at that position: a batch handed out since may have been followed by an edit.
        entries = schedule["setups"][schedule["tail"]["setup"]]["sources"]
        names = [entry["name"] for entry in entries if entry["present"]]
        return {
            "version": STATE_VERSION,
            "schedule": schedule,
            **self._sources.state_dict(names, is_committed=self._cursor.committed is not None),
            "last_batches": {} if self._recent_batches is None else self._recent_batches.state_dict(),
            **({"edits": list(self._edits)} if self._edits else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, on_other_mixture: OnOtherMixture = "refuse") -> None:
        """Goes to the position of a state. Reads no data; sources that replay do so when they are next drawn.

        Args:
            state: What ``state_dict`` gave.
            on_other_mixture: ``"refuse"``: a state of another mixture is an error. ``"edit"``: what differs between the
                mixture that the state was saved with and the one here (weights, sources, batch sizes, steps) becomes
                one edit at the position; no sample is lost or repeated.

        Raises:
            StateMismatch: The state is of other sources, lengths or another configuration; nothing has changed.
        """
        self._lifetime.check()
        saved, state = state, self.edited_state(state, on_other_mixture)
        try:
            prepared = self._sources.prepare_load(state)
            last_batches = dict(state["last_batches"])
            self._cursor.load_state_dict(state["schedule"])
        except StateMismatch as error:
            raise with_way_out(error, on_other_mixture) from error.__cause__
        except MtfError:
            raise
        except Exception as error:  # whatever a look into something of another kind raises
            raise StateMismatch(f"the loaders' state is malformed: {type(error).__name__}: {error}") from error
        self._sources.load(prepared, self._delivery.num_steps)
        self._edits = list(state.get("edits", ()))
        log_edit(saved, state)
        self._cursor.forget_commit()
        self._delivery.ended_passes.clear()
        if self._recent_batches is not None:
            self._recent_batches.load_state_dict(last_batches)
        self._cursor.follow()
        self._show_config()

    def edited_state(self, state: Mapping[str, Any], on_other_mixture: OnOtherMixture = "edit") -> Mapping[str, Any]:
        """The state that ``load_state_dict(state, on_other_mixture=...)`` loads; changes nothing.

        Raises:
            StateMismatch: A state of another kind, or one that no edit can continue with the mixture here.
            ConfigError: ``on_other_mixture`` is neither "refuse" nor "edit".
        """
        return resumed_state(state, *self._declared, self._sources.given, on_other_mixture)

    def verify_recent_batches(self) -> None:
        """Fetches the last batches of every source again and compares; the position stays. Needs ``remember_batches``.

        Raises:
            SourceError: Sources aren't deterministic; the message names each.
        """
        if self._recent_batches is None:
            raise ConfigError("verify_recent_batches needs a MultiLoader with remember_batches=True")
        state, is_committed = self.state_dict(), self._cursor.committed is not None
        try:
            self._recent_batches.check(self._sources.readers)
        finally:
            self.load_state_dict(state)
            if is_committed:
                self.commit()

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

    def plan(
        self,
        epochs: int = 1,
        *,
        gradient_accumulation_steps: int | None = None,
        loss_weights: Mapping[str, float] | None = None,
    ) -> Plan:
        """What will be drawn; see ``Schedule.plan``. It also warns of sources whose share of the rows is smaller than
        that of the batches, and of a last accumulation window that is short under loss weights.

        Args:
            epochs: How many, from the current one on.
            gradient_accumulation_steps: Batches of an accumulation window; None: the trainer's, or 1.
            loss_weights: What each loader's loss is multiplied by; None: the trainer's, or 1 each.
        """
        schedule, ranks = self._cursor.schedule, self._sources.ranks.world_size
        length = self.accumulation[0] if gradient_accumulation_steps is None else gradient_accumulation_steps
        weights = self.accumulation[1] if loss_weights is None else loss_weights
        rows = {name: reader.source.mean_batch_size(ranks) for name, reader in self._sources.readers.items()}
        plan = with_row_shares(schedule.plan(epochs), rows)
        return with_windows(plan, schedule, length, weights)

    def stats(self) -> dict[str, Any]:
        """Where time goes.

        Returns:
            ``num_steps``; ``wait_s``, seconds spent waiting for batches; by name ``source_wait_s``, the part of each
            source in it, ``in_flight``, batches requested from workers, and ``notes``, what doesn't hold for the
            source, in words; ``engine``, see ``Engine.stats``.
        """
        return {
            "num_steps": self._delivery.num_steps,
            "wait_s": sum(self._delivery.wait_s),
            "source_wait_s": dict(zip(self._cursor.names, self._delivery.wait_s, strict=False)),
            **self._sources.stats(),
        }

    def __repr__(self) -> str:
        """Strategy, sources and position."""
        if "_delivery" not in vars(self):  # a traceback shows the object whose constructor has raised
            return "MultiLoader(not constructed)"
        names = ", ".join(self.names)
        place = "closed" if self._lifetime.closed else f"epoch={self._cursor.epoch}, step={self._cursor.step}"
        return f"MultiLoader({self._cursor.strategy}, [{names}], seed={self._seed}, {place})"

    def _repr_html_(self) -> str:
        columns = ("source", "read as", "addressed by", "batches per pass", "weight", "drawn in this epoch")
        return html_table(repr(self), columns, self._sources.table(self._cursor.schedule, self._cursor.counts))

    def end_workers(self) -> None:
        """Ends worker processes; the next batch starts them again at its position.

        Those of a loader stay where batches would have to be produced again to get back to the position: a loader
        without a position or state, inside a pass.
        """
        if not (self._lifetime.closed or self._lifetime.is_forked):
            self._cursor.sync()
            self._cursor.drop_draws()  # what was asked for ahead is asked for again
            self._sources.end_workers()

    def close(self) -> None:
        """Ends worker processes and threads. May be called several times; the state can still be read."""
        if self._lifetime.closed or self._lifetime.is_forked:
            return
        self._cursor.sync()
        self._lifetime.closed = True
        self._cursor.drop_draws()  # so that an iterator that was left asks whether it may go on
        self._sources.close()
        if self._guard is not None:
            self._guard.close()

    def __enter__(self) -> MultiLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
