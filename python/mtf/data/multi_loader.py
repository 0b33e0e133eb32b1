"""A mixture of loaders as one iterable: the schedule says which source comes next, the sources give their batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mtf.config.keywords import checked_keywords
from mtf.config.loader_names import name_loaders
from mtf.config.mixture import MultiDataLoaderConfig, require_mixture
from mtf.data.agreed_lengths import check_same_schedule
from mtf.data.batch import Batch
from mtf.data.cursor import Cursor
from mtf.data.delivery import Delivery, EpochIterator, Lifetime
from mtf.data.determinism.recent_batches import RecentBatches
from mtf.data.live_schedule import LiveSchedule
from mtf.data.source_set import SourceSet
from mtf.data.steering.edited_loader import EditedLoader
from mtf.data.steering.mixture_edit import STATE_VERSION, OnOtherMixture, log_edit, resumed_state, with_way_out
from mtf.data.steering.skip import skip_batches
from mtf.data.tracing.loader import TracedLoader
from mtf.data.transfer import mover_to
from mtf.data.workers.fetch_timeout import FetchGuard
from mtf.distributed.data_group import make_data_group
from mtf.errors import ConfigError, MtfError, StateMismatch
from mtf.formatting import html_table

if TYPE_CHECKING:
    import torch


class MultiLoader(EditedLoader, TracedLoader):
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

    @checked_keywords(
        words={
            "weights": "MultiDataLoaderConfig(dataloader_weights=...), given as config",
            "mixture": "config",
            "num_workers": "num_workers of each DataLoader",
            "batch_size": "batch_size of each DataLoader",
            "shuffle": "shuffle of each DataLoader",
        },
        settings=MultiDataLoaderConfig,
    )
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

    def take_ended_passes(self) -> list[tuple[str, int]]:
        """(name, pass) of passes whose end no length had told before, each once: found since the last call."""
        found, self._delivery.ended_passes = self._delivery.ended_passes, []
        return found

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

    def end_workers(self, *, replay: bool = False) -> list[str]:
        """Ends worker processes; the next batch starts them again at its position.

        Those of a loader stay where batches would have to be produced again to get back to the position: a loader
        without a position or state, inside a pass.

        Args:
            replay: End these too. The next batch then produces those before it again.

        Returns:
            Names of the loaders whose worker processes stay.
        """
        if self._lifetime.closed or self._lifetime.is_forked:
            return []
        self._cursor.sync()
        self._cursor.drop_draws()  # what was asked for ahead is asked for again
        return self._sources.end_workers(replay=replay)

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
