"""What is done in one process of the matrix: an uninterrupted run, or one that continues from a state."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matrix

from mtf import EpochLengthPolicy, MultiDataLoaderConfig, MultiLoader, check_source
from mtf.checkpoint.format import codec
from mtf.data.determinism.content_hash import content_hash
from mtf.data.sources import iterator_stream, stateful
from mtf.data.sources.resolve import as_source
from mtf.testing import assert_resumes_exactly

INSIDE = 2  # batches before the first interruption
LATER = 2  # batches of pass 1 before the last interruption
AFTER = 2  # batches of pass 2 that are still compared
ENOUGH = 25  # batches of a pass that doesn't end


def maker(request: dict[str, Any]) -> Callable[[], Any]:
    """The function that makes a row's loader, its data made before."""
    row = matrix.BY_NAME[request["row"]]
    module = importlib.import_module(row.module)
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    make = getattr(module, row.name)
    return lambda: make(request["workers"], folder)


def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Makes a row's data."""
    row = matrix.BY_NAME[request["row"]]
    module = importlib.import_module(row.module)
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    write = getattr(module, f"write_{row.name}", None)
    if write is not None:
        write(folder)
    return {}


def _mixture(make: Callable[[], Any], remember: bool = False) -> MultiLoader:
    config = MultiDataLoaderConfig(epoch_length_policy=EpochLengthPolicy.FIXED_NUM_STEPS, steps_per_epoch=2**40)
    return MultiLoader({"loader": make()}, config, seed=5, remember_batches=remember)


def uninterrupted(request: dict[str, Any]) -> dict[str, Any]:
    """Passes 0 and 1 and a little of pass 2; writes the states before each batch."""
    hashes, places, states = [], [], []
    with _mixture(maker(request), remember=True) as loader:
        states.append(_encoded(loader))
        mode = as_source(maker(request)(), "other").resume_mode.name
        for batch in loader:
            hashes.append(content_hash(batch.data))
            places.append((batch.pass_, batch.batch))
            states.append(_encoded(loader))
            if places[-1] == (2, AFTER - 1) or len(hashes) == ENOUGH:
                break
    Path(request["states"]).write_bytes(pickle.dumps(states))
    return {"hashes": hashes, "places": places, "mode": mode}


def resumed(request: dict[str, Any]) -> dict[str, Any]:
    """Continues from state number ``cut``, up to ``until``; writes the states after it."""
    with _CountedReads() as reads, _mixture(maker(request), remember=True) as loader:
        loader.load_state_dict(_decoded(pickle.loads(Path(request["states"]).read_bytes())[request["cut"]]))
        hashes, states = [], {}
        iterator = iter(loader)
        before = None
        for place in range(request["cut"], request["until"]):
            batch = next(iterator)
            before = reads.count - 1 if before is None else before
            hashes.append(content_hash(batch.data))
            states[place + 1] = _encoded(loader)
    Path(request["new_states"]).write_bytes(pickle.dumps(states))
    return {"hashes": hashes, "read": max(0, before or 0)}


def verified(request: dict[str, Any]) -> dict[str, Any]:
    """Whether ``verify_recent_batches`` finds nothing wrong in the state number ``cut``."""
    with _mixture(maker(request), remember=True) as loader:
        loader.load_state_dict(_decoded(pickle.loads(Path(request["states"]).read_bytes())[request["cut"]]))
        loader.verify_recent_batches()
    return {}


def checked(request: dict[str, Any]) -> dict[str, Any]:
    """What ``check_source`` says."""
    report = check_source(maker(request))
    return {"ok": report.ok, "text": repr(report)}


def asserted(request: dict[str, Any]) -> dict[str, Any]:
    """Whether ``assert_resumes_exactly`` finds nothing."""
    return {"compared": assert_resumes_exactly(maker(request), every=3, max_batches=ENOUGH)}


class _CountedReads:
    """Counts batches that are read of loaders whose positions aren't computed."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _CountedReads:
        for cls in (iterator_stream.IteratorStream, stateful._StatefulStream):
            cls.__next__ = self._counting(cls.__next__)
        return self

    def __exit__(self, *_: object) -> None: ...

    def _counting(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(stream: Any) -> Any:
            data = function(stream)
            self.count += 1
            return data

        return counted


def _encoded(loader: MultiLoader) -> tuple[str, dict[str, Any]]:
    """The state as a checkpoint holds it."""
    encoded, tensors = codec.split(loader.state_dict(), copy=True)
    return json.dumps(encoded), tensors


def _decoded(encoded: tuple[str, dict[str, Any]]) -> Any:
    return codec.join(json.loads(encoded[0]), encoded[1])


ACTIONS = {
    "prepare": prepare,
    "uninterrupted": uninterrupted,
    "resumed": resumed,
    "verified": verified,
    "checked": checked,
    "asserted": asserted,
}
