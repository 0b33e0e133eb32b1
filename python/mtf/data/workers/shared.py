"""One set of worker processes for several DataLoaders, in place of a set for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from mtf.config.checks import whole_number
from mtf.data.prefetch.scheduler import LEAST_BATCHES
from mtf.data.sources.base import Source
from mtf.data.sources.threaded import ThreadLoader
from mtf.data.sources.torch_map import TorchSource
from mtf.data.workers.pool import WorkerPool
from mtf.errors import ConfigError

# Settings of the processes or of what the training process does with their batches: there can be only one of each.
_COMMON = ("timeout", "pin_memory", "multiprocessing_context")


class SharedWorkers:
    """Worker processes that fetch the batches of several DataLoaders in the order in which the schedule wants them.

    Thirty loaders with two workers each are sixty processes, most of which wait for their source's turn. Here a fixed
    number of processes holds all datasets, and whichever is free fetches what comes next. Every worker calls every
    loader's ``worker_init_fn``; ``get_worker_info().dataset`` is the dataset that is being read. They start with the
    first batch and live as long as the mixture, so they see datasets as these were then.

    Args:
        sources: Those to fetch for; each loses its own workers.
        num_workers: Processes.
        key: Of the workers' own generators, for what isn't seeded with each batch.

    Raises:
        ConfigError: ``num_workers`` is less than 1, no source has workers, or their loaders contradict each other.
    """

    def __init__(self, sources: Sequence[Source], num_workers: int, key: int) -> None:
        num_workers = whole_number("shared_workers", num_workers, 1)
        members = [source for source in sources if isinstance(source, TorchSource) and _has_workers(source)]
        if not members:
            raise ConfigError(
                f"shared_workers is {num_workers}, but no loader is a map-style DataLoader with num_workers > 0: give "
                "those that the processes are to fetch for num_workers=1, or leave shared_workers out"
            )
        _require_common(members)
        self._num_workers = num_workers
        self._key = key
        self._union = _Union(members)
        self._first = members[0].loader
        # Per worker and not per source: a few processes should have as much to do as the mixture's budget allows.
        factors = (int(member.loader.prefetch_factor or 2) for member in members)
        self._prefetch_factor = max(-(-LEAST_BATCHES // num_workers), *factors)
        self._pool: WorkerPool | None = None
        for number, member in enumerate(members):
            member.workers = _Member(self, number)
            member.worker_group = self
            member.opens_ahead = True
            member.max_in_flight = num_workers * self._prefetch_factor

    @property
    def pool(self) -> WorkerPool:
        """The processes, which start now if they didn't before, or have ended since."""
        if self._pool is None or self._pool.closed:
            first = self._first
            loader: DataLoader[Any] = DataLoader(
                self._union,
                batch_size=None,
                sampler=(),
                num_workers=self._num_workers,
                pin_memory=first.pin_memory,
                timeout=first.timeout,
                worker_init_fn=self._union.init_worker,
                multiprocessing_context=first.multiprocessing_context,
                prefetch_factor=self._prefetch_factor,
            )
            self._pool = WorkerPool(self._union, loader, self._key)
        return self._pool

    @property
    def closed(self) -> bool:
        """Whether there are no processes (any more)."""
        return self._pool is None or self._pool.closed

    def close(self) -> None:
        """Ends the processes. May be called several times."""
        if self._pool is not None:
            self._pool.close()


class _Member:
    """The shared workers as one source sees them."""

    def __init__(self, shared: SharedWorkers, number: int) -> None:
        self._shared = shared
        self._number = number

    @property
    def closed(self) -> bool:
        return self._shared.closed

    def send(self, owner: object, index: Any) -> None:
        try:
            self._shared.pool.send(owner, (self._number, index))
        except BaseException:  # nobody knows what was sent
            self._shared.close()
            raise

    def take(self, owner: object) -> Any:
        try:
            return self._shared.pool.take(owner)
        except Exception:
            raise
        except BaseException:  # Ctrl-C may come between a batch and the note whose it is
            self._shared.close()
            raise

    def forget(self, owner: object) -> None:
        self._shared.pool.forget(owner)

    def close(self) -> None:
        """The mixture ends the processes: other sources need them."""


class _Union(Dataset[Any]):
    """All datasets behind one index: ``(number of the source, index with the batch's key)``. Collates as well."""

    def __init__(self, members: Sequence[TorchSource]) -> None:
        loaders = [member.loader for member in members]
        self._datasets = [member.dataset for member in members]
        self._has_batches = [loader.batch_sampler is not None for loader in loaders]
        self._inits = [loader.worker_init_fn for loader in loaders]

    def __getitem__(self, numbered: tuple[int, Any]) -> Any:
        number, index = numbered
        dataset = self._datasets[number]
        _show_to_users(dataset.dataset)
        samples = dataset.__getitems__(index) if self._has_batches[number] else dataset[index]
        return dataset.collate(samples)

    @staticmethod
    def collate(batch: Any) -> Any:
        """Each dataset has collated already."""
        return batch

    def init_worker(self, worker_id: int) -> None:
        """Each loader's own function, for its dataset."""
        for dataset, init in zip(self._datasets, self._inits, strict=True):
            if init is not None:
                _show_to_users(dataset.dataset)
                init(worker_id)

    @property
    def dataset(self) -> Any:
        """What ``get_worker_info()`` shows before anything is read."""
        return self._datasets[0].dataset


def _show_to_users(dataset: Any) -> None:
    info: Any = get_worker_info()
    object.__setattr__(info, "dataset", dataset)


def _has_workers(source: TorchSource) -> bool:
    return not isinstance(source, ThreadLoader) and source.loader.num_workers > 0


def _require_common(members: Sequence[TorchSource]) -> None:
    for setting in _COMMON:
        first, *others = members
        expected = _setting(first.loader, setting)
        for other in others:
            found = _setting(other.loader, setting)
            if found != expected:
                raise ConfigError(
                    f"shared_workers: the loaders must have the same {setting}, but {first.name!r} has {expected!r} "
                    f"and {other.name!r} has {found!r}"
                )


def _setting(loader: DataLoader[Any], name: str) -> Any:
    value = getattr(loader, name)
    return value.get_start_method() if hasattr(value, "get_start_method") else value
