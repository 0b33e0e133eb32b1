"""Iteration of a native source by itself, without a mixture: one pass after the other, with a position as its state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mtf import _core
from mtf.data.prefetch.engine import Engine
from mtf.data.prefetch.source_reader import PassEnded
from mtf.data.sources.base import Source
from mtf.errors import StateMismatch

_STATE_VERSION = 1
_REQUESTS_AHEAD = 64


class StandaloneSource(Source):
    """A source with ``native`` that can be iterated as it is.

    Args:
        seed: For iteration without a mixture, which has its own seed.
        num_threads: Threads that fetch ahead.
        prefetch_batches: Batches that these may hold.
        prefetch_bytes: Bytes that these may hold, or None.
    """

    def _prepare_alone(self, seed: int, num_threads: int, prefetch_batches: int, prefetch_bytes: int | None) -> None:
        self.num_threads = num_threads
        self._seed = seed
        self._prefetch_batches = prefetch_batches
        self._prefetch_bytes = prefetch_bytes
        self._next_pass = 0
        self._next_batch = 0

    @abstractmethod
    def _shape(self) -> dict[str, int | None]:
        """What has to be the same for a position to mean the same batch."""

    def __iter__(self) -> Iterator[Any]:
        """One pass, and the next one at the next call; after ``load_state_dict``, the rest of the state's pass."""
        native = self.native(_core.fold_in(_core.fold_in(self._seed, "source"), self.name))
        assert native is not None
        pass_, batch, end = self._next_pass, self._next_batch, self.num_batches()
        with Engine([native], self.num_threads, self._prefetch_batches, self._prefetch_bytes) as engine:
            requested = batch
            while end is None or batch < end:
                if batch == requested:
                    requested = batch + _REQUESTS_AHEAD if end is None else min(end, batch + _REQUESTS_AHEAD)
                    count = requested - batch
                    engine.request(
                        np.zeros(count, np.int32),
                        np.full(count, pass_, np.int64),
                        np.arange(batch, requested, dtype=np.int64),
                    )
                try:
                    data = engine.take(0)
                except PassEnded:
                    break
                batch += 1
                self._next_pass, self._next_batch = pass_, batch
                yield data
                del data  # its memory is free for the next batch, unless the caller still has it
        self._next_pass, self._next_batch = pass_ + 1, 0

    def state_dict(self) -> dict[str, int | None]:
        """Where iteration without a mixture stands: after the batch handed out last."""
        return {
            "version": _STATE_VERSION,
            "pass": self._next_pass,
            "batch": self._next_batch,
            **self._shape(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues there in the next ``iter``.

        Raises:
            StateMismatch: A state of other data or of another global batch size; nothing is changed.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise StateMismatch(
                f"the state of this {type(self).__name__} has the fields {sorted(own)}, but this one has "
                f"{sorted(state)}"
            )
        for field in set(own) - {"pass", "batch"}:
            if state[field] != own[field]:
                raise StateMismatch(f"{field} is {own[field]} here, but {state[field]} in the state")
        end = self.num_batches()
        if state["pass"] < 0 or state["batch"] < 0 or (end is not None and state["batch"] > end):
            raise StateMismatch(
                f"pass and batch must lie within {end} batches, but are {state['pass']} and {state['batch']}"
            )
        self._next_pass, self._next_batch = state["pass"], state["batch"]
