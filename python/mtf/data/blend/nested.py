"""A blend as one source of another: its samples are the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.blend.items import BlendCollate
from mtf.data.blend.preview.datasets import BlendDataset
from mtf.data.blend.rows import Rows, RowSource
from mtf.data.blend.run import BlendRun
from mtf.data.blend.sizes import BatchSizes


class BlendRows(RowSource):
    """The samples of a blend as rows: place ``j`` of pass ``q`` is its sample ``q * num_rows + j``.

    So the outer blend takes the inner one's samples one after the other, in the inner shares and order.

    Args:
        config: The inner mixture of samples.
        rows: What its rows are taken from, by name.
        sizes: Samples of its batches, which decide when a curve changes its weights.
        num_rows: Samples in one of its passes.
        key: Of its random numbers; None: that of the outer blend for this source.
    """

    def __init__(
        self,
        config: MultiDataLoaderConfig,
        rows: Mapping[str, Rows],
        sizes: BatchSizes,
        num_rows: int,
        key: int | None,
    ) -> None:
        self._config, self._rows, self._sizes = config, dict(rows), sizes
        self._num_rows, self._key = num_rows, key
        self._opened: tuple[int, BlendDataset] | None = None

    def num_rows(self) -> int:
        return self._num_rows

    def row(self, pass_: int, place: int, key: int) -> Any:
        return self.read_rows([(pass_, place)], key)[0]

    def read_rows(self, places: Sequence[tuple[int, int]], key: int) -> list[Any]:
        samples = self._samples(key if self._key is None else self._key)
        return [sample for _, sample in samples.__getitems__([pass_ * self._num_rows + at for pass_, at in places])]

    def _samples(self, key: int) -> BlendDataset:
        if self._opened is None or self._opened[0] != key:
            run = BlendRun(self._config, self._rows, self._sizes, key, {}, lambda run: ([], []))
            self._opened = key, BlendDataset(run, self._num_rows, BlendCollate(None, by_source=False))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
