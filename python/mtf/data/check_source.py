"""Tries a loader out: is it the same again at the same position, after a resume, and for any number of workers?"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mtf._core import fold_in
from mtf.config.keywords import checked_keywords
from mtf.data.determinism.content_hash import content_hash
from mtf.data.prefetch.source_reader import Held, PassEnded, SourceReader
from mtf.data.rng.generators import untouched
from mtf.data.sources.base import ResumeMode, Snapshot, Source
from mtf.data.sources.iterable import IterableSource
from mtf.data.sources.resolve import as_source
from mtf.data.sources.threaded import ThreadLoader
from mtf.data.sources.torch_map import TorchSource
from mtf.data.suspects import plain_attributes, suspects_of
from mtf.errors import ConfigError, SourceError

_MOST_BATCHES = 200  # of a pass that is read to its end

_READABLE = "it can be read"

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


@checked_keywords(words={"num_workers": "workers"})
def check_source(loader: Any, *, num_batches: int = 6, workers: int = 2, seed: int = 0) -> SourceReport:
    """Reads passes 0 and 1 several times, interrupted and not, and says what is the same.

    Give it a function that makes the loader: then every trial begins with a new object, as a resume in a new process
    does. An object can only be tried within this process, which the report says.

    Pass 0 is read to its end where that comes within 200 batches, so that an interruption there is tried as well.
    Map-style DataLoaders are also read with 0 and with ``workers`` worker processes, a ThreadLoader without
    threads. A one-shot iterator isn't read, since what is taken from it is gone.

    Args:
        loader: What would be given to ``MultiLoader`` or ``Trainer.fit``, or a function without arguments that makes
            it.
        num_batches: Batches to read of each pass, at most.
        workers: Worker processes to compare with none; 0 leaves that out.
        seed: Of the orders and batches.

    Raises:
        ConfigError: Nothing in mtf can read such a loader. What the loader raises itself is in the report.
    """
    if isinstance(loader, Mapping):
        raise ConfigError(
            "check_source looks at one loader, and was given a dict of them: "
            "{name: check_source(loader) for name, loader in loaders.items()}"
        )
    make = _maker(loader)
    try:
        first = make()
    except Exception as error:  # whatever a loader raises is what the report is about
        name = getattr(loader, "__name__", type(loader).__name__)
        return SourceReport(name, "it can't be made", None, [_unreadable(error)])
    source = as_source(first, "loader")
    notes = list(source.notes())
    if make.is_object and source.resume_mode is not ResumeMode.SEEK:
        notes.append("tried within this process; give a function that makes the loader to try new objects")
    report = SourceReport(type(first).__name__, _ADDRESSING[source.resume_mode], source.num_batches(), notes=notes)
    if isinstance(source, IterableSource) and source.is_one_shot:
        return report
    trial = _Trial(source, make, fold_in(seed, "check_source"), num_batches)
    generators = _generator_states()
    attributes = plain_attributes(first)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*are produced again and dropped")
            warnings.filterwarnings("ignore", message=".*the last one before the resume")
            warnings.filterwarnings("ignore", message=".*gives other indices when")
            report.findings += trial.findings()
            if report.findings[0].holds and isinstance(source, ThreadLoader):
                report.findings.append(_compare_threads(source, trial))
            elif report.findings[0].holds and isinstance(source, TorchSource) and workers:
                report.findings.append(_compare_workers(source, trial, workers))
    finally:
        source.close()
    report.findings.append(
        Finding("the process-wide generators stay where they are", generators == _generator_states())
    )
    if not report.ok and report.findings[0].claim != _READABLE:
        report.suspects = suspects_of(first, source, attributes)
    return report


class _Maker:
    """Makes the loader for a trial."""

    def __init__(self, given: Any, is_object: bool) -> None:
        self._given = given
        self.is_object = is_object

    def __call__(self) -> Any:
        if self.is_object:
            return self._given
        with untouched():  # each is made as the first one, as in a new process of the same script
            return self._given()


def _maker(given: Any) -> _Maker:
    if isinstance(given, type):  # a class makes its objects
        return _Maker(given, is_object=False)
    is_function = callable(given) and not hasattr(type(given), "__iter__") and not isinstance(given, Source)
    return _Maker(given, is_object=not is_function or hasattr(type(given), "__getitem__"))


class _Trial:
    """One uninterrupted run over the first passes, and what is compared with it."""

    def __init__(self, source: Source, make: _Maker, key: int, num_batches: int) -> None:
        self._source = source
        self._make = make
        self._key = key
        self._num_batches = num_batches
        self._positions: list[tuple[int, int]] = []
        self._hashes: list[str] = []
        self._snapshots: list[Snapshot | None] = []  # before each batch
        self._length: int | None = None  # batches of pass 0, once its end was seen

    def findings(self) -> list[Finding]:
        """What was tried. Where the loader can't be read at all, that is the only one."""
        try:
            self._read_reference()
        except Exception as error:  # whatever a loader raises is what the report is about
            return [_unreadable(error)]
        inside = [cut for cut in _cuts(self._first_of(1)) if self._positions[cut][1] < self._num_batches]
        later = [self._first_of(1) + cut for cut in _cuts(len(self._positions) - self._first_of(1))]
        found = [
            self._compare("the same pass read again is the same", [0]),
            self._compare("a resume inside pass 0 is exact", inside),
        ]
        if self._length is not None and self._first_of(1) < len(self._positions):
            found.append(self._compare("a resume at the end of pass 0 is exact", [self._length - 1, self._length]))
        if self._source.resume_mode is ResumeMode.SEEK:
            claim = "pass 1 doesn't depend on how often it was read"
            found.append(self._compare(claim, [self._first_of(1)], without_state=True))
        found.append(self._compare("a resume inside pass 1 is exact", later))
        return found

    def _first_of(self, pass_: int) -> int:
        return next((place for place, at in enumerate(self._positions) if at[0] >= pass_), len(self._positions))

    def _read_reference(self) -> None:
        reader = self._reader(self._source)
        try:
            limit = max(self._num_batches, _MOST_BATCHES)
            length = self._source.num_batches()
            if length is not None and length > limit:
                limit = self._num_batches
            self._length = self._read_pass(reader, 0, limit)
            if self._length != 0:
                self._read_pass(reader, 1, self._num_batches)
        finally:
            reader.close()
        if not self._hashes:
            raise SourceError("the loader gave no batch at all")

    def _read_pass(self, reader: SourceReader, pass_: int, limit: int) -> int | None:
        """Returns the pass's length, None where it has more than ``limit`` batches."""
        known = self._source.num_batches()
        for batch in range(limit):
            if batch == known:
                return batch
            before = reader.saved()
            try:
                data = reader.take(pass_, batch)
            except PassEnded:
                return batch
            self._positions.append((pass_, batch))
            self._hashes.append(content_hash(data))
            self._snapshots.append(before)
            reader.pending_batch = None
        return limit if limit == known else None

    def _reader(self, source: Source) -> SourceReader:
        source.close()  # so that a stateful loader is loaded and doesn't just continue
        return SourceReader(source, self._key, Held())

    def _compare(self, claim: str, cuts: list[int], *, without_state: bool = False) -> Finding:
        for cut in cuts:
            source = self._source if self._make.is_object else as_source(self._make(), "loader")
            try:
                problem = self.read_again(source, cut, without_state=without_state)
            finally:
                source.close()
            if problem:
                return Finding(claim, False, problem)
        return Finding(claim, True)

    def read_again(self, source: Source, cut: int, *, without_state: bool = False) -> str:
        """Reads from position ``cut`` on, as after a resume; what differs, in words."""
        reader = self._reader(source)
        reader.snapshot = None if without_state else self._snapshots[cut]
        start = "pass {} from batch {}".format(*self._positions[cut])
        try:
            for place in range(cut, min(len(self._positions), cut + self._num_batches)):
                pass_, batch = self._positions[place]
                if batch == 0 and place > cut and self._source.num_batches() is None:
                    problem = _has_more(reader, *self._positions[place - 1])
                    if problem:
                        return f"{start}: {problem}"
                try:
                    data = reader.take(pass_, batch)
                except PassEnded as ended:
                    return f"{start}: pass {pass_} has {ended.num_batches} batches instead of more"
                reader.pending_batch = None
                if content_hash(data) != self._hashes[place]:
                    return f"{start}: batch {batch} of pass {pass_} differs"
        except Exception as error:  # whatever a loader raises is what the report is about
            return f"{start}: {type(error).__name__}: {error}"
        finally:
            reader.discard()
        return ""

    def starts(self) -> list[int]:
        """Where each pass begins in what was read."""
        return [place for place, (_, batch) in enumerate(self._positions) if batch == 0]


def _unreadable(error: Exception) -> Finding:
    return Finding(_READABLE, False, f"{type(error).__name__}: {error}")


def _has_more(reader: SourceReader, pass_: int, batch: int) -> str:
    """Lets a source of unknown length see the end of a pass, as the schedule does."""
    try:
        reader.take(pass_, batch + 1)
    except PassEnded:
        return ""
    return f"pass {pass_} has more than {batch + 1} batches"


def _cuts(num_batches: int) -> list[int]:
    return sorted({cut for cut in (1, num_batches // 2, num_batches - 1) if 0 < cut < num_batches})


def _compare_workers(source: TorchSource, trial: _Trial, workers: int) -> Finding:
    counts = sorted({0, workers} - {source.loader.num_workers}) or [0]
    claim = f"batches are the same with {source.loader.num_workers} and {' and '.join(map(str, counts))} workers"
    for count in counts:
        other = as_source(_with_workers(source.loader, count), "loader")
        try:
            problems = [trial.read_again(other, start) for start in trial.starts()]
        finally:
            other.close()
        if any(problems):
            return Finding(claim, False, next(problem for problem in problems if problem))
    return Finding(claim, True)


def _compare_threads(source: ThreadLoader, trial: _Trial) -> Finding:
    inline = copy.copy(source)
    inline.num_threads = 0
    problems = [trial.read_again(inline, start) for start in trial.starts()]
    problem = next((problem for problem in problems if problem), "")
    return Finding(f"batches are the same with {source.num_threads} threads and with none", not problem, problem)


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
