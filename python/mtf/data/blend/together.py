"""One batch of every source in each step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from mtf.config.checks import nearest
from mtf.config.keywords import checked_keywords
from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.multi_loader import MultiLoader
from mtf.data.sources.base import ResumeMode, Snapshot, Source, Stream
from mtf.data.sources.resolve import as_source
from mtf.distributed.data_group import DataGroup
from mtf.enums import EpochLengthPolicy, SamplingStrategy
from mtf.errors import ConfigError, StateMismatch
from mtf.formatting import shortened
from mtf.random import fold_in

_NUM_STEPS = 1 << 60  # of the inner schedule's only epoch: passes follow one another without end


class Together(Source):
    """Each step gives one batch of every source, as ``{name: batch}``; a shorter source starts its next pass.

    What semi-supervised training, adversarial domain adaptation, distillation and replay of old data need, and what
    Lightning's ``CombinedLoader`` does. Batch ``k`` of the run takes batch ``k mod n`` of pass ``k / n`` of a source
    with ``n`` batches, so that it opens at once at any step where its sources do; sources that save a state or are
    replayed are as exact as they are in a mixture. It is a source like any other: for ``Trainer.fit`` and
    ``MultiLoader``, alone, in a mixture or inside another ``Together``, or to be iterated as it is.

    Args:
        sources: Name -> loader, as ``MultiLoader`` takes them; an ``mtf.Blend``, too.
        length: Batches of one pass: ``"max"``, those of the longest source; ``"min"``, those of the shortest; or a
            number, which is needed where a source doesn't know its length.
        config: Of the inner mixture: only its ``prefetch_*`` settings, ``drop_last`` and ``shared_workers`` are used.
        seed: Where it is iterated alone; in a mixture, that of the mixture decides.

    Raises:
        ConfigError: No source, a loader that can't be read, or a length that can't be known; no data has been read.
    """

    has_run_state = True
    reads_loaders = True

    @checked_keywords(
        words={"mode": "length", "loaders": "sources", "iterables": "sources", "dataloaders": "sources"},
        settings=MultiDataLoaderConfig,
    )
    def __init__(
        self,
        sources: Mapping[str, Any],
        length: str | int = "max",
        *,
        config: MultiDataLoaderConfig | None = None,
        seed: int = 0,
    ) -> None:
        """See the class."""
        if not isinstance(sources, Mapping) or not sources:
            raise ConfigError(
                "sources must be a dict of name and loader with at least one entry, as in "
                f"Together({{'labelled': loader_a, 'unlabelled': loader_b}}), but is {shortened(repr(sources))}"
            )
        self._loaders = dict(sources)
        self._sources = {name: as_source(loader, name) for name, loader in sources.items()}
        self._config = _inner_config(list(sources), config)
        if self._config.drop_last:
            self._sources = {name: source.drop_last() for name, source in self._sources.items()}
        self._length = length
        self._num_batches = _length_of(length, {name: s.num_batches() for name, s in self._sources.items()})
        self._is_position_enough = all(
            source.resume_mode is ResumeMode.SEEK and not source.has_run_state for source in self._sources.values()
        )
        self._seed = seed
        self._rank, self._world_size = 0, 1
        self._ranks: DataGroup | None = None
        self._next = 0
        self._run: _Run | None = None

    @property
    def names(self) -> list[str]:
        """Names of the sources, which are the keys of a batch."""
        return list(self._sources)

    def num_batches(self) -> int:
        return self._num_batches

    def __len__(self) -> int:
        return self._num_batches

    def open(self, pass_: int, batch: int, key: int, snapshot: Snapshot | None = None) -> Stream:
        run = self._run
        if run is None or run.key != key:
            self.begin_run(key)
            run = self._run
        assert run is not None
        run.go_to(pass_ * self._num_batches + batch)
        return _TogetherStream(run, batch, self._num_batches, self.has_end)

    def shard(self, rank: int, world_size: int) -> Together:
        if self._world_size > 1:
            raise ConfigError(f"source {self.name!r} is already the part of rank {self._rank} of {self._world_size}")
        for source in self._sources.values():
            source.shard(rank, world_size)  # says what can't be divided
        other = copy.copy(self)
        other._rank, other._world_size, other._run = rank, world_size, None
        # The numbers of batches may be others on several ranks.
        other._sources = {name: source.shard(rank, world_size) for name, source in self._sources.items()}
        other._num_batches = _length_of(self._length, {n: s.num_batches() for n, s in other._sources.items()})
        return other

    def weight(self, pass_: int, batch: int) -> float:
        """The mean of the weights of its sources, which differ where a last batch isn't divided evenly."""
        number, sum_ = pass_ * self._num_batches + batch, 0.0
        for source in self._sources.values():
            length = source.num_batches()
            sum_ += 1.0 if not length else source.weight(*divmod(number, length))
        return sum_ / len(self._sources)

    @property
    def has_end(self) -> bool:  # type: ignore[override]
        return any(source.has_end for source in self._sources.values())

    def is_over(self, pass_: int, batch: int) -> bool:
        return self._ended(pass_, batch) is not None

    def why_over(self, pass_: int, batch: int) -> str:
        found = self._ended(pass_, batch)
        assert found is not None
        return found

    def _ended(self, pass_: int, batch: int) -> str | None:
        """Which source has no batch for a step, and why."""
        run = self._run
        number = pass_ * self._num_batches + batch
        if run is not None and run.number == number:
            return run.why_over
        for name, source in self._sources.items():
            length = source.num_batches()
            if source.has_end and length and source.is_over(*divmod(number, length)):
                return f"source {name!r}: {source.why_over(*divmod(number, length))}"
        return None

    def order(self) -> str:
        return "together: " + ", ".join(f"{name} {source.order()}" for name, source in self._sources.items())

    def notes(self) -> list[str]:
        return [f"{name}: {note}" for name, source in self._sources.items() for note in source.notes()]

    def close(self) -> None:
        if self._run is not None:
            self._run.close()

    def begin_run(self, key: int) -> None:
        self.close()
        ranks = DataGroup(self._rank, self._world_size) if self._ranks is None else self._ranks
        self._run = _Run(self._loaders, self._config, key, ranks)

    def join_ranks(self, ranks: DataGroup) -> None:
        self._ranks = ranks

    def run_state(self, pending: bool = False) -> Snapshot:
        run = self._run
        number = 0 if run is None else run.number - pending
        place = divmod(number, self._num_batches)
        if self._is_position_enough or run is None:
            return Snapshot(*place, None, is_global=True)
        state = run.state(pending)
        is_global = all(entry is None or entry.get("global") for entry in state["sources"].values())
        return Snapshot(*place, state, is_global=is_global)

    def check_run_state(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and (snapshot.data is None) != self._is_position_enough and snapshot.batch:
            raise StateMismatch(f"source {self.name!r}: the state's sources are addressed otherwise than those here")

    def load_run_state(self, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        number = snapshot.pass_ * self._num_batches + snapshot.batch
        if self._run is not None:
            self._run.load(snapshot.data, number)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass, and the next one at the next call; after ``load_state_dict``, the rest of the state's pass."""
        key = fold_in(fold_in(self._seed, "source"), "")
        stream: Any = self.open(*divmod(self._next, self._num_batches), key)
        try:
            for batch in stream:
                self._next += 1
                yield batch
        finally:
            self.close()

    def state_dict(self) -> dict[str, Any]:
        """Where iteration alone stands, after the batch handed out last."""
        return {"version": 1, "next_batch": self._next, "state": self.run_state().data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues there in the next ``iter``.

        Raises:
            StateMismatch: A state of other sources; nothing has changed.
        """
        if state.get("version") != 1 or "state" not in state or not isinstance(state.get("next_batch"), int):
            raise StateMismatch(f"this is no state of a Together: its fields are {sorted(state)}")
        if self._run is None:
            self.begin_run(fold_in(fold_in(self._seed, "source"), ""))
        assert self._run is not None
        self._run.load(state["state"], state["next_batch"])
        self._next = state["next_batch"]

    def __repr__(self) -> str:
        """Names and length."""
        name = f"{self.name!r}, " if self.name else ""
        return f"Together({name}[{', '.join(self._sources)}], {self._num_batches} batches per pass)"


class _Run:
    """The sources as one loop reads them: a mixture that takes them in turn.

    Attributes:
        number: Of the next batch, counted over all passes.
    """

    def __init__(self, loaders: Mapping[str, Any], config: MultiDataLoaderConfig, key: int, ranks: DataGroup) -> None:
        self.key = key
        self.number = 0
        self._loaders, self._config = loaders, config
        self._ranks = ranks
        self._num_sources = len(loaders)
        self._multi: MultiLoader | None = None
        self._saved: Mapping[str, Any] | None = None  # of the mixture that was closed
        self._is_within_step = False

    def multi(self) -> MultiLoader:
        """The mixture, behind the batches handed out."""
        if self._multi is None:
            self._multi = MultiLoader(self._loaders, self._config, seed=self.key, process_group=self._ranks)
            if self._saved is not None:
                self._multi.load_state_dict(self._saved)
                self._saved = None
            self._multi.commit()
        return self._multi

    @property
    def why_over(self) -> str | None:
        """Why a source has no batch for step ``number``, in words."""
        return self.multi().why_over_within(self._num_sources)

    def go_to(self, number: int) -> None:
        """Makes ``number`` the next batch."""
        multi = self.multi()
        if self._is_within_step:
            multi.rewind()  # an error came between the batches of a step
            self._is_within_step = False
        if number != self.number:
            multi.schedule.seek(0, number * self._num_sources)
            assert multi.step == number * self._num_sources  # which follows the schedule
            multi.commit()
            self.number = number

    def take(self) -> dict[str, Any]:
        """One batch of each source."""
        multi = self.multi()
        multi.commit()
        self._is_within_step = True
        batches = iter(multi)
        taken = {batch.name: batch.data for batch in (next(batches) for _ in range(self._num_sources))}
        self.number += 1
        self._is_within_step = False
        return taken

    def state(self, pending: bool) -> dict[str, Any]:
        """The mixture's state, before the batch taken last if that is ``pending``."""
        if self._multi is None and self._saved is not None:
            return dict(self._saved)
        multi = self.multi()
        if not pending:
            multi.commit()
        return multi.state_dict()

    def load(self, state: Mapping[str, Any] | None, number: int) -> None:
        """Goes to a ``state``; None where the number of the batch says everything."""
        if state is None:
            self.go_to(number)
            return
        self.multi().load_state_dict(state)
        self.multi().commit()
        self.number = number

    def close(self) -> None:
        """Ends workers and threads; the next batch starts them again."""
        if self._multi is None:
            return
        if not self._is_within_step:
            self._multi.commit()
        self._saved = self._multi.state_dict()
        self._is_within_step = False
        self._multi.close()
        self._multi = None


class _TogetherStream(Stream):
    """The rest of one pass."""

    def __init__(self, run: _Run, batch: int, num_batches: int, has_end: bool) -> None:
        self._run, self._batch, self._num_batches, self._has_end = run, batch, num_batches, has_end

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batch >= self._num_batches or (self._has_end and self._run.why_over is not None):
            raise StopIteration
        data = self._run.take()
        self._batch += 1
        return data


def _inner_config(names: list[str], given: MultiDataLoaderConfig | None) -> MultiDataLoaderConfig:
    given = MultiDataLoaderConfig() if given is None else given
    return MultiDataLoaderConfig(
        sampling_strategy=SamplingStrategy.ROUND_ROBIN,
        dataloader_names=names,
        epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS,
        steps_per_epoch=_NUM_STEPS,
        drop_last=given.drop_last,
        prefetch_batches=given.prefetch_batches,
        prefetch_bytes=given.prefetch_bytes,
        prefetch_workers=given.prefetch_workers,
        shared_workers=given.shared_workers,
    )


def _length_of(length: str | int, lengths: Mapping[str, int | None]) -> int:
    """Batches in one pass."""
    for name, known in lengths.items():
        if known == 0:
            raise ConfigError(f"source {name!r} has no batch")
    if isinstance(length, str):
        if length not in ("max", "min"):
            near = nearest(length, ("max", "min"))
            raise ConfigError(f'length must be "max", "min" or a number of batches, but is {length!r}{near}')
        unknown = [name for name, known in lengths.items() if known is None]
        if unknown:
            raise ConfigError(
                f'length="{length}" needs the length of {unknown[0]!r}, which has no len(): give a number'
            )
        numbers = [known for known in lengths.values() if known is not None]
        return max(numbers) if length == "max" else min(numbers)
    if isinstance(length, bool) or not hasattr(length, "__index__") or length < 1:
        raise ConfigError(f'length must be "max", "min" or a number of batches of at least 1, but is {length!r}')
    return int(length)
