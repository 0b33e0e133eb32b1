"""Tries a loader out: is it the same again at the same position, after a resume, and for any number of workers?"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mtf._core import fold_in
from mtf.data.determinism.content_hash import content_hash
from mtf.data.sources.base import ResumeMode, Snapshot, Source
from mtf.data.sources.iterable import IterableSource
from mtf.data.sources.resolve import as_source
from mtf.data.sources.threaded import ThreadLoader
from mtf.data.sources.torch_map import TorchSource

_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)

_ADDRESSING = {
    ResumeMode.SEEK: "any position opens directly; a resume reads no data",
    ResumeMode.STATEFUL: "its own state is saved with every batch, and given back to it at a resume",
    ResumeMode.REPLAY: "a resume produces the batches before the position again and drops them",
}


@dataclass
class Finding:
    """One thing that was tried.

    Attributes:
        claim: What should hold, in words.
        holds: Whether it does.
        detail: What was seen instead, empty where it holds.
    """

    claim: str
    holds: bool
    detail: str = ""


@dataclass
class SourceReport:
    """What ``check_source`` found.

    Attributes:
        loader: Class of the loader.
        resume_mode: How a position is reached, in words.
        num_batches: Batches of a pass, None where unknown.
        findings: What was tried.
        suspects: Where something doesn't hold: what it may come from, and what to do.
        notes: What is known not to hold for loaders of this kind.
    """

    loader: str
    resume_mode: str
    num_batches: int | None
    findings: list[Finding] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything that was tried holds."""
        return all(finding.holds for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"ok": self.ok, **asdict(self)}

    def __repr__(self) -> str:
        length = "unknown length" if self.num_batches is None else f"{self.num_batches} batches per pass"
        lines = [f"{self.loader}, {length}: {self.resume_mode}"]
        for finding in self.findings:
            lines.append(f"  {'holds' if finding.holds else 'FAILS'}: {finding.claim}")
            if finding.detail:
                lines.append(f"         {finding.detail}")
        lines += [f"  suspect: {suspect}" for suspect in self.suspects]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def check_source(loader: Any, *, num_batches: int = 6, workers: int = 2, seed: int = 0) -> SourceReport:
    """Reads the beginning of passes 0 and 1 several times, interrupted and not, and says what is the same.

    Map-style DataLoaders are also read with 0 and with ``workers`` worker processes, a ThreadLoader without
    threads. A one-shot iterator isn't read, since what is taken from it is gone.

    Args:
        loader: What would be given to ``MultiLoader`` or ``Trainer.fit``.
        num_batches: Batches to read of each pass, at most.
        workers: Worker processes to compare with none; 0 leaves that out.
        seed: Of the orders and batches.
    """
    source = as_source(loader, "loader")
    report = SourceReport(
        type(loader).__name__, _ADDRESSING[source.resume_mode], source.num_batches(), notes=source.notes()
    )
    if isinstance(source, IterableSource) and source.is_one_shot:
        return report
    trial = _Trial(source, fold_in(seed, "check_source"), num_batches)
    generators = _generator_states()
    attributes = _plain_attributes(loader)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*are produced again and dropped")
            report.findings += trial.findings()
            if isinstance(source, ThreadLoader):
                report.findings.append(_compare_threads(source, trial))
            elif isinstance(source, TorchSource) and workers:
                report.findings.append(_compare_workers(source, trial, workers))
    finally:
        source.close()
    report.findings.append(
        Finding("the process-wide generators stay where they are", generators == _generator_states())
    )
    if not report.ok:
        report.suspects = _suspects(loader, attributes)
    return report


class _Trial:
    """Reads pieces of passes and compares them."""

    def __init__(self, source: Source, key: int, num_batches: int) -> None:
        self.source = source
        self.key = key
        self.num_batches = num_batches
        self.snapshots: dict[tuple[int, int], Snapshot] = {}
        self.reference: dict[int, list[str]] = {}

    def read(self, pass_: int, batch: int = 0, source: Source | None = None) -> list[str]:
        """Content of the batches of a pass from ``batch`` on."""
        source = source or self.source
        source.close()  # so that a stateful loader is loaded and doesn't just go on
        has_state = source.resume_mode is ResumeMode.STATEFUL
        stream = source.open(pass_, batch, self.key, self.snapshots.get((pass_, batch)))
        hashes: list[str] = []
        try:
            stream.request(self.num_batches - batch)
            for place in range(batch, self.num_batches):
                try:
                    hashes.append(content_hash(next(stream)))
                except StopIteration:
                    break
                if has_state:
                    self.snapshots[pass_, place + 1] = Snapshot(pass_, place + 1, stream.state())
        finally:
            stream.close()
        if has_state and hashes:
            # The next pass begins after what was read last of this one.
            self.snapshots.setdefault((pass_ + 1, 0), self.snapshots[pass_, batch + len(hashes)])
        return hashes

    def findings(self) -> list[Finding]:
        if self.source.resume_mode is ResumeMode.STATEFUL:
            self.snapshots[0, 0] = Snapshot(0, 0, self.source.initial_state())
        first, second = self.read(0), self.read(1)
        self.reference = {0: first, 1: second}
        return [
            _compare("the same pass read again is the same", [(0, 0, first)], self.read),
            _compare(
                "a resume inside pass 0 is exact",
                [(0, cut, first[cut:]) for cut in _cuts(len(first))],
                self.read,
            ),
            _compare("pass 1 doesn't depend on how often it was read", [(1, 0, second)], self.read),
            _compare(
                "a resume inside pass 1 is exact",
                [(1, cut, second[cut:]) for cut in _cuts(len(second))],
                self.read,
            ),
        ]


def _cuts(num_batches: int) -> list[int]:
    return sorted({cut for cut in (1, num_batches // 2, num_batches - 1) if 0 < cut < num_batches})


def _compare(claim: str, expected: list[tuple[int, int, list[str]]], read: Callable[[int, int], list[str]]) -> Finding:
    for pass_, batch, hashes in expected:
        try:
            found = read(pass_, batch)
        except Exception as error:  # whatever a loader raises is what the report is about
            return Finding(claim, False, f"pass {pass_} from batch {batch}: {type(error).__name__}: {error}")
        if found != hashes:
            pairs = enumerate(zip(hashes, found, strict=False), batch)
            differs = next((place for place, (one, other) in pairs if one != other), None)
            what = (
                f"batch {differs} differs" if differs is not None else f"{len(found)} batches instead of {len(hashes)}"
            )
            return Finding(claim, False, f"pass {pass_} from batch {batch}: {what}")
    return Finding(claim, True)


def _compare_workers(source: TorchSource, trial: _Trial, workers: int) -> Finding:
    counts = sorted({0, workers} - {source.loader.num_workers}) or [0]
    claim = f"batches are the same with {source.loader.num_workers} and {' and '.join(map(str, counts))} workers"
    for count in counts:
        other = as_source(_with_workers(source.loader, count), "loader")
        try:
            finding = _compare(
                claim,
                [(pass_, 0, hashes) for pass_, hashes in trial.reference.items()],
                lambda pass_, batch, other=other: trial.read(pass_, batch, other),  # type: ignore[misc]
            )
        finally:
            other.close()
        if not finding.holds:
            return finding
    return Finding(claim, True)


def _compare_threads(source: ThreadLoader, trial: _Trial) -> Finding:
    inline = copy.copy(source)
    inline.num_threads = 0
    return _compare(
        f"batches are the same with {source.num_threads} threads and with none",
        [(pass_, 0, hashes) for pass_, hashes in trial.reference.items()],
        lambda pass_, batch: trial.read(pass_, batch, inline),
    )


def _with_workers(loader: DataLoader[Any], num_workers: int) -> DataLoader[Any]:
    """The loader with another number of worker processes. Only its settings are copied."""
    other = copy.copy(loader)
    attributes = vars(other)  # a DataLoader lets some be set only by its constructor
    attributes["num_workers"] = num_workers
    attributes["prefetch_factor"] = 2 if num_workers else None
    attributes["persistent_workers"] = False
    attributes["_iterator"] = None
    return other


def _generator_states() -> tuple[bytes, str, Any]:
    return (
        torch.default_generator.get_state().numpy().tobytes(),
        str(np.random.get_state(legacy=False)),
        random.getstate(),
    )


def _plain_attributes(loader: Any) -> dict[str, Any]:
    dataset = getattr(loader, "dataset", loader)
    plain = (int, float, str, bool, type(None))
    return {name: value for name, value in getattr(dataset, "__dict__", {}).items() if isinstance(value, plain)}


def _suspects(loader: Any, before: dict[str, Any]) -> list[str]:
    dataset = getattr(loader, "dataset", loader)
    cls = type(dataset).__name__
    suspects = []
    for name, value in getattr(dataset, "__dict__", {}).items():
        if isinstance(value, _GENERATORS) and not hasattr(dataset, "set_batch_seed"):
            suspects.append(
                f"{cls}.{name} is a {type(value).__name__} of the dataset's own, which remembers what was read before: "
                "draw from the process-wide generators, or define set_batch_seed(key)"
            )
    after = _plain_attributes(loader)
    for name in sorted(name for name in before if after.get(name) != before[name]):
        suspects.append(
            f"{cls}.{name} changed while reading, from {before[name]!r} to {after.get(name)!r}: compute it from the "
            "index, or define state_dict and load_state_dict and use num_workers=0"
        )
    for attribute in ("batch_sampler", "sampler"):
        sampler = getattr(loader, attribute, None)
        if sampler is not None and type(sampler).__module__.split(".")[0] not in ("torch", "torchdata", "builtins"):
            suspects.append(
                f"the {attribute} {type(sampler).__name__} may depend on what happened before: it should be a function "
                "of its generators and set_epoch"
            )
    if not suspects:
        suspects.append(
            "something that reading depends on besides the index and the process-wide generators: time, the worker's "
            "id, the order of a set (PYTHONHASHSEED under spawn), a cache filled at random, a file that changes"
        )
    return suspects
