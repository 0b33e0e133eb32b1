"""Helpers for tests: does a loader give the same batches after it was interrupted anywhere?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from mtf.config.mixture import MultiDataLoaderConfig
from mtf.data.determinism.content_hash import content_hash
from mtf.data.multi_loader import MultiLoader
from mtf.enums import EpochLengthPolicy

_ENDLESS = 2**40  # steps of an epoch that no test reaches


def assert_resumes_exactly(
    make_loader: Callable[..., Any],
    *,
    workers: Sequence[int] | None = None,
    passes: int = 2,
    every: int = 1,
    max_batches: int = 200,
    seed: int = 0,
    change_state: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: state,
) -> int:
    """Checks that a loader that is interrupted before any batch of its first passes continues exactly.

    The loader is read through ``passes`` passes, with the state taken before every batch. Every state is loaded into
    a fresh loader, whose batches must have the same content to the end. Then the same is done in one chain: a fresh
    loader at every step, each from the state of the one before.

    Args:
        make_loader: Makes the loader, as anew as a new process would. Called with each of ``workers``, if given.
        workers: Numbers of worker processes to try; all must give the same batches.
        passes: Passes to read; 1 for loaders that can't start again.
        every: Check every n-th state, to save time with slow loaders.
        max_batches: Batches to read at most, for passes that are long or don't end.
        seed: Of the mixture.
        change_state: What to do to a state before it is loaded; to see that the check fails without a part of it.

    Returns:
        How many batches were compared.

    Raises:
        AssertionError: Names the interruption, the first batch that differs, and what was expected.
    """
    reference: list[str] | None = None
    for num_workers in workers if workers is not None else (None,):

        def make(num_workers: int | None = num_workers) -> Any:
            return make_loader() if num_workers is None else make_loader(num_workers)

        label = "" if num_workers is None else f" with {num_workers} workers"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*are produced again and dropped")
            batches, states = _read(make, seed, passes, max_batches)
            if reference is not None and batches != reference:
                raise AssertionError(f"the batches{label} differ from those with {next(iter(workers or ()))} workers")
            reference = batches
            for cut in range(0, len(batches), every):
                tail = _resume(make, seed, change_state(copy.deepcopy(states[cut])), len(batches) - cut)
                _compare(f"interrupted before batch {cut}{label}", cut, batches, tail)
            state = states[0]
            for cut in range(0, len(batches), every):
                piece = batches[cut : cut + every]
                with _mixture(make(), seed) as loader:
                    loader.load_state_dict(change_state(copy.deepcopy(state)))
                    tail = [content_hash(batch.data) for _, batch in zip(piece, loader, strict=False)]
                    state = copy.deepcopy(loader.state_dict())
                _compare(f"interrupted every {every} batches{label}", cut, batches, tail)
    return len(reference or ())


def _mixture(loader: Any, seed: int) -> MultiLoader:
    config = MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=_ENDLESS)
    return MultiLoader({"loader": loader}, config, seed=seed)


def _read(make: Callable[[], Any], seed: int, passes: int, max_batches: int) -> tuple[list[str], list[dict[str, Any]]]:
    batches: list[str] = []
    with _mixture(make(), seed) as loader:
        states = [copy.deepcopy(loader.state_dict())]
        length = loader.schedule.lengths[0]
        if length is not None:
            max_batches = min(max_batches, passes * length)
        iterator = iter(loader)
        while len(batches) < max_batches:
            batch = next(iterator)
            if batch.pass_ >= passes:
                break
            batches.append(content_hash(batch.data))
            states.append(copy.deepcopy(loader.state_dict()))
    return batches, states


def _resume(make: Callable[[], Any], seed: int, state: dict[str, Any], num_batches: int) -> list[str]:
    with _mixture(make(), seed) as loader:
        loader.load_state_dict(state)
        iterator = iter(loader)
        return [content_hash(next(iterator).data) for _ in range(num_batches)]


def _compare(label: str, start: int, expected: list[str], found: list[str]) -> None:
    for place, (one, other) in enumerate(zip(expected[start:], found, strict=False), start):
        if one != other:
            where = expected.index(other) if other in expected else None
            seen = "content that the uninterrupted run never gave" if where is None else f"what batch {where} is"
            raise AssertionError(f"{label}: batch {place} is {seen}")
