"""What a blend takes its rows from: arrays and token rows that the core gathers, datasets, and sources of one's own."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset, default_collate

from mtf import _core
from mtf.config.checks import whole_number
from mtf.data.sources.array import DLPACK, RAW, ArrayLoader, common_rows, flatten_arrays, import_dlpack
from mtf.data.sources.base import Source
from mtf.data.sources.resolve import refuse_wrapped
from mtf.data.tracing.samples import Provenance
from mtf.errors import ConfigError
from mtf.formatting import plain_repr, shortened

Build = Callable[[list[Any], int, int], Any]
Column = tuple[Sequence[int], int, int, Callable[[Any], torch.Tensor]]


def columns_of(fields: Sequence[tuple[str, str, tuple[int, ...], bool]]) -> list[Column]:
    """What the core needs to make tensors of ``fields``, as ``RowSource.fields`` lists them: shape of a row, DLPack's
    type code and bits, and what makes a tensor of a capsule."""
    return [_column(shape, getattr(torch, dtype)) for _, dtype, shape, _ in fields]


def _column(shape: tuple[int, ...], dtype: torch.dtype) -> Column:
    if dtype in DLPACK:
        return shape, *DLPACK[dtype], import_dlpack
    raw = DLPACK[RAW[dtype.itemsize]]
    return shape, *raw, lambda capsule: import_dlpack(capsule).view(dtype)


class RowSource(ABC):
    """Single rows for a ``Blend``, addressed by pass and place. Implement it to blend anything whose passes differ.

    A dataset with ``__len__`` and ``__getitem__`` needs no such class: its passes are shuffled by the blend.
    """

    def __repr__(self) -> str:
        """The class and its plain attributes."""
        return plain_repr(self)

    @abstractmethod
    def num_rows(self) -> int:
        """Rows of one pass, the same for every pass, at least 1."""

    @abstractmethod
    def row(self, pass_: int, place: int, key: int) -> Any:
        """The row at ``place`` in the order of pass ``pass_``: a sample, as a dataset's ``__getitem__`` gives one.

        The same arguments give the same row in every process, and each place of a pass another row.

        Args:
            pass_: The pass, counted from 0.
            place: In ``[0, num_rows())``; the blend asks for 0, 1, 2 ... and shuffles nothing.
            key: Key of the source's random numbers; ``mtf.Permutation(n, mtf.fold_in(key, pass_))`` is the order that
                datasets have.
        """

    def read_rows(self, places: Sequence[tuple[int, int]], key: int) -> list[Any]:
        """The rows at several (pass, place), in their order. Override it where that is faster than one by one.

        Args:
            places: Pairs of pass and place.
            key: As for ``row``.
        """
        return [self.row(pass_, place, key) for pass_, place in places]


class NativeRows:
    """Rows that the core gathers without Python.

    What ``Blend`` asks for of any object that has a ``native_rows()`` method: token windows and packed rows give one.

    Args:
        make: Makes the core's rows. Called once per process, so that workers make their own.
        build: Makes a row or batch of its tensors; None: it is the only tensor; a tuple: a dict with these keys.
        tokens_per_row: Real tokens in a row on average, where that is known.
        supervised_tokens_per_row: Labels of a row that a loss counts, on average; a function where that has to be
            found out.
        provenance: Says which tokens a row holds, and which rows a document; None where the rows have no tokens.
    """

    def __init__(
        self,
        make: Callable[[], _core.RowSource],
        build: Callable[[list[Any]], Any] | tuple[str, ...] | None,
        tokens_per_row: float | None = None,
        supervised_tokens_per_row: float | Callable[[], float] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        self._make = make
        self.build = build
        self.tokens_per_row = tokens_per_row
        self._supervised = supervised_tokens_per_row
        self.provenance = provenance
        self._core: tuple[int, _core.RowSource] | None = None

    @property
    def core(self) -> _core.RowSource:
        """The core's rows, which belong to this process: a fork's copy may hold a lock of a thread that it hasn't."""
        if self._core is None or self._core[0] != os.getpid():
            self._core = os.getpid(), self._make()
        return self._core[1]

    @property
    def supervised_tokens_per_row(self) -> float | None:
        """Labels of a row that a loss counts, on average, where that is known."""
        if callable(self._supervised):
            self._supervised = self._supervised()
        return self._supervised

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_core": None}

    @property
    def num_rows(self) -> int:
        return self.core.num_rows

    def structure(self) -> Any:
        """What a row looks like: numbers of its fields in the places of its tensors, and what each field is."""
        fields = self.core.fields
        numbers = list(range(len(fields)))
        layout = [(dtype, shape, counts) for _, dtype, shape, counts in fields]
        return self.built([*numbers, *(len(fields),) * self.has_cu_seqlens]), layout

    @property
    def has_cu_seqlens(self) -> bool:
        return any(counts for *_, counts in self.core.fields)

    def built(self, tensors: list[Any]) -> Any:
        """The batch (or anything else of its structure) with ``tensors`` in their places."""
        if self.build is None:
            return tensors[0]
        if isinstance(self.build, tuple):
            return dict(zip(self.build, tensors, strict=True))
        return self.build(tensors)

    def items(self, key: int, pass_: int, places: Sequence[int]) -> list[Any]:
        """Single rows, each with the structure of a batch and without its first dimension."""
        core = self.core
        stacked = core.read(key, pass_, np.asarray(places, np.uint64), columns_of(core.fields))
        names = self.build[: len(stacked)] if isinstance(self.build, tuple) else self.build
        single = NativeRows(self._make, names)
        return [single.built([tensor[place] for tensor in stacked]) for place in range(len(places))]


class _ArrayFactory:
    """Makes the core's rows of arrays; can be sent to worker processes."""

    def __init__(self, arrays: list[Any], names: list[str], dtypes: list[str], window: tuple[int, int] | None) -> None:
        self.arrays, self.names, self.dtypes, self.window = arrays, names, dtypes, window

    def __call__(self) -> _core.RowSource:
        return _core.ArrayRows(self.arrays, self.names, self.dtypes, windows=self.window)

    def first(self, num_rows: int) -> _ArrayFactory:
        """The first rows, or windows."""
        entries = num_rows if self.window is None else (num_rows - 1) * self.window[1] + self.window[0]
        return _ArrayFactory([array[:entries] for array in self.arrays], self.names, self.dtypes, self.window)


class _GrownFactory:
    """Makes the core's rows of arrays that have grown; can be sent to worker processes."""

    def __init__(self, now: _ArrayFactory, num_before: int, pass_: int) -> None:
        self.now, self.then, self.pass_ = now, now.first(num_before), pass_

    def __call__(self) -> _core.RowSource:
        return _core.GrownRows(self.now(), self.then(), self.pass_)


def may_grow(rows: Rows) -> bool:
    """Whether the rows that there were can still be given in their order when there are more."""
    if isinstance(rows, NativeRows):
        return isinstance(rows._make, _ArrayFactory)
    return not isinstance(rows, RowSource)


def is_permuted(rows: Rows) -> bool:
    """Whether a pass takes the rows in the order ``mtf.Permutation(rows, mtf.fold_in(key, pass_))``."""
    if isinstance(rows, NativeRows):
        return isinstance(rows._make, _ArrayFactory | _GrownFactory)
    return not isinstance(rows, RowSource)


def grown_rows(rows: NativeRows, num_before: int, pass_: int) -> NativeRows:
    """The rows of arrays that had ``num_before`` rows when pass ``pass_`` began."""
    assert isinstance(rows._make, _ArrayFactory)
    return NativeRows(_GrownFactory(rows._make, num_before, pass_), rows.build, rows.tokens_per_row, rows._supervised)


def array_rows(data: Any, window: tuple[int, int] | None = None) -> NativeRows:
    """Rows of the arrays in ``data``, or windows (length, stride) of them.

    Raises:
        ConfigError: As ``ArrayLoader`` raises, and for arrays without a row.
    """
    columns, build = flatten_arrays(data)
    if common_rows(columns) == 0:
        raise ConfigError("the arrays must have at least one row, but they are empty")
    if window is not None and _core.count_windows(common_rows(columns), *window) == 0:
        raise ConfigError(
            f"the arrays must have at least {window[0]} entries, one window, but have {common_rows(columns)}"
        )
    is_flat = isinstance(data, Mapping) and [f"[{key!r}]" for key in data] == [column.path for column in columns]
    names = [str(key) for key in data] if is_flat else [column.path for column in columns]
    make = _ArrayFactory([c.array for c in columns], names, [c.torch_name for c in columns], window)
    return NativeRows(make, None if columns[0].path == "" else tuple(data) if is_flat else build)


class Windows:
    """Windows of a stream as rows of a ``Blend``: window ``i`` is ``tokens[i * stride : i * stride + length]``.

    Args:
        tokens: One or several arrays of equal length, as ``ArrayLoader`` takes them; a memory map works as well.
        length: Entries of a window.
        stride: Entries from one window's start to the next one's; None means ``length``, so windows don't overlap.
            Entries after the last whole window aren't seen.

    Raises:
        ConfigError: Arrays that ``ArrayLoader`` refuses, a number below 1, or fewer entries than one window has.
    """

    def __init__(self, tokens: Any, length: int, stride: int | None = None) -> None:
        self._tokens = tokens
        self._window = (
            whole_number("length", length, 1),
            whole_number("stride", length if stride is None else stride, 1),
        )

    def native_rows(self) -> NativeRows:
        """The windows, for the core."""
        return array_rows(self._tokens, self._window)

    def __repr__(self) -> str:
        """Length and stride."""
        return f"Windows(length={self._window[0]}, stride={self._window[1]})"


Rows = NativeRows | RowSource | Any
"""Native rows, a RowSource, or a map-style dataset."""


def as_rows(data: Any, name: str) -> Rows:
    """What a blend takes the rows of ``data`` from.

    Raises:
        ConfigError: ``data`` has no single rows, or none at all; the message says what to pass instead.
    """
    where = f"source {name!r}"
    if hasattr(data, "native_rows"):
        try:
            return data.native_rows()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if hasattr(data, "single_rows"):
        try:
            data = data.single_rows()
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if isinstance(data, RowSource):
        return _checked_length(data, data.num_rows(), where)
    _refuse_batches(data, where)
    if type(data) is TensorDataset and all(tensor.device.type == "cpu" for tensor in data.tensors):
        data = list(data.tensors)  # torch's collate function makes lists of tuples
    if _holds_arrays(data):
        try:
            return array_rows(data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if isinstance(data, IterableDataset) or not hasattr(type(data), "__getitem__") or isinstance(data, Mapping):
        raise ConfigError(
            f"{where} must give single rows: arrays, a dataset with __len__ and __getitem__, mtf.Windows, token rows "
            f"or a mtf.RowSource, but is {shortened(repr(data))}; mix whole batches of it with mtf.MultiLoader"
        )
    try:
        length = len(data)
    except TypeError:
        raise ConfigError(
            f"{where}: {type(data).__name__} has no __len__, so its passes can't be told apart; give it one, or mix "
            "whole batches of it with mtf.MultiLoader"
        ) from None
    return _checked_length(data, length, where)


def datasets_of(
    sources: Mapping[str, Any], collate_fn: Any, by_source: bool, options: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """Takes DataLoaders apart, where a blend of their datasets does what they say.

    That is so for a map-style dataset whose rows are shuffled, each once per pass.

    Args:
        sources: Name -> data; what isn't a DataLoader stays as it is.
        collate_fn: As ``Blend`` takes it.
        by_source: As ``Blend`` takes it.
        options: Those of the blend's loader, which replace the DataLoaders' own.

    Returns:
        The sources with datasets in place of DataLoaders, and the function that collates their samples.

    Raises:
        ConfigError: A DataLoader that does something else; the message says what to pass instead.
    """
    found, own = dict(sources), {}
    for name, loader in sources.items():
        if not isinstance(loader, DataLoader):
            continue
        refuse_wrapped(loader, f"source {name!r}")
        why = _why_not_apart(loader, options)
        if why is not None:
            raise _no_rows_of(f"source {name!r}", why)
        found[name] = loader.dataset
        if loader.collate_fn is not default_collate:
            own[name] = loader.collate_fn
    if not own or collate_fn is not None:
        return found, collate_fn
    if by_source:
        return found, own
    first = next(iter(own))
    if any(own.get(name) is not own[first] for name in sources):
        raise ConfigError(
            f"source {first!r} is a DataLoader with a collate_fn of its own, which not all sources have: give the one "
            "that makes a batch of all their samples as collate_fn=... to mtf.Blend, or by_source=True"
        )
    return found, own[first]


def _why_not_apart(loader: DataLoader[Any], options: Mapping[str, Any]) -> str | None:
    """What of a DataLoader a blend of its dataset wouldn't do; None where there is nothing."""
    if type(loader) is not DataLoader:
        return f"{type(loader).__name__} may do more than torch's DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return "its dataset is an IterableDataset, which has no rows by number"
    sampler = loader.sampler
    if type(loader.batch_sampler) is not BatchSampler:
        return "its batches are made by a batch_sampler, or by the dataset"
    if type(sampler) is not RandomSampler or sampler.replacement or sampler.num_samples != len(loader.dataset):  # type: ignore[arg-type]
        return f"it draws rows with a {type(sampler).__name__}, and a blend draws each once per pass, shuffled"
    for option in ("num_workers", "worker_init_fn", "pin_memory", "timeout"):
        if getattr(loader, option) and option not in options:
            return f"it has {option}={getattr(loader, option)!r}, which is one for all sources of a blend"
    return None


def _no_rows_of(where: str, why: str) -> ConfigError:
    return ConfigError(
        f"{where} is a DataLoader, which makes batches of its own: {why}. Pass its dataset, and its collate_fn and "
        "num_workers to mtf.Blend; or mix whole batches with mtf.MultiLoader"
    )


def num_rows_of(rows: Rows) -> int:
    """Rows of one pass."""
    if isinstance(rows, NativeRows):
        return rows.num_rows
    return rows.num_rows() if isinstance(rows, RowSource) else len(rows)


def _checked_length(rows: Rows, length: int, where: str) -> Rows:
    if length < 1:
        raise ConfigError(f"{where} must have at least one row, but has {length}")
    return rows


def _refuse_batches(data: Any, where: str) -> None:
    refuse_wrapped(data, where)
    if isinstance(data, DataLoader):
        raise _no_rows_of(where, "its batches are its own")
    if isinstance(data, ArrayLoader):
        raise ConfigError(
            f"{where} is an ArrayLoader, which makes batches of its own: pass its arrays, or mtf.Windows(...) for "
            "windows"
        )
    if isinstance(data, Source):
        raise ConfigError(
            f"{where} is a {type(data).__name__}, which gives batches: pass its data, or a mtf.RowSource that gives "
            "its rows; or mix whole batches with mtf.MultiLoader"
        )


def _holds_arrays(data: Any) -> bool:
    """Whether ``data`` is an array, or a container of nothing but arrays."""
    if isinstance(data, torch.Tensor | np.ndarray):
        return True
    if isinstance(data, Mapping):
        return bool(data) and all(map(_holds_arrays, data.values()))
    return isinstance(data, list | tuple) and bool(data) and all(map(_holds_arrays, data))
