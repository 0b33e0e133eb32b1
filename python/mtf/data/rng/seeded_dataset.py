"""A map-style dataset whose every batch is produced under generators seeded from the batch's key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtf.data.protocols import epoch_setters
from mtf.data.rng.batch_rng import begin_batch
from mtf.data.rng.generators import seed_generators
from mtf.data.rng.owned_generators import OwnedGenerators

_NUM_LOOKS = 2  # batches of a process after which generators are looked for again


class SeededDataset:
    """Its index carries the batch's key and pass: ``(key, pass, index)`` or ``(key, pass, indices)``.

    It seeds the process-wide generators and those that the dataset, its transforms and the collate function keep, and
    then reads from the user's dataset, in a worker process as in the training process. The collate function is called
    right after it and draws from the same generators. ``set_epoch`` of the dataset is called with every new pass,
    wherever the dataset lives. A dataset may define ``set_batch_seed(key)``, which is called last.

    Args:
        dataset: The user's.
        collate: Makes a batch of samples; it may keep generators as well.
    """

    def __init__(self, dataset: Any, collate: Any = None) -> None:
        self.dataset = dataset
        self._collate = collate
        self._set_batch_seed = getattr(dataset, "set_batch_seed", None)
        self._getitems = getattr(dataset, "__getitems__", None)
        self._pass: int | None = None
        self._setters: list[Callable[[int], Any]] = []
        self._owned: OwnedGenerators | None = None
        self._looks_left = _NUM_LOOKS
        self._keyed: tuple[int | None, int, Any] = (None, 0, None)  # the index of the last fetch
        self._is_batch = False

    @property
    def owned(self) -> OwnedGenerators:
        """Generators that the dataset and the collate function keep, found when first needed in this process."""
        if self._owned is None or not self._owned.is_of_this_process:
            self._owned = OwnedGenerators(self.dataset, self._collate)
            self._looks_left = _NUM_LOOKS
        return self._owned

    def __getitems__(self, keyed: tuple[int | None, int, list[Any]]) -> Any:
        self._prepare(keyed)
        self._is_batch = True
        if self._getitems:
            return self._getitems(keyed[2])
        dataset = self.dataset
        return [dataset[index] for index in keyed[2]]

    def __getitem__(self, keyed: tuple[int | None, int, Any]) -> Any:
        self._prepare(keyed)
        return self.dataset[keyed[2]]

    def collate(self, samples: Any) -> Any:
        """The batch of the samples fetched last.

        Some transforms and collate functions make their generators at their first call, or later. A batch in which
        that happened is fetched again, now with these generators seeded as well.
        """
        data = self._collate(samples)
        if self._keyed[0] is None:
            return data
        if self._looks_left:
            self._looks_left -= 1
            has_more = self.owned.look_again()
        else:
            has_more = self.owned.look_if_changed()
        if has_more:
            return self._collate((self.__getitems__ if self._is_batch else self.__getitem__)(self._keyed))
        return data

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs; it finds the generators of its own copies itself."""
        return {**vars(self), "_owned": None, "_setters": [], "_pass": None}

    def _prepare(self, keyed: tuple[int | None, int, Any]) -> None:
        self._keyed = keyed
        key, pass_ = keyed[0], keyed[1]
        if pass_ != self._pass:
            if self._pass is None:
                self._setters = epoch_setters(self.dataset)
            for set_epoch in self._setters:
                set_epoch(pass_)
            self._pass = pass_
        if key is not None:
            # guard: seed of a batch
            seed_generators(key)
            self.owned.seed(key)
            begin_batch(key)
            if self._set_batch_seed is not None:
                self._set_batch_seed(key)
