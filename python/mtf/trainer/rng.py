"""Random numbers of the training step itself: dropout, noise, whatever the user's step draws."""

from __future__ import annotations

import random
import warnings
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from mtf import _core
from mtf.call_site import user_level
from mtf.data.rng.generators import GeneratorSnapshot, seed_generators, set_numpy_state, untouched


class StepRng:
    """Puts the process-wide generators where a training step expects them.

    ``"derived"``: before step k (counted over the whole training) they are seeded from
    ``fold_in(fold_in(seed, "step"), k)``, so that a state needs no generator words. ``"saved"``: they run on, and
    their states are part of the trainer's state.
    """

    def __init__(self, seed: int, mode: Literal["derived", "saved"], device: torch.device, rank: int = 0) -> None:
        self._key = _core.fold_in(seed, "step")
        self._rank = rank
        self._validation_key = _core.fold_in(seed, "validation")
        self._cuda = device if device.type == "cuda" else None
        self.is_derived = mode == "derived"
        self._before_window: GeneratorSnapshot | None = None
        self._cuda_before_window: torch.Tensor | None = None
        self._outside_validation: dict[str, Any] | None = None

    def begin_window(self) -> None:
        """Called before a window; under ``"saved"`` it notes the generators' states, for ``roll_back``."""
        if not self.is_derived:
            self._before_window = GeneratorSnapshot()
            if self._cuda is not None:
                self._cuda_before_window = torch.cuda.get_rng_state(self._cuda)

    def roll_back(self) -> None:
        """Puts the generators where the window found them."""
        if self._before_window is not None:
            self._before_window.go_back()
        if self._cuda_before_window is not None:
            torch.cuda.set_rng_state(self._cuda_before_window, self._cuda)  # type: ignore[arg-type]  # a device then

    def begin(self, step: int) -> None:
        """Called before training step ``step``."""
        if self.is_derived:
            key = _core.fold_in(self._key, step)
            # Ranks hold other samples, which must not get the same noise.
            # guard: random numbers of a step
            self._seed(_core.fold_in(key, self._rank) if self._rank else key)

    def _seed(self, key: int) -> None:
        seed_generators(key)
        if self._cuda is not None:
            torch.cuda.default_generators[self._cuda.index or 0].manual_seed(key)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Inside, the generators stand at a fixed key; afterwards training continues as if nothing had been drawn."""
        cuda = None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)
        outer = self._outside_validation
        self._outside_validation = self.state_dict()
        try:
            with untouched():
                self._seed(self._validation_key)
                yield
        finally:
            self._outside_validation = outer
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._cuda)  # type: ignore[arg-type]  # a device, as cuda is set

    def state_dict(self) -> dict[str, Any]:
        """Empty when derived; else the state of each generator, inside a validation that of training."""
        if self.is_derived:
            return {}
        if self._outside_validation is not None:
            return self._outside_validation
        kind, words, position, has_gauss, gauss = np.random.get_state()
        version, python_words, python_gauss = random.getstate()
        state = {
            "torch": torch.get_rng_state(),
            "numpy": (str(kind), np.asarray(words, dtype="<u4").tobytes(), int(position), int(has_gauss), float(gauss)),
            "random": (version, array("I", python_words).tobytes(), python_gauss),
        }
        if self._cuda is not None:
            state["cuda"] = torch.cuda.get_rng_state(self._cuda)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts each generator back."""
        if self.is_derived or not state:
            return
        torch.set_rng_state(state["torch"])
        kind, words, position, has_gauss, gauss = state["numpy"]
        set_numpy_state((kind, np.frombuffer(words, dtype="<u4").astype(np.uint32), position, has_gauss, gauss))
        version, python_words, python_gauss = state["random"]
        random.setstate((version, tuple(array("I", python_words)), python_gauss))
        if self._cuda is not None and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self._cuda)

    def for_rank(self, parts: Sequence[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
        """What a rank takes of the states of another number of ranks; under ``"saved"`` some ranks have none."""
        if parts[0] and rank == 0:
            warnings.warn(
                f"the state was saved by {len(parts)} ranks, here are {world_size}: under step_rng='saved' random "
                "numbers of steps can't continue exactly; step_rng='derived' needs no state",
                stacklevel=user_level(),
            )
        return parts[rank] if rank < len(parts) else {}
