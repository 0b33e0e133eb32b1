"""Loaders whose state others mean differently, as loaders with ``state_dict()`` and ``load_state_dict(state)``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from mtf.data.protocols import has_state_methods, known_length, length_of
from mtf.data.sources.torch_map import is_stateful_data_loader, iterates_as_torchs
from mtf.data.workers.pool import RenumberedWorkers
from mtf.data.workers.supervision import iterate, supervise
from mtf.data.workers.worker_states import WorkerStateLoader

# What MosaicML's and litdata's datasets want to know for a state, by the names of the parameters.
_ASKED = ("num_samples", "num_samples_yielded", "from_beginning", "num_workers", "batch_size")


def with_state_methods(loader: Any) -> Any:
    """The loader, or an adapter of it, if its position can be saved exactly; None if not."""
    dataset = getattr(loader, "dataset", loader)
    if loses_its_buffer(dataset):
        return None
    is_torchs = isinstance(loader, DataLoader) and isinstance(dataset, IterableDataset) and iterates_as_torchs(loader)
    if is_torchs and loader.num_workers and keeps_state(dataset):
        return WorkerStateLoader(loader)
    if has_state_methods(loader):
        # A StatefulDataLoader counts what it has given, and counts twice after a resume.
        counts = any(map(is_stateful_data_loader, type(loader).__mro__)) and not keeps_state(dataset)
        return None if counts else loader
    if is_torchs and has_state_methods(dataset):
        return loader  # its dataset has them
    if is_torchs and loader.batch_size and _asks_for_counts(dataset):
        return CountedStateLoader(loader)
    if _gives_iterators_with_state(loader):
        return IteratorStateLoader(loader)
    return None


def keeps_state(dataset: Any) -> bool:
    """Whether an iterable dataset, or the iterator that it gives, has a state of its own."""
    if has_state_methods(dataset):
        return True
    made = getattr(type(dataset), "__iter__", None)
    returned = getattr(made, "__annotations__", {}).get("return")
    return isinstance(returned, type) and callable(getattr(returned, "load_state_dict", None))


def loses_its_buffer(dataset: Any) -> bool:
    """Whether this is a dataset of HF ``datasets`` with a shuffle buffer, whose content isn't in its state.

    The buffer may be anywhere in the tree of stages that ``interleave_datasets`` and ``concatenate_datasets`` make.
    """
    stages = [getattr(dataset, "_ex_iterable", None)]
    while stages:
        stage = stages.pop()
        if stage is None:
            continue
        if type(stage).__name__.startswith("BufferShuffled"):
            return True
        stages.append(getattr(stage, "ex_iterable", None))
        several = getattr(stage, "ex_iterables", None)
        stages.extend(several if isinstance(several, (list, tuple)) else ())
    return False


def _asks_for_counts(dataset: Any) -> bool:
    """Whether it is a dataset of MosaicML Streaming or litdata, whose ``state_dict`` is told how much was read.

    Others' methods with such arguments may mean anything by them.
    """
    if not any(base.__module__.split(".")[0] in ("streaming", "litdata") for base in type(dataset).__mro__):
        return False
    if not callable(getattr(dataset, "load_state_dict", None)):
        return False
    names = _parameters(getattr(dataset, "state_dict", None))
    return names is not None and names[:1] in (["num_samples"], ["num_samples_yielded"]) and set(names) <= set(_ASKED)


def _parameters(method: Any) -> list[str] | None:
    try:
        return list(inspect.signature(method).parameters)
    except (TypeError, ValueError):
        return None


def _gives_iterators_with_state(loader: Any) -> bool:
    """Whether its iterators have ``get_state`` and ``set_state``, as grain's do, or ``__iter__`` says so."""
    cls = type(loader)
    if not hasattr(cls, "__iter__") or isinstance(loader, Iterator):
        return False
    returned = getattr(cls.__iter__, "__annotations__", {}).get("return")
    if isinstance(returned, type) and callable(getattr(returned, "get_state", None)):
        return callable(getattr(returned, "set_state", None))
    names = ("IterDataset", "MapDataset", "DataLoader")
    if not any(base.__module__.startswith("grain.") and base.__name__ in names for base in cls.__mro__):
        return False
    # Its DataLoader compares how the data source and the sampler are shown; an address is another in each process.
    shown = (getattr(loader, "_data_source", None), getattr(loader, "_sampler", None))
    return not any(" at 0x" in repr(part) for part in shown)


class IteratorStateLoader:
    """A loader whose iterators have ``get_state()`` and ``set_state(state)``.

    Args:
        loader: The user's.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._iterator: Any = None
        self._loaded: list[Any] = []  # the state for the next iterator, if one was loaded

    def __len__(self) -> int:
        length = length_of(self.loader)
        if length is None:
            raise TypeError("the loader has no len()")
        return length

    def __iter__(self) -> Iterator[Any]:
        loaded, self._loaded = self._loaded, []
        iterator: Any = iterate(self.loader)
        for state in loaded:
            iterator.set_state(state)
        self._iterator = iterator
        return iterator  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """What the iterator says."""
        if self._iterator is None:
            raise RuntimeError("no iterator was made yet")
        return {"iterator": self._iterator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iterator is given ``state``."""
        self._loaded = [state["iterator"]]


class CountedStateLoader:
    """A DataLoader over a dataset whose ``state_dict`` has to be told how many samples were read.

    The state is saved by the dataset in this process, and loaded by it before workers start. A dataset that asks for
    the number of workers continues with the worker whose turn it was, so the workers are numbered from that one on.

    Args:
        loader: The user's.

    Attributes:
        dataset: The user's.
        num_workers: Its worker processes.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        dataset: Any = loader.dataset
        self.dataset = dataset
        self.num_workers = loader.num_workers
        self._save: Callable[..., Any] = dataset.state_dict
        self._load: Callable[[Any], Any] = dataset.load_state_dict
        self._parameters = _parameters(self._save) or []
        # As litdata's own loader does: its dataset divides samples among workers, and compares a state, by these.
        for name, value in (("set_batch_size", loader.batch_size), ("set_num_workers", loader.num_workers)):
            method = getattr(self.dataset, name, None)
            if callable(method) and "num_workers" in self._parameters:
                method(value)
        self._num_batches = self._num_samples = 0  # of the pass
        self._is_loaded = False

    def __len__(self) -> int:
        return known_length(self.loader)

    def __iter__(self) -> Iterator[Any]:
        begins, self._is_loaded = not self._is_loaded, False
        prepared: Any = copy.copy(self.loader)
        prepared.collate_fn = _CountingCollate(self.loader.collate_fn)
        prepared.generator = None  # the workers' seed, which torch draws from it, is a function of the pass here
        if self.num_workers:
            first = 0 if begins or "num_workers" not in self._parameters else self._num_batches % self.num_workers
            init = RenumberedWorkers(self.loader.worker_init_fn, first, self.num_workers)
            # New workers in each pass, since the dataset is told in this process where it begins.
            vars(prepared).update(worker_init_fn=init, persistent_workers=False, _iterator=None)
        return _Counted(self, supervise(iterate(prepared)), begins)

    def state_dict(self) -> dict[str, Any]:
        """The state of the dataset, and the batches of the pass."""
        known = {
            "num_samples": self._num_samples,
            "num_samples_yielded": self._num_samples,
            "from_beginning": True,
            "num_workers": self.loader.num_workers,
            "batch_size": self.loader.batch_size,
        }
        dataset_state = self._save(**{name: known[name] for name in self._parameters})
        return {"dataset": dataset_state, "batches": self._num_batches, "samples": self._num_samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next ``iter`` continues from ``state``."""
        self._load(state["dataset"])
        self._num_batches, self._num_samples = state["batches"], state["samples"]
        self._is_loaded = True

    def took(self, num_samples: int, begins: bool) -> None:
        """A batch of so many samples was handed out, the first of a pass if it ``begins``.

        Until then the state is that at the end of the pass before: so is that of the dataset, which counts a pass when
        its first sample is asked for.
        """
        if begins:
            self._num_batches = self._num_samples = 0
        self._num_batches += 1
        self._num_samples += num_samples


class _Counted(Iterator[Any]):
    """One pass of a loader, which counts its batches."""

    def __init__(self, loader: CountedStateLoader, take: Callable[[], Any], begins: bool) -> None:
        self._loader = loader
        self._take = take
        self._begins = begins

    def __next__(self) -> Any:
        data, num_samples = self._take()
        self._loader.took(num_samples, self._begins)
        self._begins = False
        return data


class _CountingCollate:
    """The user's collate function; with each batch it gives how many samples are in it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> tuple[Any, int]:
        return self._collate(samples), len(samples)
