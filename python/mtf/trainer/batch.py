"""Batches as the trainer sees them: nested containers of tensors, and a place in what goes wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from mtf.data.protocols import length_of as length_of_loader
from mtf.data.sources.base import Source


def num_samples(batch: Any) -> int:
    """First dimension of the first tensor (or array) found in ``batch``; 1 where there is none."""
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor) and batch[0].dim():
        return batch[0].shape[0]  # by far the most common case
    found = _first_dimension(batch)
    return 1 if found is None else found


def _first_dimension(batch: Any) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    if isinstance(batch, (str, bytes)):
        return None
    if isinstance(batch, (list, tuple)):
        parts: Any = batch
    elif isinstance(batch, Mapping):
        parts = batch.values()
    elif dataclasses.is_dataclass(batch):
        parts = (getattr(batch, f.name) for f in dataclasses.fields(batch))
    else:
        shape = getattr(batch, "shape", None)
        return int(shape[0]) if shape else None
    for part in parts:
        found = _first_dimension(part)
        if found is not None:
            return found
    return None


def length_of(loader: Any) -> int | None:
    """Batches in one pass of ``loader``, or None where that can't be known."""
    return loader.num_batches() if isinstance(loader, Source) else length_of_loader(loader)


def one_pass(loader: Any) -> Iterable[Any]:
    """The batches of ``loader`` once; a source always gives its first pass, and keeps no position."""
    return _Pass(loader) if isinstance(loader, Source) else loader


class _Pass:
    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Any]:
        stream = self._source.open(0, 0, 0)
        try:
            while True:
                try:
                    batch = next(stream)
                except StopIteration:
                    return
                yield batch
        finally:
            stream.close()


def add_note(error: Exception, note: str) -> None:
    """Says below the error's traceback (from Python 3.11 on) what was worked on."""
    method = getattr(error, "add_note", None)
    if method is not None:
        method(note)
