"""What a mixture draws batches from: the protocol that every loader is adapted to, and that users may implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from mtf.data.sources.rest_of_pass import PassCut, RestOfPass
from mtf.errors import ConfigError
from mtf.formatting import plain_repr

if TYPE_CHECKING:
    from torch import Tensor

    from mtf._core import NativeSource
    from mtf.data.tracing.samples import BatchTrace, SamplePlace, Sought
    from mtf.distributed.data_group import DataGroup


class ResumeMode(Enum):
    """How a source gets to a position, which decides what a resume costs."""

    SEEK = "position"
    """Any (pass, batch) opens directly; no data is read to get there."""
    STATEFUL = "state"
    """The source saves its own state; the state travels with the batch that it follows."""
    REPLAY = "replay"
    """Batches before the position are produced again and dropped."""


@dataclass(frozen=True)
class Snapshot:
    """What a STATEFUL source said about itself after it had given ``batch`` batches of pass ``pass_``.

    Attributes:
        pass_: The pass that was open, counted over the whole training.
        batch: Batches of that pass handed out so far, so also the number of the next one.
        data: The source's own state: nested containers of plain values and tensors.
        ended: Whether the pass was found to have no more.
        digest: Hash of the last batch handed out; ``data`` is then the state before that batch, which a resume reads
            again. None: ``data`` is the state after it.
        is_global: Whether it is the same on every rank, so that any number of ranks can continue from it.
    """

    pass_: int
    batch: int
    data: Any = field(repr=False)
    ended: bool = False
    digest: str | None = field(default=None, repr=False)
    is_global: bool = False


class Stream(ABC):
    """One pass of a source, being read. The consumer calls it from one thread."""

    @abstractmethod
    def __next__(self) -> Any:
        """The next batch of the pass.

        Raises:
            StopIteration: The pass has ended; every later call raises it again.
        """

    def request(self, num_batches: int) -> None:
        """Says that ``num_batches`` more batches will be wanted, so that workers may start on them.

        The requests of one pass add up to the batches that are taken from it, or run ahead of them. A stream that
        fetches when it is asked for a batch ignores this.
        """

    def state(self) -> Any:
        """A snapshot after the batch just given, for sources with ``ResumeMode.STATEFUL``; it never changes later."""
        return None

    def snapshot(self, pass_: int, batch: int) -> Snapshot:
        """What is saved after the batch just given, the last of ``batch`` batches of pass ``pass_``."""
        return Snapshot(pass_, batch, self.state())

    def has_workers(self) -> bool:
        """Whether it has started processes that are alive."""
        return False

    def close(self) -> None:
        """Releases workers and files. May be called several times, also before the pass ended."""

    def __repr__(self) -> str:
        """The class and its plain attributes."""
        return plain_repr(self)


class Source(ABC):
    """Batches of one dataset, addressed by pass and batch. Implement it to plug in anything.

    Attributes:
        name: The name in the mixture; random numbers of the source depend on it.
        resume_mode: How ``open`` reaches a position.
        max_in_flight: How many requested batches its workers can hold at once; 0 when a batch is fetched in ``next``.
        worker_group: Where several sources share their workers: the same object for each of them.
        opens_ahead: Whether the next pass may be opened before the current one has ended.
        num_threads: Threads that should fetch it, for a source with ``native``.
        ahead_bytes: Bytes that are worth holding ahead where ``prefetch_bytes`` sets no limit, for a source with
            ``native``; None: any number.
        has_run_state: Whether a run makes more of the source than a position says, such as edits. A loop then calls
            ``begin_run`` before it reads, and saves ``run_state`` with its own state.
        names_rows: Whether ``sources_of(pass_, batch)`` gives the index of each row's source and ``source_names`` their
            names, for ``mtf.sources_of``.
        reads_loaders: Whether it reads loaders of its own, whose lengths the ranks have to agree on. It then gets
            ``join_ranks(ranks)`` before it is read, with the ranks that divide its batches.
        has_end: Whether its passes may come to an end for good. A loop then asks ``is_over`` before it takes a batch,
            and ends with the run where there is none.
    """

    name: str = ""
    resume_mode: ResumeMode = ResumeMode.SEEK
    max_in_flight: int = 0
    worker_group: object | None = None
    opens_ahead: bool = False
    num_threads: int = 1
    ahead_bytes: int | None = None
    has_run_state: bool = False
    names_rows: bool = False
    reads_loaders: bool = False
    has_end: bool = False

    @abstractmethod
    def num_batches(self) -> int | None:
        """Batches in one pass, or None when that can't be known before reading."""

    @abstractmethod
    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        """Starts reading pass ``pass_`` at batch ``batch``.

        Args:
            pass_: The pass, counted from 0 over the whole training; each shuffles differently.
            batch: The first batch to give. With ``ResumeMode.SEEK`` no earlier batch is produced.
            key: Key of the source's random numbers. That of a pass is ``fold_in(key, pass_)``, that of a batch
                ``fold_in(fold_in(key, pass_), batch * world_size + rank)``: ranks draw different numbers.
            snapshot: The last known state, at or before the position. None for ``ResumeMode.SEEK``; of a source that
                replays it is the hash of its last batch.
        """

    def native(self, key: int) -> NativeSource | None:
        """The source as the prefetch engine fetches it on its threads, or None; ``open`` isn't used when it has one.

        Args:
            key: Key of the source's random numbers, as for ``open``.
        """
        return None

    @property
    def is_native(self) -> bool:
        """Whether ``native`` gives something."""
        return type(self).native is not Source.native

    def begin_run(self, key: int) -> None:
        """A loop begins, with the source's ``key``. For sources with ``has_run_state``."""

    def run_state(self, pending: bool = False) -> Snapshot | None:
        """What the run has made of the source up to the batch taken last; up to the one before where that is
        ``pending``, taken and not handed out. For sources with ``has_run_state``."""
        return None

    def run_layout(self) -> Any:
        """What ``native`` depends on that ``load_run_state`` may change. For sources with ``has_run_state``."""
        return None

    def skip_to(self, pass_: int, batch: int) -> None:
        """The batches before (pass, batch) are left out: edits made before the next one is taken hold from there. For
        sources with ``has_run_state``."""

    def edited_run_state(self, snapshot: Any) -> tuple[Any, list[str]]:
        """What a saved run state becomes where the run continues with this source, which may be described otherwise
        than the one that was saved. For sources with ``has_run_state``; changes nothing.

        Args:
            snapshot: What ``run_state`` gave, as plain data.

        Returns:
            The snapshot to continue from, and what was changed, in words.

        Raises:
            StateMismatch: Something differs that can't be edited.
        """
        return snapshot, []

    def check_run_state(self, snapshot: Snapshot | None) -> None:
        """Raises ``StateMismatch`` if ``load_run_state`` can't load ``snapshot``; changes nothing."""

    def load_run_state(self, snapshot: Snapshot | None) -> None:
        """Goes to a snapshot of ``run_state``."""

    def join_ranks(self, ranks: DataGroup) -> None:
        """The ranks that divide its batches. For sources with ``reads_loaders``."""

    def is_over(self, pass_: int, batch: int) -> bool:
        """Whether the run ends before batch ``batch`` of pass ``pass_``. For sources with ``has_end``."""
        return False

    def why_over(self, pass_: int, batch: int) -> str:
        """Why ``is_over``, in words."""
        return "its data have come to an end"

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources of its rows, by index. For sources with ``names_rows``."""
        return (self.name,)

    def sources_of(self, pass_: int, batch: int) -> Tensor:
        """Index of the source of each row of a batch, int64 ``[rows]``. For sources with ``names_rows``."""
        raise NotImplementedError

    def trace_batch(self, pass_: int, batch: int, key: int) -> BatchTrace:
        """Which rows a global batch has, with its number over all passes as ``step``.

        Raises:
            ConfigError: The source can't say.
        """
        raise ConfigError(
            f"source {self.name!r} ({type(self).__name__}) can't say which rows a batch has: that is for mtf.Blend, "
            "mtf.ArrayLoader and token rows"
        )

    def find_batches(self, sought: Sought, passes: range, key: int) -> list[SamplePlace]:
        """Where a row or document comes in some passes: the inverse of ``trace_batch``.

        Raises:
            ConfigError: There is no such row or document, or the source can't say.
        """
        raise ConfigError(
            f"source {self.name!r} ({type(self).__name__}) can't say in which batches a row comes: that is for "
            "mtf.Blend, mtf.ArrayLoader and token rows"
        )

    def record(self) -> dict[str, Any] | None:
        """How its rows are numbered, as plain data that a checkpoint's manifest keeps for ``mtf trace``; None if it
        can't say."""
        return None

    def position_owner(self) -> Any:
        """The object whose own position moves with every batch, which no other source may read; None: there is none."""
        return None

    def initial_state(self) -> Any:
        """The state before the first batch, for sources with ``ResumeMode.STATEFUL``; None if there is none to save."""
        return None

    def order_state(self) -> Any:
        """State of what decides the order of samples, such as a sampler with ``state_dict``; None if it has none.

        It is asked for when a state is saved, and given back by ``load_order_state`` before a pass is opened.
        """
        return None

    def load_order_state(self, state: Any) -> None:
        """Puts what ``order_state`` gave back."""

    def drop_last(self) -> Source:
        """The source without its incomplete last batch. The source itself where batches have no common size."""
        return self

    def shard(self, rank: int, world_size: int) -> Source:
        """The part of each global batch that belongs to ``rank`` of ``world_size``.

        Raises:
            ConfigError: The source can't be divided; the message says what to do.
        """
        raise ConfigError(
            f"source {self.name!r} ({type(self).__name__}) can't be divided over {world_size} ranks: implement "
            "shard(), or use a map-style DataLoader or mtf.ArrayLoader"
        )

    def size_to_divide(self) -> int | None:
        """Samples (of a list: batches) of the whole that the ranks divide among themselves, of which every rank must
        hold all; None where each rank's data is its own."""
        return None

    def spread(self, rank: int, world_size: int) -> Source:
        """Batches ``rank``, ``rank + world_size`` ...: each on exactly one rank, so ranks may have unequal numbers.

        Raises:
            ConfigError: Each rank reads the source as it is.
        """
        raise ConfigError(f"source {self.name!r} ({type(self).__name__}) isn't divided over {world_size} ranks")

    def weight(self, pass_: int, batch: int) -> float:
        """This rank's share of a global batch, times the number of ranks: 1.0 where all have equally many samples,
        0.0 where it has none left and repeats one. The mean over ranks of their weighted losses is then the mean over
        the samples of the global batch."""
        return 1.0

    def global_batch_size_on(self, world_size: int) -> int | None:
        """Samples in a full batch of all ranks together; None where that isn't known."""
        return None

    def pass_cut(self, world_size: int) -> PassCut | None:
        """How the samples of a pass are cut into batches; None where a pass can't be opened at any sample, so that its
        batches can't be cut otherwise on the way."""
        return None

    def finish_pass(self, rest: RestOfPass) -> Source:
        """The source with what is left of a pass that began with other batches or fewer samples. For sources with a
        ``pass_cut``."""
        raise NotImplementedError

    def mean_batch_size(self, world_size: int) -> float | None:
        """Samples of a batch of all ranks together, on average over a pass; None where that isn't known."""
        cut = self.pass_cut(world_size)
        if cut is None:
            size = self.global_batch_size_on(world_size)
            return None if size is None else float(size)
        num_batches = cut.num_batches()
        return min(cut.num_samples, num_batches * cut.global_batch_size) / num_batches if num_batches else None

    def order(self) -> str | None:
        """How the samples of a pass are ordered, in words; None where the source doesn't say. A state needs
        the same order."""
        return None

    def notes(self) -> list[str]:
        """What doesn't hold for this source, in words; empty when every promise does."""
        return []

    def close(self) -> None:
        """Releases what outlives a pass. May be called several times."""

    def __repr__(self) -> str:
        """Name, length and plain attributes."""
        num = self.num_batches()
        what = f"{'unknown' if num is None else num} batches per pass, addressed by {self.resume_mode.value}"
        return plain_repr(self, *([repr(self.name)] if self.name else []), what, leave_out=Source.__annotations__)
